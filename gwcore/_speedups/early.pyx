"""Early data. A client that comes again may send requests with its first message, before it has shown that the message is not a copy of an old
one. What it sends is read into c.input whatever the connection does in that moment, so that the end of the handshake, which comes behind it,
is never waited for by somebody who does not read: answers leave at once, and everything else meets a connection like any other."""
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy, memmove

from gwcore._speedups.buffer cimport Buf, buf_bytes, buf_grow, buf_room, buf_space, buf_take
from gwcore._speedups.conn cimport C_HEAD, conn_arm, sealed_push, window_fill, window_keep
from gwcore._speedups.fields cimport M_GET, M_HEAD, M_OPTIONS
from gwcore._speedups.handshake cimport handshake_over
from gwcore._speedups.tls cimport TLS_IN_BYTES, tls_early, tls_holds
from gwcore._speedups.types cimport RC_AGAIN, RC_DONE, RC_FAIL, RC_OK, size_t


cdef bint early_keep(Worker *w, Conn *c) noexcept nogil:
    """Put what is staged behind what waits in c.input; all of it is TLS_EARLY bytes at the most. False when memory is out."""
    cdef size_t n = w.tls.staged
    cdef Buf *b = c.input
    w.tls.staged = 0
    if n == 0:
        return True
    if b == NULL:
        b = buf_take(&w.bufs, n)
    elif buf_space(b) < n and b.off:
        memmove(b + 1, buf_bytes(b), b.len)
        b.off = 0
    while b != NULL and buf_space(b) < n:
        c.input = b
        b = buf_grow(&w.bufs, b)
    if b == NULL:
        return False
    c.input = b
    memcpy(buf_room(b), w.tls.stage, n)
    b.len += <uint32_t>n
    if c.state == C_HEAD:
        c.tls.fed += <uint16_t>n
    return True


cdef int early_read(Worker *w, Conn *c) noexcept nogil:
    """Read what is there of early data, and of the handshake behind it. RC_OK: all is well, and the handshake may be over. RC_DONE: the peer has
    ended. RC_FAIL: c.broken, or the handshake failed (c.tls.error; the alert is sent)."""
    cdef int rc, step
    while True:
        rc = window_fill(w, c, TLS_IN_BYTES)
        if rc != RC_OK and not tls_holds(&c.tls):
            return RC_OK if rc == RC_AGAIN else rc
        step = RC_OK
        while step == RC_OK:
            w.tls.out_used = 0
            step = tls_early(&w.tls, &c.tls)
            if w.tls.out_used and sealed_push(w, c) == RC_FAIL:
                step = RC_FAIL
            if not early_keep(w, c):
                c.broken = 1
                step = RC_FAIL
        if window_keep(w, c) != RC_OK:
            step = RC_FAIL
        if step == RC_DONE:
            handshake_over(w, c)
            if c.exchange == NULL:
                conn_arm(w, c, w.now_ms + (w.plan.head.keepalive_ms if c.requests and c.state != C_HEAD else w.plan.head.header_ms))
            return RC_OK
        if step == RC_FAIL:
            return RC_FAIL
        if rc != RC_OK:
            return RC_OK if rc == RC_AGAIN else rc


cdef bint early_safe(const Head *h) noexcept nogil:
    """May a request be answered though it may be a copy? One whose method is safe and that brings nothing along (RFC 8470 4)."""
    return (h.method == M_GET or h.method == M_HEAD or h.method == M_OPTIONS) and h.length <= 0 and not h.chunked and not h.wants_upgrade
