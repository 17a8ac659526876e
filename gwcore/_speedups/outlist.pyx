"""What one write sends: slices of memory that stays, copies of what does not."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from gwcore._speedups.buffer cimport Buf, BufPool, ByteQueue, buf_bytes, queue_add, queue_clear
from gwcore._speedups.sys cimport iovec
from gwcore._speedups.types cimport RC_FAIL, RC_OK, size_t


cdef void out_reset(OutList *o) noexcept nogil:
    o.n = 0
    o.text_used = o.room = 0
    o.bytes = 0
    o.failed = False
    if o.spill.bytes:
        queue_clear(o.bufs, &o.spill)


cdef void out_spill(OutList *o, const char *at, size_t size) noexcept nogil:
    """Behind the slices, copied. Without memory the list is good for nothing any more: a hole in a message is worse than its end."""
    if not o.failed and queue_add(o.bufs, &o.spill, at, size) != RC_OK:
        o.failed = True


cdef void out_add(OutList *o, const char *at, size_t size) noexcept nogil:
    """Add a slice. It joins the last one when they touch; when the list is full the bytes are copied instead."""
    cdef iovec *last
    if size == 0:
        return
    o.room = 0
    o.bytes += size
    if o.spill.bytes or o.failed:
        out_spill(o, at, size)
        return
    if o.n:
        last = &o.iov[o.n - 1]
        if <const char *>last.iov_base + last.iov_len == at:
            last.iov_len += size
            return
    if o.n == OUT_SLICES:
        out_spill(o, at, size)
        return
    o.iov[o.n].iov_base = <void *>at
    o.iov[o.n].iov_len = size
    o.n += 1


cdef void out_text(OutList *o, const char *at, size_t size) noexcept nogil:
    """out_copy where the last slice is not the text's end, or the text is used up."""
    if size == 0:
        return
    if o.text_used + size > OUT_TEXT:
        o.room = 0
        o.bytes += size
        out_spill(o, at, size)
        return
    memcpy(o.text + o.text_used, at, size)
    out_add(o, o.text + o.text_used, size)
    o.text_used += <uint32_t>size
    if not o.spill.bytes and not o.failed:
        o.room = OUT_TEXT - o.text_used


cdef void out_number(OutList *o, uint64_t n, int base) noexcept nogil:
    cdef char digits[24]
    cdef int i = 24
    while True:
        i -= 1
        digits[i] = b"0123456789abcdef"[n % base]
        n //= base
        if n == 0:
            break
    out_copy(o, digits + i, 24 - i)


cdef int out_store(BufPool *p, const OutList *o, ByteQueue *q) noexcept nogil:
    """Copy all of the list to the end of a queue."""
    cdef int i
    cdef Buf *b
    if o.failed:
        return RC_FAIL
    for i in range(o.n):
        if queue_add(p, q, <const char *>o.iov[i].iov_base, o.iov[i].iov_len) != RC_OK:
            return RC_FAIL
    b = o.spill.head
    while b != NULL:
        if queue_add(p, q, buf_bytes(b), b.len) != RC_OK:
            return RC_FAIL
        b = b.next
    return RC_OK
