"""A copy as the answer to a request: its key, conditions of the client (RFC 9110 13), one range (14), Age and Cache-Status (RFC 9211).

The key is scheme, authority as the upstream sees it, normalised path and query; before them the route's name where the route looks at more
of a request than that. So nothing that chooses an answer is missing from it."""
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memchr, memcmp, memcpy

from gwcore._speedups.collect cimport Keep, keep_asked, keep_of
from gwcore._speedups.copies cimport copy_body, copy_find, copy_head, copy_key
from gwcore._speedups.fields cimport F_X_FORWARDED_HOST, F_X_FORWARDED_PORT, F_X_FORWARDED_PROTO, LOWER, M_HEAD, decimal, same_word
from gwcore._speedups.head cimport Field
from gwcore._speedups.freshness cimport date_read
from gwcore._speedups.http1 cimport list_next
from gwcore._speedups.outlist cimport out_add, out_copy, out_number, out_some
from gwcore._speedups.plan cimport plan_text
from gwcore._speedups.reasons cimport R_CONCURRENCY_LIMIT, R_DEADLINE, R_DEGRADE_REFUSED, R_FAULT_INJECTED, R_OVERLOAD, SIDE_UPSTREAM, reason_row
from gwcore._speedups.story cimport CACHE_ERROR, DEGRADED_CACHE

cdef enum:
    KEY_MOST = 12000


cdef uint32_t key_write(Worker *w, const Exchange *x, const Head *h, const char *path, size_t path_len, uint32_t *url_at) noexcept nogil:
    """Write the key of a request to w.key; its length, 0 = it would be too long."""
    cdef char *out = w.key
    cdef uint32_t n = 0, i
    cdef const Field *f
    cdef bint sealed = x.client.tls.ssl != NULL or x.client.sealed
    if x.route.conds.n:
        n = min(x.route.name.len, <uint32_t>1000)
        memcpy(out, plan_text(x.plan.head, x.route.name), n)
    if x.client.trusted:                             # what it says of the request passes to the upstream
        for i in range(h.n):
            f = &h.f[i]
            if f.id == F_X_FORWARDED_PROTO:
                sealed = same_word(h.base + f.value, f.value_len, b"https", 5)
            elif f.id == F_X_FORWARDED_HOST or f.id == F_X_FORWARDED_PORT:
                if n + f.value_len > 1600:
                    return 0
                out[n] = c' '
                memcpy(out + n + 1, h.base + f.value, f.value_len)
                n += 1 + f.value_len
    out[n] = c'\n'
    n += 1
    url_at[0] = n
    if sealed:
        memcpy(out + n, b"https://", 8)
        n += 8
    else:
        memcpy(out + n, b"http://", 7)
        n += 7
    for i in range(h.authority_len):
        out[n + i] = <char>LOWER[<uint8_t>h.base[h.authority + i]]
    n += h.authority_len
    memcpy(out + n, path, path_len)
    n += <uint32_t>path_len
    if h.query:
        out[n] = c'?'
        memcpy(out + n + 1, h.base + h.query, h.query_len)
        n += 1 + h.query_len
    return n


cdef const char *line_value(const char *at, uint32_t size, uint32_t *pos, const char *lower, size_t n, uint32_t *len_) noexcept nogil:
    """The value of the next line `name: value CR LF` from pos[0] on in well-formed field lines; NULL = there is none."""
    cdef uint32_t i = pos[0], end, v
    cdef const char *nl
    while i < size:
        nl = <const char *>memchr(at + i, c'\n', size - i)
        end = <uint32_t>(nl - at) if nl != NULL else size
        v = i + <uint32_t>n
        if end - i > n and at[v] == c':' and same_word(at + i, n, lower, n):
            pos[0] = end + 1
            v += 1
            while v < end and (at[v] == c' ' or at[v] == c'\t'):
                v += 1
            while end > v and (at[end - 1] == c'\r' or at[end - 1] == c' ' or at[end - 1] == c'\t'):
                end -= 1
            len_[0] = end - v
            return at + v
        i = end + 1
    return NULL


cdef uint32_t key_vary(Worker *w, uint32_t base_len, uint64_t salt, const char *names, uint32_t names_len, const char *asked, uint32_t asked_len) noexcept nogil:
    """Behind the base key in w.key: the marker's salt, and what the request says in the fields that it names. 0: too long to be kept."""
    cdef uint32_t n = base_len, at, size
    cdef size_t pos = 0, k
    cdef const char *name
    cdef const char *value
    w.key[n] = c'\n'
    memcpy(w.key + n + 1, &salt, 8)
    n += 9
    while True:
        k = list_next(names, names_len, &pos, &name)
        if k == 0:
            return n
        at = 0
        w.key[n] = c'\n'
        n += 1
        while True:
            value = line_value(asked, asked_len, &at, name, k, &size)
            if value == NULL:
                break
            if n + size + 2 > KEY_MOST:
                return 0
            memcpy(w.key + n, value, size)
            n += size
            w.key[n] = c','
            n += 1


cdef const Copy *copy_lookup(Worker *w, uint32_t key_len, const char *asked, uint32_t asked_len, bint *varies) noexcept nogil:
    """The copy for the key in w.key, good to the end of this turn; NULL = there is none. varies: there are others of it."""
    cdef CopyKey key
    cdef const Copy *c
    copy_key(w.copies, &key, w.key, key_len)
    c = copy_find(w.copies, &key)
    varies[0] = c != NULL and c.meta.flags & COPY_MARKER
    if not varies[0]:
        return c
    key_len = key_vary(w, key_len, c.meta.salt, copy_head(c), c.head_len, asked, asked_len)
    if key_len == 0:
        return NULL
    copy_key(w.copies, &key, w.key, key_len)
    return copy_find(w.copies, &key)


# ---- conditions and ranges

cdef bint tag_listed(const char *list_, uint32_t size, const char *tag, uint32_t tag_len) noexcept nogil:
    """Weak comparison with each of a list of entity tags, or `*`."""
    cdef uint32_t i = 0, start
    if tag_len >= 2 and tag[0] == c'W' and tag[1] == c'/':
        tag += 2
        tag_len -= 2
    while i < size:
        if list_[i] == c'*':
            return True
        if list_[i] != c'"':
            i += 1
            continue
        start = i
        i += 1
        while i < size and list_[i] != c'"':
            i += 1
        if i == size:
            return False
        i += 1
        if i - start == tag_len and memcmp(list_ + start, tag, tag_len) == 0:
            return True
    return False


cdef bint unchanged(const Copy *c, const char *asked, uint32_t asked_len) noexcept nogil:
    """Does the client have this answer already (If-None-Match, else If-Modified-Since)?"""
    cdef uint32_t pos = 0, size
    cdef const char *value
    cdef int64_t since, changed
    cdef bint listed = False
    if c.meta.status != 200:
        return False
    while True:
        value = line_value(asked, asked_len, &pos, b"if-none-match", 13, &size)
        if value == NULL:
            break
        listed = True
        if c.meta.etag.len and tag_listed(value, size, copy_head(c) + c.meta.etag.off, c.meta.etag.len):
            return True
    if listed or c.meta.last_modified.len == 0:
        return False
    pos = 0
    value = line_value(asked, asked_len, &pos, b"if-modified-since", 17, &size)
    if value == NULL:
        return False
    since = date_read(value, size)
    changed = date_read(copy_head(c) + c.meta.last_modified.off, c.meta.last_modified.len)
    return since >= 0 and 0 <= changed <= since


cdef int range_of(const Copy *c, const char *asked, uint32_t asked_len, uint64_t *first, uint64_t *last) noexcept nogil:
    """The one range that the client wants. 0: all of it (more than one range is answered with the whole, as RFC 9110 14.2 allows). 206, 416."""
    cdef uint32_t pos = 0, size, n
    cdef const char *value = line_value(asked, asked_len, &pos, b"range", 5, &size)
    cdef const char *dash
    cdef const char *given
    cdef int64_t number
    if value == NULL or c.meta.status != 200 or size < 7 or not same_word(value, 6, b"bytes=", 6) \
            or line_value(asked, asked_len, &pos, b"range", 5, &n) != NULL:
        return 0
    pos = 0
    given = line_value(asked, asked_len, &pos, b"if-range", 8, &n)
    if given != NULL and not (n and given[0] == c'"' and n == c.meta.etag.len and memcmp(given, copy_head(c) + c.meta.etag.off, n) == 0) \
            and not (n and n == c.meta.last_modified.len and memcmp(given, copy_head(c) + c.meta.last_modified.off, n) == 0):
        return 0
    value += 6
    size -= 6
    dash = <const char *>memchr(value, c'-', size)
    if dash == NULL or memchr(value, c',', size) != NULL:
        return 0
    n = <uint32_t>(dash - value)
    if n == 0:                                       # the last so many
        number = decimal(dash + 1, size - 1, 18)
        if number < 0:
            return 0
        if number == 0 or c.body_len == 0:
            return 416
        first[0] = c.body_len - min(<uint64_t>number, <uint64_t>c.body_len)
        last[0] = c.body_len - 1
        return 206
    number = decimal(value, n, 18)
    if number < 0:
        return 0
    first[0] = <uint64_t>number
    last[0] = <uint64_t>c.body_len - 1 if c.body_len else 0
    if size > n + 1:
        number = decimal(dash + 1, size - n - 1, 18)
        if number < 0 or <uint64_t>number < first[0]:
            return 0
        last[0] = min(last[0], <uint64_t>number)
    return 206 if first[0] < c.body_len else 416


# ---- the answer

cdef void lines_without(const char *at, uint32_t size, OutList *o, bint body) noexcept nogil:
    """The stored fields but for Content-Length; without body also but for those that describe one."""
    cdef uint32_t i = 0, end
    cdef const char *nl
    while i < size:
        nl = <const char *>memchr(at + i, c'\n', size - i)
        end = <uint32_t>(nl - at) + 1 if nl != NULL else size
        if not (end - i > 15 and same_word(at + i, 15, b"content-length:", 15)) \
                and not (not body and end - i > 8 and same_word(at + i, 8, b"content-", 8) and not (end - i > 17 and same_word(at + i, 17, b"content-location:", 17))):
            out_some(o, at + i, end - i)
        i = end


cdef int copy_write(Worker *w, Exchange *x, const Copy *c, OutList *o, const char *asked, uint32_t asked_len) noexcept nogil:
    """Write the whole answer to o, as slices of the copy; its status."""
    cdef const char *head = copy_head(c)
    cdef uint64_t first = 0, last = 0, body = c.body_len
    cdef uint32_t line = <uint32_t>(<const char *>memchr(head, c'\n', c.head_len) - head) + 1
    cdef int status = c.meta.status, ranged = 0
    if unchanged(c, asked, asked_len):
        status = 304
    elif x.method != M_HEAD:
        ranged = range_of(c, asked, asked_len, &first, &last)
    if status == 304:
        out_copy(o, b"HTTP/1.1 304 Not Modified\r\n", 27)
        lines_without(head + line, c.head_len - line, o, False)
        body = 0
    elif ranged:
        status = ranged
        if ranged == 206:
            body = last - first + 1
            out_copy(o, b"HTTP/1.1 206 Partial Content\r\n", 30)
            lines_without(head + line, c.head_len - line, o, True)
            out_copy(o, b"Content-Range: bytes ", 21)
            out_number(o, first, 10)
            out_copy(o, b"-", 1)
            out_number(o, last, 10)
            out_copy(o, b"/", 1)
        else:
            body = 0
            out_copy(o, b"HTTP/1.1 416 Range Not Satisfiable\r\n", 36)
            lines_without(head + line, c.head_len - line, o, False)
            out_copy(o, b"Content-Range: bytes */", 23)
        out_number(o, c.body_len, 10)
        out_copy(o, b"\r\nContent-Length: ", 18)
        out_number(o, body, 10)
        out_copy(o, b"\r\n", 2)
    else:
        first = 0
        out_some(o, head, c.head_len)
    out_copy(o, b"Age: ", 5)
    out_number(o, copy_age_s(w, c), 10)
    if w.now_ms >= c.meta.fresh_ms:
        out_copy(o, b"\r\nCache-Status: gwcore; hit; ttl=-", 34)
        out_number(o, (w.now_ms - c.meta.fresh_ms) // 1000 + 1, 10)
    else:
        out_copy(o, b"\r\nCache-Status: gwcore; hit; ttl=", 33)
        out_number(o, (c.meta.fresh_ms - w.now_ms) // 1000, 10)
    if x.degraded == DEGRADED_CACHE:
        out_copy(o, b"\r\nX-Gwcore-Degraded: cache", 26)
    if not x.keep_alive:
        out_copy(o, b"\r\nConnection: close\r\n\r\n", 23)
    elif x.http10:
        out_copy(o, b"\r\nConnection: keep-alive\r\n\r\n", 28)
    else:
        out_copy(o, b"\r\n\r\n", 4)
    if x.method != M_HEAD and body:
        out_add(o, copy_body(c) + first, body)
    return status


cdef const Copy *copy_stands(Worker *w, const Exchange *x) noexcept nogil:
    """A copy that may stand in for an error: because it says so (RFC 5861), or because the ladder does. NULL: there is none. P0 gets the error."""
    cdef Keep *k = keep_of(x)
    cdef const Copy *c
    cdef bint varies = False
    if k == NULL or not k.fallback or w.copies == NULL or x.tier == 0:
        return NULL
    memcpy(w.key, k + 1, k.key_len)
    c = copy_lookup(w, k.key_len, keep_asked(k), k.asked_len, &varies)
    if c == NULL or c.meta.flags & COPY_CHECK:
        return NULL
    return c if c.meta.error_ms > w.now_ms or x.ladder != NULL and copy_usable(x, c, w.now_ms) else NULL


cdef int copy_instead(Worker *w, Exchange *x, int reason, OutList *o) noexcept nogil:
    """In place of what the upstream, or the way to it, did not give: such a copy. 0: there is none; else the status of what was written to o."""
    cdef const Copy *c = NULL
    if x.copying != NULL and not x.client.sink and (reason_row(reason).side == SIDE_UPSTREAM or reason == R_OVERLOAD or reason == R_CONCURRENCY_LIMIT
                                                     or reason == R_DEADLINE or reason == R_DEGRADE_REFUSED or reason == R_FAULT_INJECTED):
        c = copy_stands(w, x)
    if c == NULL:
        return 0
    x.cached = CACHE_ERROR
    x.degraded = DEGRADED_CACHE
    return copy_write(w, x, c, o, keep_asked(keep_of(x)), keep_of(x).asked_len)
