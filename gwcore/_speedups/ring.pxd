# Level 1. The access log's ring: one writer (the worker's loop), one reader (a thread without Python that writes to the file).
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t

cdef struct Ring:
    char *mem
    size_t size              # power of two
    size_t head              # bytes ever written (atomic, the loop's)
    size_t tail              # bytes ever flushed (atomic, the thread's)
    size_t wake_at           # wake the thread when so much waits
    uint64_t dropped
    uint64_t lost            # bytes which write() refused
    int fd                   # atomic; replaced on reopen
    int wake_fd
    uint32_t flush_ms
    uint32_t stop            # atomic
    uint32_t running
    unsigned long thread

cdef Ring *ring_open(int fd, size_t flush_bytes, uint32_t flush_ms) noexcept nogil
cdef void ring_close(Ring *r) noexcept nogil
cdef void ring_swap_fd(Ring *r, int fd) noexcept nogil
cdef bint ring_put(Ring *r, const char *at, size_t size) noexcept nogil
cdef size_t ring_room(const Ring *r) noexcept nogil
