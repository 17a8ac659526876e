# Level 5. The chunked coding, decoded strictly: a state per body, slices out, nothing copied.
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t
from libc.stdint cimport uint8_t, uint16_t

cdef enum:
    CHUNK_TRAILER = 1        # of chunked_next: a slice of the trailer section

cdef struct Chunked:
    uint64_t left            # data bytes of the present chunk still to come
    uint32_t line            # bytes of the present size line or trailer section
    uint32_t extensions      # bytes of extensions in this body so far
    uint16_t digits
    uint8_t state
    uint32_t ext_max         # bytes of one size line
    uint32_t trailer_max     # bytes of the trailer section

cdef void chunked_init(Chunked *c, uint32_t ext_max, uint32_t trailer_max) noexcept nogil
cdef uint64_t chunk_due(const Chunked *c) noexcept nogil
cdef int chunked_next(Chunked *c, const char *at, size_t size, size_t *used, const char **data, size_t *n) noexcept nogil
