"""Heads that pass through. Lines that pass untouched leave as slices of the buffer in which they came; neighbours join to one slice.

Order of a request: request line, the client's fields without those removed, ours (forwarding, Via, id, the route's), empty line.
"""
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, strlen

from gwcore._speedups.buffer cimport BUF_HEAD, BUF_SMALL, buf_bytes, buf_take
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.deadline cimport limit_is, limit_lines
from gwcore._speedups.fields cimport (
    BYTE_CLASS, B_TOKEN, F_ALIAS, F_CONTENT_LENGTH, F_EARLY_DATA, F_EXPECT, F_FORWARDED, F_MAX_FORWARDS, F_PROXY, F_TRAILER, F_VIA,
    F_X_FORWARDED_FOR, F_X_FORWARDED_HOST, F_X_FORWARDED_PORT, F_X_FORWARDED_PROTO, F_X_GWCORE, F_X_REAL_IP, F_X_REQUEST_ID,
    M_OPTIONS,
)
from gwcore._speedups.head cimport Field, Head, field_end, field_is
from gwcore._speedups.http1 cimport BODY_CHUNKED, BODY_LENGTH
from gwcore._speedups.origin cimport forwarded_lines
from gwcore._speedups.outlist cimport OutList, out_add, out_copy, out_number, out_some
from gwcore._speedups.plan cimport (
    OP_ADD, OP_REMOVE, VIA_REQUEST, VIA_RESPONSE, Array, HeaderEdit, PlanHead, Str, UpstreamSpec, plan_text, plan_upgrade, plan_upstream,
)
from gwcore._speedups.reasons cimport R_LOOP
from gwcore._speedups.story cimport CACHE_EXPIRED, CACHE_MISS, CACHE_VARY, Exchange

cdef enum:
    ID_BYTES = 128           # longest request id taken from a trusted proxy
    NOTE_PATH = 800          # bytes of the path that log and answers keep


cdef void edits_drop(const PlanHead *p, Array edits, Head *h) noexcept nogil:
    """Drop the fields that the route removes or sets."""
    cdef const HeaderEdit *e = <const HeaderEdit *>(<const char *>p + edits.off)
    cdef uint32_t i, k
    for k in range(edits.n):
        if e[k].op == OP_ADD:
            continue
        for i in range(h.n):
            if field_is(h, &h.f[i], plan_text(p, e[k].name), e[k].name.len):
                h.f[i].drop = 1


cdef void edits_add(const PlanHead *p, Array edits, OutList *o) noexcept nogil:
    cdef const HeaderEdit *e = <const HeaderEdit *>(<const char *>p + edits.off)
    cdef uint32_t k
    for k in range(edits.n):
        if e[k].op != OP_REMOVE:
            out_some(o, plan_text(p, e[k].line), e[k].line.len)


cdef void fields_out(const Head *h, OutList *o, uint32_t run) noexcept nogil:
    """The lines that pass, from offset run on. A line that is not `Name: value CR LF` to the letter is written anew."""
    cdef uint32_t i, end
    cdef const Field *f
    for i in range(h.n):
        f = &h.f[i]
        if not f.drop and h.tidy:
            continue
        end = field_end(h, i)
        if not f.drop and f.value == f.name + f.name_len + 2 and f.value + f.value_len + 2 == end and h.base[f.value - 1] == c' ':
            continue
        out_some(o, h.base + run, f.name - run)
        run = end
        if f.drop:
            continue
        out_some(o, h.base + f.name, f.name_len)
        out_copy(o, b": ", 2)
        out_some(o, h.base + f.value, f.value_len)
        out_copy(o, b"\r\n", 2)
    if o.n:
        out_some(o, h.base + run, h.size - 2 - run)
    else:
        out_add(o, h.base + run, h.size - 2 - run)      # nothing was taken out: the body may join this slice


cdef bint via_is_ours(const PlanHead *p, const Head *h, const Field *f) noexcept nogil:
    """Does this Via name our pseudonym? Then the request has been here before."""
    cdef size_t i, n = p.via_name.len
    if f.value_len < n:
        return False
    for i in range(f.value_len - n + 1):
        if memcmp(h.base + f.value + i, plan_text(p, p.via_name), n) == 0 and (i == 0 or h.base[f.value + i - 1] == c' ') \
                and (i + n == f.value_len or not BYTE_CLASS[<uint8_t>h.base[f.value + i + n]] & B_TOKEN):
            return True
    return False


cdef int fields_choose(Worker *w, Exchange *x, Head *h) noexcept nogil:
    """Mark what does not pass to the upstream. 0 or a Reason."""
    cdef const PlanHead *p = x.plan.head
    cdef Field *f
    cdef uint32_t i
    for i in range(h.n):
        f = &h.f[i]
        if f.id == 0:
            if p.underscore_drop and memchr(h.base + f.name, c'_', f.name_len) != NULL or x.deadline_ms and limit_is(p, h, f):
                f.drop = 1
            continue
        if f.id == F_CONTENT_LENGTH:
            # its digits were read and count; a spelling such as 007 is written anew
            f.drop = h.base[f.value] == c'0' and f.value_len > 1
        elif f.id == F_X_FORWARDED_FOR or f.id == F_FORWARDED or f.id == F_EXPECT or f.id == F_PROXY or f.id == F_X_GWCORE or f.id == F_ALIAS or f.id == F_X_REQUEST_ID:
            f.drop = 1
        elif f.id == F_X_FORWARDED_PROTO or f.id == F_X_FORWARDED_HOST or f.id == F_X_FORWARDED_PORT or f.id == F_X_REAL_IP:
            f.drop = not x.client.trusted
        elif f.id == F_EARLY_DATA:               # said once, whoever said it how often (RFC 8470 5.1)
            f.drop = 1
            x.early = 1
        elif f.id == F_TRAILER:
            f.drop = not (x.route.trailers and h.chunked)
        elif f.id == F_MAX_FORWARDS:
            f.drop = x.method == M_OPTIONS       # written anew, one less
        elif f.id == F_VIA and via_is_ours(p, h, f):
            return R_LOOP
    return 0


cdef int forward_request(Worker *w, Exchange *x, Head *h, OutList *o, const char *path, size_t path_len) noexcept nogil:
    """Write the upstream's request head to o (slices of h's buffer, of path, of the plan). path is what is sent. 0 or a Reason."""
    cdef const PlanHead *p = x.plan.head
    cdef const UpstreamSpec *spec
    cdef const char *line = h.base + h.start
    cdef uint32_t run
    cdef int rc = fields_choose(w, x, h)
    cdef bint own_host
    if rc:
        return rc
    edits_drop(p, x.route.request_edits, h)
    spec = plan_upstream(p, x.hash_target)
    own_host = spec.host.len != 0
    if h.host_field >= 0 and (own_host or h.absolute):
        h.f[h.host_field].drop = 1
    run = h.f[0].name if h.n else h.size - 2
    if path == h.base + h.path and not h.absolute and not h.http10:
        run = h.start                            # the whole request line passes as it stands
    else:
        out_add(o, line, h.url - h.start)
        out_add(o, path, path_len)
        if h.query:
            out_copy(o, b"?", 1)
            out_add(o, h.base + h.query, h.query_len)
        out_copy(o, b" HTTP/1.1\r\n", 11)
    fields_out(h, o, run)
    if own_host:
        out_copy(o, b"Host: ", 6)
        out_some(o, plan_text(p, spec.host), spec.host.len)
        out_copy(o, b"\r\n", 2)
    elif h.host_field < 0 or h.absolute:
        out_copy(o, b"Host: ", 6)
        if h.authority_len:
            out_some(o, h.base + h.authority, h.authority_len)
        else:
            out_some(o, plan_text(p, spec.name), spec.name.len)
        out_copy(o, b"\r\n", 2)
    if x.request_kind == BODY_CHUNKED:
        out_copy(o, b"Transfer-Encoding: chunked\r\n", 28)
    elif x.request_kind == BODY_LENGTH and not content_length_passes(h):
        out_copy(o, b"Content-Length: ", 16)
        out_number(o, <uint64_t>h.length, 10)
        out_copy(o, b"\r\n", 2)
    if x.method == M_OPTIONS and h.max_forwards > 0:
        out_copy(o, b"Max-Forwards: ", 14)
        out_number(o, <uint64_t>h.max_forwards - 1, 10)
        out_copy(o, b"\r\n", 2)
    if x.upgrade:
        upgrade_lines(x, o)
    if x.compensates and not h.has_key:          # what is replayed later must be known as the same request
        out_copy(o, b"Idempotency-Key: ", 17)
        out_some(o, buf_bytes(x.note) + x.note_path_len, x.note_id_len)
        out_copy(o, b"\r\n", 2)
    if x.te_trailers and x.route.trailers:
        out_copy(o, b"TE: trailers\r\nConnection: TE\r\n", 30)
    if x.early:
        out_copy(o, b"Early-Data: 1\r\n", 15)
    forwarded_lines(x.client, h, o)
    if x.client.tls.who != NULL:
        out_add(o, buf_bytes(x.client.tls.who), x.client.tls.who.len)
    if p.via & VIA_REQUEST:
        out_some(o, plan_text(p, p.via_line), p.via_line.len)
    if p.id_line.len:
        out_some(o, plan_text(p, p.id_line), p.id_line.len)
        out_some(o, buf_bytes(x.note) + x.note_path_len, x.note_id_len)
        out_copy(o, b"\r\n", 2)
    edits_add(p, x.route.request_edits, o)
    x.head_at = <uint32_t>o.bytes
    limit_lines(w, x, o)
    x.head_skip = <uint32_t>o.bytes - x.head_at
    out_copy(o, b"\r\n", 2)
    return 0


cdef bint content_length_passes(const Head *h) noexcept nogil:
    cdef uint32_t i
    for i in range(h.n):
        if h.f[i].id == F_CONTENT_LENGTH:
            return not h.f[i].drop
    return False


cdef void response_choose(Exchange *x, Head *h) noexcept nogil:
    cdef uint32_t i
    for i in range(h.n):
        if h.f[i].id == F_CONTENT_LENGTH:
            # 1xx and 204 have none; otherwise the digits were read and are what we send
            h.f[i].drop = h.chunked or h.status == 204 or h.status < 200 or (h.base[h.f[i].value] == c'0' and h.f[i].value_len > 1)
        elif h.f[i].id == F_TRAILER:
            h.f[i].drop = not (x.route.trailers and x.te_trailers and x.chunk_out)


cdef uint32_t status_line(const Head *h, OutList *o) noexcept nogil:
    """Write what of the status line does not pass as it came, and say where the rest begins. The space behind the status is sent also
    where the upstream left it out with the reason (RFC 9112 4)."""
    if h.base[12] == c'\r':
        out_copy(o, b"HTTP/1.1 ", 9)
        out_add(o, h.base + 9, 3)
        out_copy(o, b" ", 1)
        return 12
    if h.http10:
        out_copy(o, b"HTTP/1.1", 8)
        return 8
    return 0


cdef void cache_status(const Exchange *x, OutList *o) noexcept nogil:
    """Why the upstream was asked (RFC 9211 2.2)."""
    cdef const char *why = b"bypass"
    if x.cached == CACHE_MISS:
        why = b"uri-miss"
    elif x.cached == CACHE_VARY:
        why = b"vary-miss"
    elif x.cached == CACHE_EXPIRED:
        why = b"stale"
    out_copy(o, b"Cache-Status: gwcore; fwd=", 26)
    out_copy(o, why, strlen(why))
    if x.collecting:
        out_copy(o, b"; stored", 8)
    out_copy(o, b"\r\n", 2)


cdef void forward_response(Worker *w, Exchange *x, Head *h, OutList *o, bint close) noexcept nogil:
    """Write the client's response head to o."""
    cdef const PlanHead *p = x.plan.head
    cdef size_t passed
    response_choose(x, h)
    edits_drop(p, x.route.response_edits, h)
    fields_out(h, o, status_line(h, o))
    passed = o.bytes
    if not h.has_date:
        out_copy(o, w.date, 37)
    if h.has_length and h.status >= 200 and h.status != 204 and not h.chunked and not content_length_passes(h):
        out_copy(o, b"Content-Length: ", 16)
        out_number(o, <uint64_t>h.length, 10)
        out_copy(o, b"\r\n", 2)
    if x.chunk_out:
        out_copy(o, b"Transfer-Encoding: chunked\r\n", 28)
    if close:
        out_copy(o, b"Connection: close\r\n", 19)
    elif x.http10:
        out_copy(o, b"Connection: keep-alive\r\n", 24)
    if p.via & VIA_RESPONSE:
        out_some(o, plan_text(p, p.via_line), p.via_line.len)
    if x.cached:
        cache_status(x, o)
    edits_add(p, x.route.response_edits, o)
    if o.bytes == passed:
        out_add(o, h.base + h.size - 2, 2)       # nothing of ours: head and body leave as the one slice that they are
    else:
        out_copy(o, b"\r\n", 2)


cdef void forward_interim(Worker *w, Exchange *x, Head *h, OutList *o) noexcept nogil:
    """A 1xx answer, passed on as it is but for hop-by-hop fields; those of an upgrade are made anew."""
    response_choose(x, h)
    fields_out(h, o, status_line(h, o))
    if h.status == 101:
        upgrade_lines(x, o)
    out_copy(o, b"\r\n", 2)


cdef void upgrade_lines(const Exchange *x, OutList *o) noexcept nogil:
    """Upgrade and Connection of a protocol that the route allows."""
    cdef const Str *token = plan_upgrade(x.plan.head, x.route, x.upgrade - 1)
    out_copy(o, b"Connection: Upgrade\r\nUpgrade: ", 30)
    out_copy(o, plan_text(x.plan.head, token[0]), token.len)
    out_copy(o, b"\r\n", 2)


# ---- what is remembered of the head -------------------------------------------------------------------------------

cdef bint id_is_good(const char *at, size_t size) noexcept nogil:
    cdef size_t i
    cdef uint8_t c
    if size == 0 or size > ID_BYTES:
        return False
    for i in range(size):
        c = <uint8_t>at[i]
        if not (48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 or c == c'.' or c == c'_' or c == c'-'):
            return False
    return True


cdef extern from *:
    """
    static inline unsigned long long gw_bytes_reversed(unsigned long long v) { return __builtin_bswap64(v); }
    """
    uint64_t gw_bytes_reversed(uint64_t v) noexcept nogil


cdef inline void hex_put(char *out, uint64_t n) noexcept nogil:
    """Eight digits of n's lower half, in a few steps on all of them at once: one nibble to a byte, then its letter."""
    cdef uint64_t above
    n = (<uint32_t>n | n << 16) & <uint64_t>0x0000ffff0000ffff
    n = (n | n << 8) & <uint64_t>0x00ff00ff00ff00ff
    n = (n | n << 4) & <uint64_t>0x0f0f0f0f0f0f0f0f
    above = (n + <uint64_t>0x0606060606060606) >> 4 & <uint64_t>0x0101010101010101      # 10 to 15
    n = gw_bytes_reversed(n + <uint64_t>0x3030303030303030 + above * 39)
    memcpy(out, &n, 8)


cdef void exchange_note(Worker *w, Exchange *x, const Head *h, const char *path, size_t path_len, bint trusted) noexcept nogil:
    """Keep path and request id for answers and log. An id is taken from trusted proxies only, else made: 24 hex digits, unique over
    workers and restarts. Without memory for the note the exchange goes on without."""
    cdef char *at
    cdef const Field *f
    cdef uint64_t n
    x.note = buf_take(&w.bufs, BUF_SMALL - BUF_HEAD)
    if x.note == NULL:
        return
    at = buf_bytes(x.note)
    x.note_path_len = <uint32_t>(path_len if path_len < NOTE_PATH else NOTE_PATH)
    memcpy(at, path, x.note_path_len)
    at += x.note_path_len
    if trusted and h != NULL and h.id_field >= 0:
        f = &h.f[h.id_field]
        if id_is_good(h.base + f.value, f.value_len):
            memcpy(at, h.base + f.value, f.value_len)
            x.note_id_len = f.value_len
            return
    w.id_next += 1
    n = (w.id_next + w.id_prefix) * <uint64_t>0x1e3779b97f4a7c15       # odd: every counter value gives another number
    hex_put(at, w.id_prefix >> 32)
    hex_put(at + 8, n >> 32)
    hex_put(at + 16, n)
    x.note_id_len = 24
