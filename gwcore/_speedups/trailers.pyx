"""Trailer fields (RFC 9110 6.5). They come after the decisions that fields stand for were made, so everything that frames, routes,
authenticates or controls a message is dropped from them; what is left is passed on as it is, and never merged into a head."""
from libc.stddef cimport size_t
from libc.string cimport memchr, memcpy, strlen

from gwcore._speedups.buffer cimport BUF_BLOCK, BUF_HEAD, buf_bytes, buf_room, buf_space, buf_take
from gwcore._speedups.fields cimport F_OTHER, field_id, same_word
from gwcore._speedups.outlist cimport out_add, out_copy
from gwcore._speedups.plan cimport OP_ADD, HeaderEdit, plan_text
from gwcore._speedups.types cimport RC_FAIL, RC_OK

# besides the names that the gateway itself reads or sets (fields.pyx): control data, conditions, authentication (RFC 9110 6.5.1)
cdef const char *FORBIDDEN[14]
FORBIDDEN[:] = [b"age", b"cache-control", b"expires", b"location", b"max-forwards", b"pragma", b"range", b"retry-after", b"vary", b"warning",
                b"www-authenticate", b"last-modified", b"realm", b"allow"]
cdef const char *FORBIDDEN_PREFIX[5]
FORBIDDEN_PREFIX[:] = [b"content-", b"if-", b"proxy-", b"x-forwarded-", b"sec-"]


cdef int trailers_keep(BufPool *p, Buf **kept, const char *at, size_t size) noexcept nogil:
    """Append bytes of a trailer section; RC_FAIL when memory is out. limits.trailer_bytes is less than the buffer holds."""
    if kept[0] == NULL:
        kept[0] = buf_take(p, BUF_BLOCK - BUF_HEAD)
    if kept[0] == NULL or buf_space(kept[0]) < size:
        return RC_FAIL
    memcpy(buf_room(kept[0]), at, size)
    kept[0].len += <unsigned int>size
    return RC_OK


cdef bint may_pass(const char *name, size_t size) noexcept nogil:
    cdef int i
    cdef size_t n
    if field_id(name, size) != F_OTHER:
        return False
    for i in range(14):
        if same_word(name, size, FORBIDDEN[i], strlen(FORBIDDEN[i])):
            return False
    for i in range(5):
        n = strlen(FORBIDDEN_PREFIX[i])
        if size >= n and same_word(name, n, FORBIDDEN_PREFIX[i], n):
            return False
    return True


cdef bint edited(const PlanHead *p, Array edits, const char *name, size_t size) noexcept nogil:
    cdef const HeaderEdit *e = <const HeaderEdit *>(<const char *>p + edits.off)
    cdef unsigned int i
    for i in range(edits.n):
        if e[i].op != OP_ADD and same_word(name, size, plan_text(p, e[i].name), e[i].name.len):
            return True
    return False


cdef void trailers_out(OutList *o, Buf *kept, const PlanHead *p, Array edits) noexcept nogil:
    """The end of a chunked body: the last chunk, the fields of kept (NULL = none) that may pass and that the route neither sets nor removes,
    the empty line."""
    cdef const char *at
    cdef const char *end
    cdef const char *colon
    cdef const char *line
    out_copy(o, b"0\r\n", 3)
    if kept != NULL:
        at, end = buf_bytes(kept), buf_bytes(kept) + kept.len
        while at < end:
            line = at
            at = <const char *>memchr(line, c'\n', end - line) + 1       # the decoder let whole lines through only
            colon = <const char *>memchr(line, c':', at - line)
            if may_pass(line, colon - line) and not edited(p, edits, line, colon - line):
                out_add(o, line, at - line)
    out_copy(o, b"\r\n", 2)
