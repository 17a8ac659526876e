# Level 1. Byte buffers in three sizes from free lists, and queues of them. A connection that waits holds none.
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t

cdef enum:
    BUF_SMALL = 1024         # a usual head; a trickling client costs no more
    BUF_BLOCK = 16384        # the unit of bodies
    BUF_LONG = 66560         # the longest head that limits allow, whole
    BUF_HEAD = 32            # sizeof(Buf), the part before the bytes

cdef struct Buf:
    Buf *next                # in a queue or on a free list
    uint32_t kind            # index of its size
    uint32_t cap             # bytes it can hold
    uint32_t off             # the first byte not consumed
    uint32_t len             # bytes from off
    uint64_t unused

cdef struct BufPool:         # one per worker
    Buf *free[3]
    uint64_t used_bytes      # handed out, with heads
    uint64_t held_bytes      # from the system
    uint64_t max_bytes       # refuse beyond (0 = no limit)
    uint32_t used            # handed out, count
    void *chunks             # all memory, linked through the first word

cdef struct ByteQueue:       # first in, first out; empty = no memory held
    Buf *head
    Buf *tail
    size_t bytes

cdef inline char *buf_bytes(Buf *b) noexcept nogil:
    return <char *>(b + 1) + b.off

cdef inline char *buf_room(Buf *b) noexcept nogil:
    return <char *>(b + 1) + b.off + b.len

cdef inline uint32_t buf_space(const Buf *b) noexcept nogil:
    return b.cap - b.off - b.len

cdef void bufs_init(BufPool *p, uint64_t max_bytes) noexcept nogil
cdef void bufs_close(BufPool *p) noexcept nogil
cdef Buf *buf_take(BufPool *p, size_t at_least) noexcept nogil
cdef void buf_give(BufPool *p, Buf *b) noexcept nogil
cdef Buf *buf_grow(BufPool *p, Buf *b) noexcept nogil
cdef int queue_add(BufPool *p, ByteQueue *q, const char *data, size_t size) noexcept nogil
cdef void queue_skip(BufPool *p, ByteQueue *q, size_t size) noexcept nogil
cdef void queue_clear(BufPool *p, ByteQueue *q) noexcept nogil
