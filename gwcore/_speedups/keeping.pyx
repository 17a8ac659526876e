"""May an answer be kept, and for how long (RFC 9111 3 and 4)? Then its head is collected as the client gets it, its body as it passes, and the whole
is put into the store when the last byte came.

An answer that differs by fields of the request leaves two entries: under the base key a marker that names the fields and has a random salt, and
under base key, salt and those values the answer. Whoever forgets the marker has forgotten all of its variants."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from gwcore._speedups.buffer cimport Buf, ByteQueue, buf_bytes, queue_add
from gwcore._speedups.collect cimport VARY_BYTES, Keep, collect_stop, keep_asked, keep_key, keep_of
from gwcore._speedups.conn cimport random_next
from gwcore._speedups.copies cimport Copy, CopyKey, CopyMeta, CopyText, copy_drop, copy_find, copy_head, copy_key
from gwcore._speedups.copyanswer cimport COPY_CHECK, COPY_MARKER, COPY_STRICT, key_vary
from gwcore._speedups.copyput cimport copy_put
from gwcore._speedups.fields cimport F_AUTHORIZATION, F_CONTENT_LENGTH, F_HOST, F_OTHER, F_TRAILER, LOWER, M_GET, field_id
from gwcore._speedups.freshness cimport Said, age_s, field_named, lifetime_s, response_said
from gwcore._speedups.head cimport Field, field_is
from gwcore._speedups.http1 cimport list_next
from gwcore._speedups.plan cimport CACHE_COOKIES, OP_REMOVE, HeaderEdit, plan_text
from gwcore._speedups.sys cimport iovec
from gwcore._speedups.types cimport RC_OK, size_t

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *out, size_t size, const char *format, ...)

cdef enum:
    PIECES = 72              # buffers of one answer
    STATUSES = 14

cdef int[14] KEPT
KEPT[:] = [200, 203, 204, 300, 301, 302, 307, 308, 404, 405, 410, 414, 451, 501]


cdef bint status_kept(int status) noexcept nogil:
    cdef int i
    for i in range(STATUSES):
        if KEPT[i] == status:
            return True
    return False


cdef bint ours(const char *name, size_t n) noexcept nogil:
    """Is this a field that the gateway writes or drops? Then the client's own says nothing of what the upstream saw."""
    cdef int id_ = field_id(name, n)
    return F_OTHER < id_ < F_AUTHORIZATION and id_ != F_HOST or memchr(name, c'_', n) != NULL


cdef bint vary_read(Keep *k, const Head *h) noexcept nogil:
    """Remember the names of Vary. False: `*`, or too much of it."""
    cdef uint32_t i
    cdef size_t pos, n, b
    cdef const char *item
    for i in range(h.n):
        if not field_is(h, &h.f[i], b"vary", 4):
            continue
        pos = 0
        while True:
            n = list_next(h.base + h.f[i].value, h.f[i].value_len, &pos, &item)
            if n == 0:
                break
            if n == 1 and item[0] == c'*' or ours(item, n) or k.vary_len + n + 1 > VARY_BYTES:
                return False
            for b in range(n):
                k.vary[k.vary_len + b] = <char>LOWER[<uint8_t>item[b]]
            k.vary[k.vary_len + n] = c','
            k.vary_len += <uint32_t>n + 1
            k.varies = 1
    return True


cdef bint times(Worker *w, Exchange *x, Keep *k, const Head *h, const Said *said) noexcept nogil:
    """Fill in how long it may be used. False: it may not be kept."""
    cdef int64_t now_s = <int64_t>(w.wall_ms // 1000)
    cdef int64_t life = lifetime_s(h, said, now_s), age = age_s(h, now_s), left
    cdef CopyMeta *m = &k.meta
    cdef bint validated = field_named(h, b"etag", 4) != NULL or field_named(h, b"last-modified", 13) != NULL
    if life < 0 and not (said.no_cache and validated):
        return False
    left = max(<int64_t>0, min(life, <int64_t>x.route.cache_ttl_s) - age)
    if said.no_cache:
        m.flags |= COPY_CHECK
        left = 0
    if said.must_revalidate or said.s_maxage >= 0 or said.no_cache:
        m.flags |= COPY_STRICT
    m.stored_ms = w.now_ms
    m.age_s = <uint32_t>age
    m.fresh_ms = w.now_ms + <uint64_t>left * 1000
    m.revalidate_ms = m.error_ms = m.usable_ms = m.fresh_ms
    if not m.flags & COPY_STRICT or said.revalidate >= 0 and not said.must_revalidate and not said.no_cache:
        m.revalidate_ms += 1000 * <uint64_t>(said.revalidate if said.revalidate >= 0 else x.route.cache_revalidate_s)
    if not said.must_revalidate and not said.no_cache:
        m.error_ms += 1000 * <uint64_t>(said.error if said.error >= 0 else x.route.cache_error_s)
        m.usable_ms += 1000 * <uint64_t>x.route.cache_usable_s
        if said.error >= 0:
            m.flags &= ~<uint32_t>COPY_STRICT
    m.keep_ms = max(m.usable_ms, max(m.revalidate_ms, m.error_ms))
    return m.keep_ms > w.now_ms


cdef void keep_look(Worker *w, Exchange *x, Head *h) noexcept nogil:
    """Before the answer's head is sent: mark what is meant for us alone, and decide whether it is kept."""
    cdef Keep *k = keep_of(x)
    cdef Said said
    cdef CopyKey key
    cdef uint32_t i
    if k == NULL or w.copies == NULL:
        return
    if k.unsafe:
        if 200 <= h.status < 400:
            keep_key(w, k, &key)
            copy_drop(w.copies, &key)
        return
    response_said(h, &said)
    for i in range(h.n):
        if field_is(h, &h.f[i], b"surrogate-control", 17) or field_is(h, &h.f[i], b"surrogate-key", 13):
            h.f[i].drop = 1
    if x.method != M_GET or not status_kept(h.status) or said.no_store or said.own:
        return
    if k.secret and not said.common and said.s_maxage < 0:
        return
    if field_named(h, b"set-cookie", 10) != NULL and not x.route.cache_flags & CACHE_COOKIES:
        return
    if h.has_length and <uint64_t>h.length > x.route.cache_object:
        return
    if not times(w, x, k, h, &said) or not vary_read(k, h):
        return
    k.meta.status = h.status
    x.collecting = 1


cdef bint add(Worker *w, ByteQueue *q, const char *at, size_t size) noexcept nogil:
    return queue_add(&w.bufs, q, at, size) == RC_OK


cdef void keep_head(Worker *w, Exchange *x, const Head *h) noexcept nogil:
    """After the head was written to the client: collect the same lines, but for those that each answer has of its own."""
    cdef Keep *k = keep_of(x)
    cdef const Field *f
    cdef const HeaderEdit *e = <const HeaderEdit *>(<const char *>x.plan.head + x.route.response_edits.off)
    cdef uint32_t i
    cdef bint whole = add(w, &k.head, b"HTTP/1.1 ", 9) and add(w, &k.head, h.base + 9, h.status_line - 9 - 2)
    if h.base[12] == c'\r':                          # its space too was left out
        whole = whole and add(w, &k.head, b" ", 1)
    whole = whole and add(w, &k.head, b"\r\n", 2)
    for i in range(h.n):
        f = &h.f[i]
        if field_is(h, f, b"surrogate-key", 13) or field_is(h, f, b"cache-tag", 9):
            whole = whole and add(w, &k.tags, h.base + f.value, f.value_len) and add(w, &k.tags, b" ", 1)
        if f.drop or f.id == F_CONTENT_LENGTH or f.id == F_TRAILER or field_is(h, f, b"age", 3) or field_is(h, f, b"cache-status", 12):
            continue
        if field_is(h, f, b"etag", 4):
            k.meta.etag.off, k.meta.etag.len = <uint32_t>k.head.bytes + 6, f.value_len
        elif field_is(h, f, b"last-modified", 13):
            k.meta.last_modified.off, k.meta.last_modified.len = <uint32_t>k.head.bytes + 15, f.value_len
        whole = whole and add(w, &k.head, h.base + f.name, f.name_len) and add(w, &k.head, b": ", 2) \
            and add(w, &k.head, h.base + f.value, f.value_len) and add(w, &k.head, b"\r\n", 2)
    if not h.has_date:
        whole = whole and add(w, &k.head, w.date, 37)
    for i in range(x.route.response_edits.n):
        if e[i].op != OP_REMOVE:
            whole = whole and add(w, &k.head, plan_text(x.plan.head, e[i].line), e[i].line.len)
    if not whole:
        collect_stop(w, x)


cdef bint text_of(const ByteQueue *q, CopyText *out, iovec *iov) noexcept nogil:
    cdef Buf *b = q.head
    out.iov, out.n, out.bytes = iov, 0, q.bytes
    while b != NULL:
        if out.n == PIECES:
            return False
        iov[out.n].iov_base = buf_bytes(b)
        iov[out.n].iov_len = b.len
        out.n += 1
        b = b.next
    return True


cdef void length_line(Worker *w, Keep *k) noexcept nogil:
    cdef char text[48]
    add(w, &k.head, text, snprintf(text, sizeof(text), b"Content-Length: %zu\r\n", k.body.bytes))


cdef uint32_t variant_key(Worker *w, Exchange *x, Keep *k) noexcept nogil:
    """See to it that there is a marker, and write the key of this variant to w.key. 0: it is not kept, for there are enough of them."""
    cdef CopyKey base, key
    cdef CopyMeta m
    cdef CopyText names
    cdef iovec iov[1]
    cdef const Copy *c
    cdef uint32_t n
    keep_key(w, k, &base)
    c = copy_find(w.copies, &base)
    memset(&m, 0, sizeof(m))
    m.flags = COPY_MARKER
    if c != NULL and c.meta.flags & COPY_MARKER and c.head_len == k.vary_len and memcmp(copy_head(c), k.vary, k.vary_len) == 0:
        m.salt, m.variants, m.keep_ms = c.meta.salt, c.meta.variants, c.meta.keep_ms
    else:
        m.salt = random_next(w)
    memcpy(w.key, k + 1, k.key_len)
    n = key_vary(w, k.key_len, m.salt, k.vary, k.vary_len, keep_asked(k), k.asked_len)
    if n == 0:
        return 0
    copy_key(w.copies, &key, w.key, n)
    if copy_find(w.copies, &key) == NULL:
        if m.variants >= x.route.cache_variants:
            return 0
        m.variants += 1
    elif m.keep_ms >= k.meta.keep_ms:
        return n
    m.stored_ms, m.keep_ms = w.now_ms, max(m.keep_ms, k.meta.keep_ms)
    m.url.off, m.url.len = k.url_at, k.key_len - k.url_at
    iov[0].iov_base, iov[0].iov_len = k.vary, k.vary_len
    names.iov, names.n, names.bytes = iov, 1, k.vary_len
    return n if copy_put(w.copies, &base, &m, &names, NULL, NULL, k.epoch, w.now_ms) == RC_OK else 0


cdef void keep_store(Worker *w, Exchange *x) noexcept nogil:
    """The whole answer came: into the store with it."""
    cdef Keep *k = keep_of(x)
    cdef iovec iov[3 * PIECES]
    cdef CopyText head, tags, body
    cdef CopyKey key
    cdef uint32_t n
    if k.meta.status != 204:
        length_line(w, k)
    if k.head.bytes + k.body.bytes and text_of(&k.head, &head, iov) and text_of(&k.tags, &tags, iov + PIECES) \
            and text_of(&k.body, &body, iov + 2 * PIECES):
        keep_key(w, k, &key)
        k.meta.url.off, k.meta.url.len = k.url_at, k.key_len - k.url_at
        if k.varies:
            n = variant_key(w, x, k)
            if n:
                copy_key(w.copies, &key, w.key, n)
                copy_put(w.copies, &key, &k.meta, &head, &tags, &body, k.epoch, w.now_ms)
        else:
            copy_put(w.copies, &key, &k.meta, &head, &tags, &body, k.epoch, w.now_ms)
    collect_stop(w, x)
