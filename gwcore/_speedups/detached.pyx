"""Exchanges without a client: an answer that is fetched for those who ask later, or whose client was answered otherwise meanwhile.

Such an exchange has a client connection like every other, but one without a socket: what is sent to it is dropped, nothing comes from it, and it
closes when its answer is complete. So permits, places, retries and time limits are those of any request. It is logged as `detached`, and
counted by itself: it was nobody's request."""
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from gwcore._speedups.buffer cimport BUF_HEAD, BUF_SMALL, buf_bytes, buf_take
from gwcore._speedups.conn cimport (
    C_BUSY, C_IDLE, CONN_CLIENT, NEVER_MS, SINK_LEFT, SINK_REFRESH, Conn, Worker, conn_arm, conn_close, conn_move, conn_open, conn_register,
)
from gwcore._speedups.ends cimport exchange_end
from gwcore._speedups.head cimport Head
from gwcore._speedups.proxy cimport begin_proxy, exchange_new
from gwcore._speedups.slab cimport slab_give, slab_take
from gwcore._speedups.story cimport REQ_STREAM, X_ANSWERING


cdef Conn *sink_open(Worker *w, const Conn *like, int what) noexcept nogil:
    """A client connection without a socket, from the same client as another. NULL: no memory."""
    cdef Conn *s = conn_open(w, CONN_CLIENT, -1)
    if s == NULL:
        return NULL
    s.sink = <uint8_t>what
    s.sealed = like.sealed or like.tls.ssl != NULL
    s.family, s.port, s.trusted, s.listener = like.family, like.port, like.trusted, like.listener
    memcpy(s.peer, like.peer, 16)
    s.watched = 1
    s.writable = 0
    s.ended = 2
    conn_move(w, s, C_IDLE)
    return s


cdef bint note_copy(Worker *w, Exchange *to, const Exchange *x) noexcept nogil:
    to.note = buf_take(&w.bufs, BUF_SMALL - BUF_HEAD)
    if to.note == NULL:
        return False
    memcpy(buf_bytes(to.note), buf_bytes(x.note), x.note_path_len + x.note_id_len)
    to.note_path_len, to.note_id_len = x.note_path_len, x.note_id_len
    return True


cdef void exchange_like(Worker *w, Exchange *y, const Exchange *x, Conn *client) noexcept nogil:
    """Make y, which was just taken, the same request as x, on another connection of its client, with nothing tried or sent."""
    y.client, y.plan, y.route, y.upstream = client, x.plan, x.route, x.upstream
    y.plan.refs += 1
    y.origin = x.origin
    y.start_us = x.start_us
    y.method, y.http10, y.te_trailers = x.method, x.http10, x.te_trailers
    y.tier, y.early = x.tier, x.early
    w.lane.worker.exchanges += 1


cdef Exchange *detached_begin(Worker *w, Exchange *x, const char *path, size_t path_len) noexcept nogil:
    """Send the request that x began with once more, for nobody. Its head, without a body, is still in w.request; path is what the router saw.
    NULL: it could not begin, or is over already. What of the head is to reach the upstream is marked in it, so x itself is not proxied any more."""
    cdef Head *h = &w.request
    cdef Conn *s
    cdef Exchange *d
    if x.request_body == REQ_STREAM:
        return NULL
    s = sink_open(w, x.client, SINK_REFRESH)
    if s == NULL:
        return NULL
    d = exchange_new(w, s, h)
    if d == NULL or not note_copy(w, d, x):
        if d != NULL:
            exchange_end(w, d)
        conn_close(w, s)
        return NULL
    d.keep_alive = 0
    d.early = x.early
    d.route, d.tier, d.body_limit = x.route, x.tier, x.body_limit
    s.tls.who = x.client.tls.who             # lent: the head is written before begin_proxy returns
    begin_proxy(w, d, h.base, h.size, path, path_len)
    if not s.item.live:
        return NULL
    s.tls.who = NULL
    return d


cdef Exchange *detached_leave(Worker *w, Exchange *x) noexcept nogil:
    """Part x, which waits for its upstream, from its client: x goes on for nobody, and its client has a new exchange, returned, that is to be
    answered. NULL: nothing has changed, for a part of the request has still to come, or an answer went out, or
    it is to be compensated, for which x would have nothing left."""
    cdef Conn *c = x.client
    cdef Conn *s
    cdef Exchange *y
    if x.request_body == REQ_STREAM or x.upgrade or x.phase >= X_ANSWERING or c.sink or x.compensates:
        return NULL
    s = sink_open(w, c, SINK_LEFT)
    if s == NULL:
        return NULL
    y = <Exchange *>slab_take(&w.exchanges)
    if y == NULL or not note_copy(w, y, x):
        if y != NULL:
            slab_give(&w.exchanges, y)
        conn_close(w, s)
        return NULL
    exchange_like(w, y, x, c)
    y.bytes_in, y.keep_alive, y.body_limit = x.bytes_in, x.keep_alive, x.body_limit
    y.ladder, y.kept = x.ladder, x.kept
    y.fault, y.drill, y.drill_serial = x.fault, x.drill, x.drill_serial
    x.ladder, x.kept = NULL, NULL
    c.exchange = y
    conn_move(w, s, C_BUSY)
    s.exchange = x
    x.client, x.keep_alive = s, 0
    x.bytes_in = 0
    conn_arm(w, s, c.timer.due_ms if c.timer.due_ms else w.now_ms + NEVER_MS)       # a wait in a queue or between attempts goes on
    conn_arm(w, c, w.now_ms + NEVER_MS)
    conn_register(w, c)                      # where that fails, its answer will
    return y
