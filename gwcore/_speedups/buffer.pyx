"""Buffers: three sizes, free lists, last in first out (the warmest bytes go out first). malloc only while the worker grows."""
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from gwcore._speedups.sys cimport gw_fault, gw_poison, gw_unpoison
from gwcore._speedups.types cimport RC_FAIL, RC_OK, size_t, uint32_t, uint64_t

cdef uint32_t[3] SIZES
SIZES[:] = [BUF_SMALL, BUF_BLOCK, BUF_LONG]
cdef uint32_t[3] PER_CHUNK
PER_CHUNK[:] = [64, 16, 2]


cdef void bufs_init(BufPool *p, uint64_t max_bytes) noexcept nogil:
    memset(p, 0, sizeof(BufPool))
    p.max_bytes = max_bytes


cdef void bufs_close(BufPool *p) noexcept nogil:
    """Free all memory, used or not."""
    cdef void *chunk = p.chunks
    cdef void *after
    while chunk != NULL:
        after = (<void **>chunk)[0]
        free(chunk)
        chunk = after
    memset(p, 0, sizeof(BufPool))


cdef bint bufs_refill(BufPool *p, uint32_t kind) noexcept nogil:
    # 64 bytes between neighbours keep blocks from starting in the same cache set
    cdef size_t stride = SIZES[kind] + 64
    cdef char *chunk = <char *>malloc(64 + stride * PER_CHUNK[kind])
    cdef Buf *b
    cdef uint32_t i
    if chunk == NULL:
        return False
    p.held_bytes += 64 + stride * PER_CHUNK[kind]
    (<void **>chunk)[0] = p.chunks
    p.chunks = chunk
    for i in range(PER_CHUNK[kind]):
        b = <Buf *>(chunk + 64 + stride * (PER_CHUNK[kind] - 1 - i))
        b.kind = kind
        b.cap = SIZES[kind] - BUF_HEAD
        b.next = p.free[kind]
        p.free[kind] = b
        gw_poison(b + 1, b.cap)
    return True


cdef Buf *buf_take(BufPool *p, size_t at_least) noexcept nogil:
    """An empty buffer for at_least bytes; NULL when it is more than the largest holds, or the worker's share is used up."""
    cdef uint32_t kind = 0
    cdef Buf *b
    while kind < 3 and SIZES[kind] - BUF_HEAD < at_least:
        kind += 1
    if kind == 3 or gw_fault() or (p.max_bytes and p.used_bytes + SIZES[kind] > p.max_bytes):
        return NULL
    if p.free[kind] == NULL and not bufs_refill(p, kind):
        return NULL
    b = p.free[kind]
    p.free[kind] = b.next
    b.next = NULL
    b.off = b.len = 0
    gw_unpoison(b + 1, b.cap)
    p.used += 1
    p.used_bytes += SIZES[kind]
    return b


cdef void buf_give(BufPool *p, Buf *b) noexcept nogil:
    if b == NULL:
        return
    p.used -= 1
    p.used_bytes -= SIZES[b.kind]
    gw_poison(b + 1, b.cap)
    b.next = p.free[b.kind]
    p.free[b.kind] = b


cdef Buf *buf_grow(BufPool *p, Buf *b) noexcept nogil:
    """The same bytes in a buffer of the next size; NULL (b unchanged) when there is none."""
    cdef Buf *big = buf_take(p, b.cap + 1)
    if big == NULL:
        return NULL
    memcpy(big + 1, buf_bytes(b), b.len)
    big.len = b.len
    buf_give(p, b)
    return big


cdef int queue_add(BufPool *p, ByteQueue *q, const char *data, size_t size) noexcept nogil:
    """Copy bytes to the end; RC_FAIL (nothing promised about the queue but that it can be cleared) when memory is out."""
    cdef size_t n
    cdef Buf *b
    while size:
        b = q.tail
        if b == NULL or buf_space(b) == 0:
            b = buf_take(p, size if size < BUF_BLOCK - BUF_HEAD else BUF_BLOCK - BUF_HEAD)
            if b == NULL:
                return RC_FAIL
            if q.tail == NULL:
                q.head = b
            else:
                q.tail.next = b
            q.tail = b
        n = buf_space(b)
        if n > size:
            n = size
        memcpy(buf_room(b), data, n)
        b.len += <uint32_t>n
        q.bytes += n
        data += n
        size -= n
    return RC_OK


cdef void queue_skip(BufPool *p, ByteQueue *q, size_t size) noexcept nogil:
    """Drop size bytes from the front (at most what is there)."""
    cdef Buf *b
    while size and q.head != NULL:
        b = q.head
        if size < b.len:
            b.off += <uint32_t>size
            b.len -= <uint32_t>size
            q.bytes -= size
            return
        size -= b.len
        q.bytes -= b.len
        q.head = b.next
        if q.head == NULL:
            q.tail = NULL
        buf_give(p, b)


cdef void queue_clear(BufPool *p, ByteQueue *q) noexcept nogil:
    queue_skip(p, q, q.bytes)
    while q.head != NULL:
        queue_skip(p, q, 1)
