"""Connections: reading, writing, closing. The kernel is told of a socket once (edge-triggered, both directions), and not before somebody waits
for it: a client that sent one whole request and waits for the answer often ends without. What it says is kept in `readable` and `writable`,
and no read is made that can only return EAGAIN."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from gwcore._speedups.buffer cimport (
    BUF_LONG, BUF_HEAD, Buf, buf_bytes, buf_give, buf_grow, buf_room, buf_space, buf_take, queue_add, queue_clear, queue_skip,
)
from gwcore._speedups.clients cimport client_leave
from gwcore._speedups.outlist cimport OutList, out_reset, out_store
from gwcore._speedups.slab cimport slab_give, slab_take
from gwcore._speedups.sys cimport (
    EAGAIN, EINTR, EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLL_CTL_ADD, MSG_MORE, MSG_NOSIGNAL, SHUT_WR, close, epoll_ctl, epoll_event, errno,
    iovec, msghdr, recv, send, sendmsg, shutdown,
)
from gwcore._speedups.timer cimport timer_arm, timer_cancel, timer_init
from gwcore._speedups.tls cimport (
    TLS_FLOW_BYTES, TLS_IN_BYTES, TLS_OVERHEAD, TLS_RECORD, TLS_RECORD_FIRST, tls_bye, tls_end, tls_holds, tls_open, tls_out_room, tls_seal,
)
from gwcore._speedups.tlsjobs cimport job_orphan
from gwcore._speedups.types cimport RC_AGAIN, RC_DONE, RC_FAIL, RC_OK, link_append, link_drop, link_init, size_t

# from FREE, IDLE, HEAD, BUSY, LINGER, CONNECTING, READY, POOLED: the legal next states
cdef uint32_t[8] LEGAL
LEGAL[:] = [
    1 << C_IDLE | 1 << C_CONNECTING,
    1 << C_HEAD | 1 << C_BUSY | 1 << C_FREE | 1 << C_LINGER,
    1 << C_BUSY | 1 << C_FREE | 1 << C_LINGER,
    1 << C_IDLE | 1 << C_LINGER | 1 << C_FREE,
    1 << C_FREE,
    1 << C_READY | 1 << C_FREE,
    1 << C_POOLED | 1 << C_FREE,
    1 << C_READY | 1 << C_FREE,
]


cdef bint conn_move(Worker *w, Conn *c, int to) noexcept nogil:
    """The only writer of a connection's state."""
    if not LEGAL[c.state] >> to & 1:
        w.lane.worker.illegal_moves += 1
        return False
    if c.state == C_IDLE:
        link_drop(&c.idle.link)
    w.lingering += (to == C_LINGER) - (c.state == C_LINGER)
    c.state = <uint8_t>to
    return True


cdef uint64_t random_next(Worker *w) noexcept nogil:
    """xorshift64* (Marsaglia; Vigna): for jitter and choices, not for secrets."""
    w.random ^= w.random >> 12
    w.random ^= w.random << 25
    w.random ^= w.random >> 27
    return w.random * <uint64_t>0x2545f4914f6cdd1d


cdef double chance_next(Worker *w) noexcept nogil:
    """From [0, 1)."""
    return <double>(random_next(w) >> 11) / 9007199254740992.0


# ---- what goes out ------------------------------------------------------------------------------------------------

cdef int conn_send(Worker *w, Conn *c, OutList *o) noexcept nogil:
    """Send the list and empty it. RC_OK: all of it is with the kernel. RC_AGAIN: the rest is queued in c.output. RC_FAIL: c.broken."""
    cdef msghdr msg
    cdef ssize_t n
    cdef size_t size
    cdef int i, rc
    cdef bint taken
    cdef int flags = MSG_NOSIGNAL | MSG_MORE if c.final else MSG_NOSIGNAL
    if c.broken or o.failed:
        c.broken = 1
        out_reset(o)
        return RC_FAIL
    if o.bytes == 0:
        return RC_OK if c.output.bytes == 0 else RC_AGAIN
    if c.tls.ssl != NULL:
        return sealed_send(w, c, o)
    if c.output.bytes or o.spill.bytes or not c.writable:
        if c.sink:
            out_reset(o)
            return RC_OK
        rc = out_store(&w.bufs, o, &c.output)
        out_reset(o)
        if rc != RC_OK:
            c.broken = 1
            return RC_FAIL
        return conn_flush(w, c) if c.writable else RC_AGAIN
    if o.n > 1 and o.bytes <= OUT_FLAT:
        size = 0
        for i in range(o.n):
            memcpy(w.flat + size, o.iov[i].iov_base, o.iov[i].iov_len)
            size += o.iov[i].iov_len
        o.iov[0].iov_base = w.flat
        o.iov[0].iov_len = size
        o.n = 1
    while True:
        if o.n == 1:
            n = send(c.fd, o.iov[0].iov_base, o.iov[0].iov_len, flags)
        else:
            memset(&msg, 0, sizeof(msg))
            msg.msg_iov = o.iov
            msg.msg_iovlen = o.n
            n = sendmsg(c.fd, &msg, flags)
        if n != -1 or errno != EINTR:
            break
    if n == <ssize_t>o.bytes:
        o.n = 0
        o.text_used = o.room = 0
        o.bytes = 0
        return RC_OK
    if n == -1:
        if errno != EAGAIN:
            c.broken = 1
            out_reset(o)
            return RC_FAIL
        n = 0
    c.writable = 0
    taken = n > 0
    if not conn_watch(w, c):                 # its events are wanted from here on
        c.cut = taken
        out_reset(o)
        return RC_FAIL
    for i in range(o.n):                     # the part that was taken does not go to the queue
        if <size_t>n >= o.iov[i].iov_len:
            n -= <ssize_t>o.iov[i].iov_len
            o.iov[i].iov_len = 0
        else:
            o.iov[i].iov_base = <char *>o.iov[i].iov_base + n
            o.iov[i].iov_len -= n
            n = 0
    rc = out_store(&w.bufs, o, &c.output)
    out_reset(o)
    if rc != RC_OK:
        c.broken = 1
        c.cut = taken                        # the peer has a part: nobody may say that nothing was sent
        return RC_FAIL
    return RC_AGAIN


cdef int conn_flush(Worker *w, Conn *c) noexcept nogil:
    """Write queued bytes. RC_OK: none are left. RC_AGAIN, RC_FAIL as conn_send."""
    cdef iovec iov[32]
    cdef msghdr msg
    cdef Buf *b
    cdef size_t want
    cdef ssize_t n
    while c.output.bytes:
        memset(&msg, 0, sizeof(msg))
        msg.msg_iov = iov
        want = 0
        b = c.output.head
        while b != NULL and msg.msg_iovlen < 32:
            iov[msg.msg_iovlen].iov_base = buf_bytes(b)
            iov[msg.msg_iovlen].iov_len = b.len
            want += b.len
            msg.msg_iovlen += 1
            b = b.next
        n = sendmsg(c.fd, &msg, MSG_NOSIGNAL)
        if n == -1:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                c.broken = 1
                return RC_FAIL
            n = 0
        queue_skip(&w.bufs, &c.output, n)
        if <size_t>n < want:
            c.writable = 0
            return RC_AGAIN
    return RC_OK


# ---- what comes in ------------------------------------------------------------------------------------------------

cdef int conn_read(Worker *w, Conn *c, size_t most, const char **at, size_t *size) noexcept nogil:
    """Read once, at most `most` bytes (SCRATCH_BYTES: as many as fit). RC_OK: at[0], size[0] are all bytes that wait to be consumed; say with conn_rest what is left of them.

    RC_AGAIN: nothing there. RC_DONE: the peer ended. RC_FAIL: reset, or no memory for a longer head. Bytes go to the worker's scratch
    and stay there for this turn; behind bytes that wait already when there are such.
    """
    cdef char *into = w.scratch
    cdef size_t room = SCRATCH_BYTES
    cdef Buf *b = c.input
    cdef Buf *big
    cdef ssize_t n
    if b != NULL:
        if buf_space(b) == 0:
            if b.off:
                memmove(b + 1, buf_bytes(b), b.len)
                b.off = 0
            else:
                big = buf_grow(&w.bufs, b)
                if big == NULL:
                    return RC_FAIL
                c.input = b = big
        into = buf_room(b)
        room = buf_space(b)
    elif c.side == CONN_CLIENT:
        room = BUF_LONG - BUF_HEAD               # what comes behind a head may have to wait, in one buffer
    if room > most:
        room = most
    if c.tls.ssl != NULL:
        return sealed_read(w, c, into, room, at, size)
    while True:
        n = recv(c.fd, into, room, 0)
        if n != -1 or errno != EINTR:
            break
    if n > 0:
        if <size_t>n < room and not c.ended:
            c.readable = 0
        if b != NULL:
            b.len += <uint32_t>n
            at[0] = buf_bytes(b)
            size[0] = b.len
        else:
            at[0] = into
            size[0] = n
        return RC_OK
    c.readable = 0
    if n == 0:
        c.ended = 2
        return RC_DONE
    if errno == EAGAIN:
        return RC_AGAIN
    c.broken = 1
    return RC_FAIL


cdef int conn_rest(Worker *w, Conn *c, const char *at, size_t size) noexcept nogil:
    """The bytes of the last read that were not consumed: a tail of what conn_read gave (or of c.input). RC_FAIL when memory is out."""
    cdef Buf *b = c.input
    if b != NULL and at >= <char *>(b + 1) and at <= <char *>(b + 1) + b.cap:
        if size == 0:
            c.input = NULL
            buf_give(&w.bufs, b)
        else:
            b.off = <uint32_t>(at - <char *>(b + 1))
            b.len = <uint32_t>size
        return RC_OK
    if size == 0:
        return RC_OK
    c.input = buf_take(&w.bufs, size)
    if c.input == NULL:
        c.broken = 1
        return RC_FAIL
    memcpy(buf_room(c.input), at, size)
    c.input.len = <uint32_t>size
    return RC_OK


# ---- TLS ----------------------------------------------------------------------------------------------------------

cdef void plan_release(Conn *c) noexcept nogil:
    if c.plan != NULL:
        c.plan.refs -= 1
        c.plan = NULL
    c.tls.server = NULL


cdef int window_fill(Worker *w, Conn *c, size_t most) noexcept nogil:
    """Ciphertext for one call: what waits, else one read of the socket. RC_OK, or as conn_read."""
    cdef ssize_t n
    if c.tls.sealed != NULL:
        w.tls.in_at = buf_bytes(c.tls.sealed)
        w.tls.in_left = c.tls.sealed.len
        return RC_OK
    w.tls.in_left = 0
    if not c.readable:
        return RC_AGAIN
    most = most + TLS_OVERHEAD
    if most > TLS_IN_BYTES:
        most = TLS_IN_BYTES
    while True:
        n = recv(c.fd, w.tls.inbox, most, 0)
        if n != -1 or errno != EINTR:
            break
    if n > 0:
        if <size_t>n < most and not c.ended:
            c.readable = 0
        c.tls.begun = 1
        w.tls.in_at = w.tls.inbox
        w.tls.in_left = n
        return RC_OK
    c.readable = 0
    if n == 0:
        c.ended = 2
        if not c.tls.closed:
            c.cut = 1                        # FIN without close_notify: somebody may have cut the stream (RFC 8446 6.1)
        return RC_DONE
    if errno == EAGAIN:
        return RC_AGAIN
    c.broken = 1
    return RC_FAIL


cdef int window_keep(Worker *w, Conn *c) noexcept nogil:
    """After the call: keep what it left of the window."""
    cdef Buf *b = c.tls.sealed
    if b != NULL:
        if w.tls.in_left:
            b.off += b.len - <uint32_t>w.tls.in_left
            b.len = <uint32_t>w.tls.in_left
            return RC_OK
        c.tls.sealed = NULL
        buf_give(&w.bufs, b)
        return RC_OK
    if w.tls.in_left:
        b = buf_take(&w.bufs, w.tls.in_left)
        if b == NULL:
            c.broken = 1
            return RC_FAIL
        memcpy(buf_room(b), w.tls.in_at, w.tls.in_left)
        b.len = <uint32_t>w.tls.in_left
        c.tls.sealed = b
    return RC_OK


cdef int sealed_push(Worker *w, Conn *c) noexcept nogil:
    """Give the kernel the ciphertext that was made, queue what it does not take. RC_OK: nothing is queued. RC_AGAIN, RC_FAIL as conn_send."""
    cdef size_t size = w.tls.out_used
    cdef ssize_t n = 0
    w.tls.out_used = 0
    if size and c.output.bytes == 0 and c.writable:
        while True:
            n = send(c.fd, w.tls.out, size, MSG_NOSIGNAL)
            if n != -1 or errno != EINTR:
                break
        if n == <ssize_t>size:
            return RC_OK
        if n == -1:
            if errno != EAGAIN:
                c.broken = 1
                return RC_FAIL
            n = 0
        c.writable = 0
    if size and queue_add(&w.bufs, &c.output, w.tls.out + n, size - n) != RC_OK:
        c.broken = 1
        c.cut = 1
        return RC_FAIL
    if c.output.bytes and c.writable:
        return conn_flush(w, c)
    return RC_AGAIN if c.output.bytes else RC_OK


cdef int sealed_read(Worker *w, Conn *c, char *into, size_t room, const char **at, size_t *size) noexcept nogil:
    """conn_read of a TLS connection: read ciphertext once, open all of it for which there is room."""
    cdef size_t got = 0
    cdef int rc, opened
    w.tls.out_used = 0
    if c.tls.closed:
        c.readable = 0
        c.ended = 2
        return RC_DONE
    while got == 0:
        rc = window_fill(w, c, room)
        if rc != RC_OK and not tls_holds(&c.tls):
            return rc
        opened = tls_open(&w.tls, &c.tls, into, room, &got)
        if window_keep(w, c) != RC_OK:
            return RC_FAIL
        if w.tls.out_used:                   # an alert, or the answer to a key update
            sealed_push(w, c)
        if opened == RC_FAIL:
            c.broken = 1
            return RC_FAIL
        if opened == RC_DONE:
            c.ended = 2
            if got == 0:
                return RC_DONE
            c.readable = 1                   # to be told of next time
        elif opened == RC_AGAIN:
            c.readable = 1
        elif got == 0 and rc != RC_OK:
            return rc
    if c.input != NULL:
        c.input.len += <uint32_t>got
        at[0] = buf_bytes(c.input)
        size[0] = c.input.len
    else:
        at[0] = into
        size[0] = got
    return RC_OK


cdef int record_out(Worker *w, Conn *c, const char *at, size_t n) noexcept nogil:
    if tls_out_room(&w.tls) < n + TLS_OVERHEAD and sealed_push(w, c) == RC_FAIL:
        return RC_FAIL
    if tls_seal(&w.tls, &c.tls, at, n) != RC_OK:
        c.broken = 1
        return RC_FAIL
    c.tls.flow += <uint32_t>n
    return RC_OK


cdef int bytes_out(Worker *w, Conn *c, const char *at, size_t n, size_t *staged) noexcept nogil:
    """Add plaintext to the present record, or make whole records of it as it lies."""
    cdef size_t most, part
    while n:
        most = TLS_RECORD if c.tls.flow >= TLS_FLOW_BYTES else TLS_RECORD_FIRST
        if staged[0] == 0 and n >= most:
            if record_out(w, c, at, most) != RC_OK:
                return RC_FAIL
            at += most
            n -= most
            continue
        part = n if n < most - staged[0] else most - staged[0]
        memcpy(w.tls.stage + staged[0], at, part)
        staged[0] += part
        at += part
        n -= part
        if staged[0] == most:
            if record_out(w, c, w.tls.stage, most) != RC_OK:
                return RC_FAIL
            staged[0] = 0
    return RC_OK


cdef int sealed_send(Worker *w, Conn *c, OutList *o) noexcept nogil:
    """conn_send of a TLS connection. Everything is sealed at once; what the socket does not take waits as ciphertext."""
    cdef size_t staged = 0
    cdef int i, rc = RC_OK
    cdef Buf *b = o.spill.head
    if w.date_s != c.tls.flow_s:             # a second or more since the last write: the peer's window may have shrunk
        if w.date_s > <uint64_t>c.tls.flow_s + 1:
            c.tls.flow = 0
        c.tls.flow_s = <uint32_t>w.date_s
    w.tls.out_used = 0
    for i in range(o.n):
        rc = bytes_out(w, c, <const char *>o.iov[i].iov_base, o.iov[i].iov_len, &staged)
        if rc != RC_OK:
            break
    while rc == RC_OK and b != NULL:
        rc = bytes_out(w, c, buf_bytes(b), b.len, &staged)
        b = b.next
    if rc == RC_OK and staged:
        rc = record_out(w, c, w.tls.stage, staged)
    out_reset(o)
    if rc != RC_OK:
        c.cut = 1
        return RC_FAIL
    return sealed_push(w, c)


cdef void conn_shut(Worker *w, Conn *c) noexcept nogil:
    """Say that nothing more comes: close_notify where there is TLS, then FIN."""
    if c.tls.ssl != NULL and not c.tls.due and not c.broken and not c.cut:
        w.tls.out_used = 0
        tls_bye(&w.tls, &c.tls)
        sealed_push(w, c)
        if c.output.bytes:
            return                           # FIN would overtake it; the connection's end is near anyway
    shutdown(c.fd, SHUT_WR)


cdef void tls_drop(Worker *w, Conn *c) noexcept nogil:
    """The session ends with its connection. A peer that is still there, or has only said that it sends no more, is told, unless the stream is
    cut on purpose."""
    if c.tls.ssl != NULL and not c.tls.due and not c.broken and not c.cut and (not c.ended or c.tls.closed) and c.state != C_LINGER and c.fd >= 0 and c.output.bytes == 0:
        w.tls.out_used = 0
        tls_bye(&w.tls, &c.tls)
        if w.tls.out_used:
            send(c.fd, w.tls.out, w.tls.out_used, MSG_NOSIGNAL)
    if c.tls.ssl != NULL and not c.tls.due and c.side == CONN_CLIENT:
        w.lane.tls.sessions -= 1
    if c.tls.waiting and job_orphan(&w.jobs, w.ep, &c.tls, c.plan, <uint64_t>CONN_ORPHAN << 28):
        c.plan = NULL
    tls_end(&c.tls)
    buf_give(&w.bufs, c.tls.sealed)
    buf_give(&w.bufs, c.tls.who)
    c.tls.sealed = c.tls.who = NULL
    plan_release(c)


# ---- life ---------------------------------------------------------------------------------------------------------

cdef Conn *conn_open(Worker *w, int side, int fd) noexcept nogil:
    """A connection object for fd; NULL (fd still the caller's) when memory is out. Owns fd from here on. -1: there is no socket, and the caller
    says what it is for."""
    cdef Conn *c = <Conn *>slab_take(&w.clients if side == CONN_CLIENT else &w.upstreams)
    if c == NULL:
        return NULL
    c.fd = fd
    c.side = <uint8_t>side
    c.opened_ms = w.now_ms
    c.writable = 1
    timer_init(&c.timer, c.item.slot, TIMER_CLIENT if side == CONN_CLIENT else TIMER_UPSTREAM)
    link_init(&c.idle.link)
    c.idle.owner = c.item.slot
    link_init(&c.run.link)
    c.run.owner = c.item.slot
    w.fds += fd >= 0
    if side == CONN_CLIENT:
        w.lane.worker.connections += fd >= 0
    else:
        w.lane.worker.upstream_connections += 1
    return c


cdef bint conn_register(Worker *w, Conn *c) noexcept nogil:
    """Tell the kernel once, for the life of the connection. What is ready already is reported then, so late is early enough.
    False: it refused, and the connection is broken."""
    cdef epoll_event e
    if c.watched:
        return True
    e.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
    e.data.u64 = <uint64_t>c.item.gen << 32 | <uint64_t>c.side << 28 | c.item.slot
    c.watched = epoll_ctl(w.ep, EPOLL_CTL_ADD, c.fd, &e) == 0
    c.broken = c.broken or not c.watched
    return c.watched


cdef bint conn_watch(Worker *w, Conn *c) noexcept nogil:
    """Register a client connection that went without; whoever waits for it arms its timer."""
    if c.watched:
        return True
    conn_arm(w, c, w.now_ms + NEVER_MS)
    return conn_register(w, c)


cdef void conn_close(Worker *w, Conn *c) noexcept nogil:
    """Close the socket and give everything back that the connection itself holds. Closing twice is harmless."""
    if not c.item.live:
        return
    tls_drop(w, c)
    conn_move(w, c, C_FREE)
    timer_cancel(&w.wheel, &c.timer)
    link_drop(&c.idle.link)
    link_drop(&c.run.link)
    if c.fd >= 0:
        close(c.fd)                          # leaves epoll by itself
        w.fds -= 1
    buf_give(&w.bufs, c.input)
    c.input = NULL
    queue_clear(&w.bufs, &c.output)
    if c.side == CONN_CLIENT:
        if c.counted:
            client_leave(w.segment, w.lane, c.peer, c.family)
        w.lane.worker.connections -= c.fd >= 0
        slab_give(&w.clients, c)
    else:
        w.lane.worker.upstream_connections -= 1
        slab_give(&w.upstreams, c)


cdef void conn_again(Worker *w, Conn *c) noexcept nogil:
    """Look at this client connection once more before the turn ends."""
    link_drop(&c.run.link)
    link_append(&w.runnable, &c.run.link)


cdef void worker_look(Worker *w, uint64_t within_ms) noexcept nogil:
    """Have the tick look at what comes without an event."""
    if w.tick.due_ms == 0 or w.tick.due_ms > w.now_ms + within_ms:
        timer_arm(&w.wheel, &w.tick, w.now_ms + within_ms)


cdef void conn_arm(Worker *w, Conn *c, uint64_t due_ms) noexcept nogil:
    timer_arm(&w.wheel, &c.timer, due_ms)


def edges() -> dict[str, list[str]]:
    """The legal moves of a connection, for tests and pictures."""
    names = ["free", "idle", "head", "busy", "linger", "connecting", "ready", "pooled"]
    return {a: [b for k, b in enumerate(names) if LEGAL[i] >> k & 1] for i, a in enumerate(names)}
