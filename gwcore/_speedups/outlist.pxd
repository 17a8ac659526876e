# Level 2. What one write sends.
from gwcore._speedups.buffer cimport BufPool, ByteQueue
from gwcore._speedups.sys cimport iovec
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    OUT_SLICES = 64
    OUT_TEXT = 4096          # bytes made by us for one write
    OUT_SMALL = 256          # up to here a copy next to its neighbour costs less than a slice of its own

cdef struct OutList:         # what one write sends; lives in the worker, emptied by conn_send
    iovec iov[64]
    int n
    uint32_t text_used
    uint32_t room            # so much text may be added to the last slice, which ends where the text ends
    bint failed              # memory was out: something is missing, nothing may be sent
    size_t bytes
    BufPool *bufs
    ByteQueue spill          # what came after the slices or the text ran out, copied
    char text[4096]

cdef void out_reset(OutList *o) noexcept nogil
cdef int out_store(BufPool *p, const OutList *o, ByteQueue *q) noexcept nogil
cdef void out_add(OutList *o, const char *at, size_t size) noexcept nogil
cdef void out_text(OutList *o, const char *at, size_t size) noexcept nogil

cdef inline void out_copy(OutList *o, const char *at, size_t size) noexcept nogil:
    """Add bytes that do not live until the write: they are copied to the list's own text."""
    if size > o.room:
        out_text(o, at, size)
        return
    memcpy(o.text + o.text_used, at, size)
    o.text_used += <uint32_t>size
    o.room -= <uint32_t>size
    o.bytes += size
    o.iov[o.n - 1].iov_len += size

cdef inline void out_some(OutList *o, const char *at, size_t size) noexcept nogil:
    """A slice when it is long, a copy when it is short."""
    if size <= OUT_SMALL:
        out_copy(o, at, size)
    else:
        out_add(o, at, size)

cdef void out_number(OutList *o, uint64_t n, int base) noexcept nogil
