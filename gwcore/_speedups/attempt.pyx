"""Attempts. The order: admission, the upstream's permit, candidates with a free place, balance, the endpoint's permit, reuse or connect. Who finds no
place waits in the upstream's queue (queueing) and holds nothing meanwhile."""
from libc.stdint cimport uint32_t, uint64_t

from gwcore._speedups.admission cimport admission_take
from gwcore._speedups.conn cimport C_READY, LOOK_WARM_MS, Conn, Worker, conn_arm, conn_move, random_next, worker_look
from gwcore._speedups.connect cimport connect_result, connect_start, connect_up, upstream_close, upstream_keep
from gwcore._speedups.deadline cimport try_due
from gwcore._speedups.permit cimport permit_cancel, permit_endpoint, permit_endpoint_fail, permit_move, permit_take
from gwcore._speedups.reasons cimport R_DNS_FAILED, R_NO_ENDPOINT
from gwcore._speedups.slab cimport slab_at
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport RC_AGAIN, RC_FAIL, RC_OK, link_drop, link_push
from gwcore._speedups.upstream cimport Endpoint, Upstream, balance_pick, endpoint_drained, endpoint_short
from gwcore.pool cimport (
    CLOSE_ABORTED, CLOSE_EVICTED, POOL_CONNECT, POOL_EVICT, POOL_FULL, PoolCore, PoolItem, pool_acquire, pool_at_cap,
    pool_has_place, pool_pressed,
)


cdef void idle_give_way(Worker *w, Upstream *u) noexcept nogil:
    """Close an idle connection of each full pool for which another worker waits."""
    cdef PoolCore *p
    cdef uint32_t i
    if u.queue.n:
        return
    for i in range(u.n):
        p = &u.endpoints[i].pool
        if p.n_idle and pool_at_cap(p) and pool_pressed(p):
            upstream_close(w, <Conn *>conn_at(w, (<PoolItem *>p.idle.prev).owner), CLOSE_EVICTED)


cdef bint idle_spare(Worker *w, Upstream *u) noexcept nogil:
    """Close the connection that has been idle longest, of the first endpoint that has one, for its descriptor. False: none is idle."""
    cdef PoolCore *p
    cdef uint32_t i
    for i in range(u.n):
        p = &u.endpoints[i].pool
        if p.n_idle:
            upstream_close(w, <Conn *>conn_at(w, (<PoolItem *>p.idle.prev).owner), CLOSE_EVICTED)
            return True
    return False


cdef bint idle_at_cap(const Upstream *u) noexcept nogil:
    """Does this worker hold an idle connection that others may come to want?"""
    cdef uint32_t i
    for i in range(u.n):
        if u.endpoints[i].pool.n_idle and pool_at_cap(&u.endpoints[i].pool):
            return True
    return False


# ---- connecting

cdef enum:
    RACE_MS = 250            # so long one address of a name has for itself (RFC 8305 5)
    CANDIDATES = 4           # endpoints asked for a permit


cdef int attempt_open(Worker *w, Exchange *x) noexcept nogil:
    """Connect to x.endpoint. RC_OK: it is up already. RC_AGAIN: wait for it. RC_FAIL: x.reason, and nothing is held."""
    cdef Endpoint *e = x.endpoint
    cdef int reason = 0
    x.connect_us = w.now_us
    x.raced = e.other_len == 0 and e.group == 0
    x.reason = 0
    x.up = connect_start(w, e, e.other_first, x.pool_key, x, &reason)
    if x.up == NULL:
        x.rival = race_start(w, x)
        if x.rival == NULL:
            e.in_flight -= 1
            x.reason = <unsigned short>reason
            return RC_FAIL
        rival_take(w, x, reason)
    if x.up.writable:
        return attempt_up(w, x)
    conn_arm(w, x.up, connect_due(x) if x.raced or x.upstream.connect_ms <= RACE_MS else try_due(x, w.now_ms + RACE_MS))
    return RC_AGAIN


cdef uint64_t connect_due(const Exchange *x) noexcept nogil:
    return try_due(x, x.connect_us // 1000 + x.upstream.connect_ms)


cdef int attempt_up(Worker *w, Exchange *x) noexcept nogil:
    connect_up(w, x.up)
    x.connecting_us += <uint32_t>(w.now_us - x.connect_us)
    x.reused = 0
    x.reason = 0
    return RC_OK


cdef int attempt_connected(Worker *w, Exchange *x, Conn *c) noexcept nogil:
    """The kernel spoke about a connecting socket of x. RC_OK: x.up is up. RC_AGAIN: not yet. RC_FAIL: x.reason."""
    cdef int reason = 0, rc = connect_result(w, c, &reason)
    if rc == RC_AGAIN:
        return rc
    if rc == RC_OK:
        if c == x.rival:
            rival_take(w, x, 0)
        elif x.rival != NULL:
            rival_drop(w, x)
        return attempt_up(w, x)
    if c == x.rival:
        rival_drop(w, x)
        return RC_AGAIN
    if x.rival == NULL:
        x.rival = race_start(w, x)
    if x.rival != NULL:
        rival_take(w, x, reason)
        return RC_AGAIN
    x.reason = <unsigned short>reason
    return RC_FAIL


cdef bint attempt_late(Worker *w, Exchange *x) noexcept nogil:
    """The timer of a connecting socket. True: there is time left, and another address of the name is tried beside it, if it has one."""
    if w.now_ms >= connect_due(x):
        return False
    x.rival = race_start(w, x)
    conn_arm(w, x.up, connect_due(x))
    return True


cdef Conn *race_start(Worker *w, Exchange *x) noexcept nogil:
    """Begin a connection to the next address of the same name, the other family first. NULL: there is none that was not tried, or no place."""
    cdef Endpoint *e = x.endpoint
    cdef Endpoint *next = NULL
    cdef Conn *c
    cdef uint32_t i, at = 0
    cdef int reason = 0
    if x.raced:
        return NULL
    x.raced = 1
    if e.other_len:
        next = e
    else:
        while at < x.upstream.n and x.upstream.endpoints[at] != e:
            at += 1
        for i in range(1, x.upstream.n):
            next = x.upstream.endpoints[(at + i) % x.upstream.n]
            if next.group == e.group and next != e and next.weight:
                break
            next = NULL
    if next == NULL or next.sockaddr_len == 0 or not pool_has_place(&next.pool) or w.fds >= w.fd_limit:
        return NULL
    c = connect_start(w, next, next == e and not e.other_first, x.pool_key, x, &reason)
    if c == NULL:
        return NULL
    if next != e:
        next.in_flight += 1
    x.upstream.cell.raced += 1
    return c


cdef void rival_drop(Worker *w, Exchange *x) noexcept nogil:
    """The rival lost, failed, or is not needed any more."""
    cdef Conn *c = x.rival
    x.rival = NULL
    if c.owner != x.endpoint:
        (<Endpoint *>c.owner).in_flight -= 1
    upstream_close(w, c, CLOSE_ABORTED)


cdef void rival_take(Worker *w, Exchange *x, int reason) noexcept nogil:
    """The rival takes the place of x.up, which is closed if it still is there. reason: why x.up failed; 0 = it was only slower."""
    cdef Conn *first = x.up
    x.up = x.rival
    x.rival = NULL
    if x.up.owner != x.endpoint:
        x.endpoint.in_flight -= 1
        x.endpoint.since_ms = w.now_ms               # the address that lost begins anew, with a tenth of its weight
        permit_endpoint_fail(w, x, reason)
        x.endpoint = <Endpoint *>x.up.owner
        permit_move(w, x, x.endpoint)
    if first != NULL:
        upstream_close(w, first, CLOSE_ABORTED)
    conn_arm(w, x.up, connect_due(x))


cdef int attempt_take(Worker *w, Exchange *x) noexcept nogil:
    """Get a connection. RC_OK: x.up is ready. RC_AGAIN: it is connecting. RC_FAIL with x.reason; reason 0 = no place free, queue."""
    cdef Upstream *u = x.upstream
    cdef Endpoint *e
    cdef PoolItem *item = NULL
    cdef Conn *c
    cdef int verdict
    cdef uint32_t i, asked, usable = 0, named = 0
    if admission_take(w, x) != RC_OK:
        return RC_FAIL
    x.reason = permit_take(w, x)
    if x.reason:
        return RC_FAIL
    for asked in range(CANDIDATES):
        e = balance_pick(w, u, x.hash, x.endpoint if x.attempts and asked < CANDIDATES // 2 else NULL, w.now_ms)
        if e == NULL or permit_endpoint(w, x, e):
            break                                    # the last one is taken though its breaker refuses: the upstream's has agreed
    if e == NULL:
        permit_cancel(w, x)
        for i in range(u.n):
            if u.endpoints[i].weight and not endpoint_drained(u.endpoints[i]):
                named += 1
                usable += u.endpoints[i].sockaddr_len != 0
        if usable == 0:
            x.reason = R_DNS_FAILED if named else R_NO_ENDPOINT
        return RC_FAIL
    verdict = pool_acquire(&e.pool, &item, x.pool_key, w.now_ms)
    if verdict == POOL_FULL:
        permit_cancel(w, x)
        return RC_FAIL
    if verdict == POOL_EVICT:
        upstream_close(w, <Conn *>conn_at(w, item.owner), CLOSE_EVICTED)
        verdict = POOL_CONNECT
    u.cell.firsts += x.attempts == 0
    x.attempts += 1
    x.try_due_ms = w.now_ms + u.per_try_ms if u.per_try_ms else 0
    x.endpoint = e
    e.in_flight += 1
    if verdict == POOL_CONNECT:
        return attempt_open(w, x)
    c = <Conn *>conn_at(w, item.owner)
    conn_move(w, c, C_READY)
    c.exchange = x
    x.up = c
    x.reused = 1
    u.cell.reuses += 1
    u.cell.idle -= 1
    u.cell.in_use += 1
    if endpoint_short(e):
        worker_look(w, LOOK_WARM_MS + random_next(w) % LOOK_WARM_MS)
    return RC_OK


cdef void *conn_at(Worker *w, uint32_t slot) noexcept nogil:
    return slab_at(&w.upstreams, slot)


cdef void attempt_release(Worker *w, Exchange *x, bint reusable, int why) noexcept nogil:
    """Give the connection back: to its pool when it may be reused, else it is closed as `why`. Releasing twice is harmless."""
    cdef Conn *c = x.up
    if c == NULL:
        return
    permit_cancel(w, x)                          # whatever has no verdict yet gets none
    if x.rival != NULL:
        rival_drop(w, x)
    x.up = NULL
    x.endpoint.in_flight -= 1
    if x.upstream.queue.n:                       # the turn's end serves the queue: never from inside another exchange
        link_drop(&x.upstream.serve)
        link_push(&w.serve, &x.upstream.serve)
    if reusable:
        upstream_keep(w, c)
    else:
        upstream_close(w, c, why)
