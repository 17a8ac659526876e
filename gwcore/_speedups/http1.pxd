# Level 7. HTTP/1 messages: what a parsed head means, strictly (RFC 9112); framing; what may pass on.
from gwcore._speedups.head cimport Head
from gwcore._speedups.types cimport size_t, uint64_t
from libc.stdint cimport int64_t

cdef enum BodyKind:
    BODY_NONE
    BODY_LENGTH              # so many bytes
    BODY_CHUNKED
    BODY_CLOSE               # up to the end of the connection (responses only)

cdef int request_check(Head *h) noexcept nogil
cdef int response_check(Head *h, bint to_head) noexcept nogil
cdef int64_t keep_alive_ms(const Head *h) noexcept nogil
cdef int response_body(const Head *h, bint to_head) noexcept nogil
cdef int host_check(const char *at, size_t size) noexcept nogil
cdef size_t host_normal(const char *at, size_t size, char *out) noexcept nogil
cdef size_t list_next(const char *at, size_t size, size_t *pos, const char **item) noexcept nogil
