"""Connections made ahead of need. Whoever sees that an endpoint has fewer idle ones than pool.min_idle asks for a look by the tick; a look
opens a few at a time, and after a failure waits ever longer. Requests come first: nothing is opened while some of them wait, nor in the
last place of a pool that another worker asks for."""
from libc.stdint cimport uint32_t, uint64_t

from gwcore._speedups.conn cimport LOOK_WARM_MS, conn_arm, random_next, worker_look
from gwcore._speedups.connect cimport QUIET, connect_result, connect_start, connect_up, upstream_close, upstream_keep, upstream_unasked
from gwcore._speedups.types cimport RC_AGAIN, RC_FAIL, link_drop, link_push
from gwcore._speedups.upstream cimport Endpoint, endpoint_drained, endpoint_short
from gwcore.pool cimport CLOSE_ERROR, CLOSE_TIMEOUT, pool_has_place

cdef enum:
    WARM_A_LOOK = 8          # opened at once, of one endpoint
    FULL_MS = 500            # until a full pool is looked at again
    FAILED_MS = 250          # after the first failure; doubled by each that follows
    FAILED_MOST = 7          # times
    PEACE_MS = 5000          # so long after the wait without a failure, and the next one counts as the first
    SPURNED_MS = 1000


cdef uint64_t spread(Worker *w, uint64_t ms) noexcept nogil:
    """From half of it to one and a half, so that workers and gateways do not come in step."""
    return ms // 2 + random_next(w) % (ms + 1)


cdef void warm_later(Worker *w, Endpoint *e, uint64_t ms) noexcept nogil:
    e.warm_due_ms = w.now_ms + spread(w, ms)
    worker_look(w, e.warm_due_ms - w.now_ms)


cdef void warm_failed(Worker *w, Endpoint *e) noexcept nogil:
    """One connection failed. Those that were begun together fail together, and count once."""
    if e.warm_failures and w.now_ms - e.warm_failed_ms < FAILED_MS // 2:
        return
    if e.other_len:
        e.other_first = not e.other_first
    if w.now_ms - e.warm_failed_ms > PEACE_MS + (<uint64_t>FAILED_MS << e.warm_failures):
        e.warm_failures = 0
    e.warm_failed_ms = w.now_ms
    warm_later(w, e, <uint64_t>FAILED_MS << e.warm_failures)
    if e.warm_failures < FAILED_MOST:
        e.warm_failures += 1


cdef void warm_open(Worker *w, Upstream *u, Endpoint *e) noexcept nogil:
    cdef Conn *c
    cdef int reason = 0, _i
    for _i in range(WARM_A_LOOK):
        if not endpoint_short(e):
            return
        if u.queue.n or not pool_has_place(&e.pool) or w.fds + 1 >= w.fd_limit:
            warm_later(w, e, FULL_MS)
            return
        c = connect_start(w, e, e.other_first, 0, NULL, &reason)
        if c == NULL:
            warm_failed(w, e)
            return
        c.pooled.requests = 0
        conn_arm(w, c, w.now_ms + u.connect_ms)
        if c.writable:
            warm_up(w, c)
    if endpoint_short(e):
        warm_later(w, e, LOOK_WARM_MS)


cdef void warm_look(Worker *w, Upstream *u) noexcept nogil:
    """Open what is missing, where it is due."""
    cdef Endpoint *e
    cdef uint32_t i
    if w.draining:
        return
    for i in range(u.n):
        e = u.endpoints[i]
        if not endpoint_short(e) or e.weight == 0 or e.sockaddr_len == 0 or endpoint_drained(e):
            continue
        if w.now_ms < e.warm_due_ms:
            worker_look(w, e.warm_due_ms - w.now_ms)
        else:
            warm_open(w, u, e)


cdef void warm_up(Worker *w, Conn *c) noexcept nogil:
    """A connection nobody waits for is up."""
    cdef Endpoint *e = <Endpoint *>c.owner
    cdef int why
    connect_up(w, c)
    why = upstream_unasked(w, c)
    if why != QUIET:
        upstream_close(w, c, why)
        warm_failed(w, e)
    elif upstream_keep(w, c) and e.upstream.queue.n:
        link_drop(&e.upstream.serve)
        link_push(&w.serve, &e.upstream.serve)


cdef void warm_event(Worker *w, Conn *c) noexcept nogil:
    """The kernel spoke of a connection being made ahead of need."""
    cdef Endpoint *e = <Endpoint *>c.owner
    cdef int reason = 0, rc = connect_result(w, c, &reason)
    if rc == RC_FAIL:
        upstream_close(w, c, CLOSE_ERROR)
        warm_failed(w, e)
    elif rc != RC_AGAIN:
        warm_up(w, c)


cdef void warm_timeout(Worker *w, Conn *c) noexcept nogil:
    cdef Endpoint *e = <Endpoint *>c.owner
    upstream_close(w, c, CLOSE_TIMEOUT)
    warm_failed(w, e)


cdef void warm_peer_closed(Worker *w, Conn *c) noexcept nogil:
    """The peer ended an idle connection. One that was never used, and not for long: it does not want them, so it gets no new ones at once."""
    if c.pooled.requests == 0 and w.now_ms - c.pooled.used_ms < SPURNED_MS:
        warm_failed(w, <Endpoint *>c.owner)
