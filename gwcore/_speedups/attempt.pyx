"""Attempts. The order of DECISIONS: candidates with a free place, balance, reuse or connect; who finds none waits in the upstream's
queue and holds nothing meanwhile."""
from libc.stdint cimport uint32_t

from gwcore._speedups.conn cimport (
    CONN_UPSTREAM, C_CONNECTING, C_POOLED, C_READY, LOOK_IDLE_MS, LOOK_WAIT_MS, Conn, Worker, conn_arm, conn_close, conn_move, conn_open,
    conn_register, random_next, worker_look,
)
from gwcore._speedups.reasons cimport (
    R_CONNECT_FAILED, R_CONNECT_REFUSED, R_CONNECT_TIMEOUT, R_DNS_FAILED, R_NO_ENDPOINT, R_QUEUE_FULL,
)
from gwcore._speedups.slab cimport slab_at
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.sys cimport (
    AF_UNIX, EAGAIN, ECONNREFUSED, EINPROGRESS, ETIMEDOUT, IPPROTO_TCP, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, SO_ERROR,
    TCP_NODELAY, close, connect, errno, getsockopt, setsockopt, sockaddr, socket, socklen_t,
)
from gwcore._speedups.types cimport RC_AGAIN, RC_FAIL, RC_OK, link_drop, link_empty, link_push
from gwcore._speedups.upstream cimport Endpoint, Upstream, balance_pick, endpoint_has_room
from gwcore.pool cimport (
    CLOSE_EVICTED, POOL_CONNECT, POOL_EVICT, POOL_FULL, PoolCore, PoolItem, Waiter, pool_acquire, pool_ask, pool_at_cap,
    pool_closed, pool_opened, pool_opening, pool_pressed, pool_release, pool_unask,
    waiters_drop, waiters_push,
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
            pooled_close(w, <Conn *>conn_at(w, (<PoolItem *>p.idle.prev).owner), CLOSE_EVICTED)


cdef bint idle_at_cap(const Upstream *u) noexcept nogil:
    """Does this worker hold an idle connection that others may come to want?"""
    cdef uint32_t i
    for i in range(u.n):
        if u.endpoints[i].pool.n_idle and pool_at_cap(&u.endpoints[i].pool):
            return True
    return False


cdef int connect_reason(int error) noexcept nogil:
    if error == ECONNREFUSED:
        return R_CONNECT_REFUSED
    return R_CONNECT_TIMEOUT if error == ETIMEDOUT else R_CONNECT_FAILED


cdef int open_connection(Worker *w, Exchange *x, Endpoint *e) noexcept nogil:
    """Start a connection to e. RC_OK: it is up already. RC_AGAIN: wait for it. RC_FAIL: x.reason."""
    cdef int family = (<sockaddr *>e.sockaddr).sa_family, one = 1, fd, rc
    cdef Conn *c
    x.reason = R_CONNECT_FAILED
    fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        return RC_FAIL
    c = conn_open(w, CONN_UPSTREAM, fd)
    if c == NULL:
        close(fd)
        return RC_FAIL
    conn_move(w, c, C_CONNECTING)
    c.owner = e
    c.exchange = x
    x.up = c
    x.connect_us = w.now_us
    pool_opening(&e.pool, &c.pooled, c.item.slot, x.pool_key, w.now_ms, <uint32_t>(random_next(w) >> 40))
    x.upstream.cell.opens += 1
    x.upstream.cell.connecting += 1
    if family != AF_UNIX:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    rc = connect(fd, <sockaddr *>e.sockaddr, e.sockaddr_len)
    if rc != 0 and errno != EINPROGRESS:
        x.reason = R_CONNECT_REFUSED if errno == EAGAIN else connect_reason(errno)
        return RC_FAIL
    if not conn_register(w, c):
        return RC_FAIL
    if rc == 0:
        return attempt_up(w, x)
    c.writable = 0
    conn_arm(w, c, w.now_ms + x.upstream.connect_ms)
    x.reason = 0
    return RC_AGAIN


cdef int attempt_up(Worker *w, Exchange *x) noexcept nogil:
    conn_move(w, x.up, C_READY)
    pool_opened(&x.up.pooled)
    x.upstream.cell.connecting -= 1
    x.upstream.cell.in_use += 1
    x.connecting_us += <uint32_t>(w.now_us - x.connect_us)
    x.up.writable = 1
    x.reused = 0
    x.reason = 0
    return RC_OK


cdef int attempt_connected(Worker *w, Exchange *x) noexcept nogil:
    """The kernel spoke about a connecting socket. RC_OK: it is up. RC_AGAIN: not yet. RC_FAIL: x.reason."""
    cdef int error = 0
    cdef socklen_t size = sizeof(error)
    if getsockopt(x.up.fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0:
        error = errno
    if error:
        x.reason = connect_reason(error)
        return RC_FAIL
    if not x.up.writable:
        return RC_AGAIN
    return attempt_up(w, x)


cdef int attempt_take(Worker *w, Exchange *x) noexcept nogil:
    """Get a connection. RC_OK: x.up is ready. RC_AGAIN: it is connecting. RC_FAIL with x.reason; reason 0 = no place free, queue."""
    cdef Upstream *u = x.upstream
    cdef Endpoint *e = balance_pick(w, u, x.hash, x.endpoint if x.attempts else NULL, w.now_ms)
    cdef PoolItem *item = NULL
    cdef Conn *c
    cdef int verdict
    cdef uint32_t i, usable = 0, named = 0
    x.reason = 0
    if e == NULL:
        for i in range(u.n):
            if u.endpoints[i].weight:
                named += 1
                usable += u.endpoints[i].sockaddr_len != 0
        if usable == 0:
            x.reason = R_DNS_FAILED if named else R_NO_ENDPOINT
        return RC_FAIL
    verdict = pool_acquire(&e.pool, &item, x.pool_key, w.now_ms)
    if verdict == POOL_FULL:
        return RC_FAIL
    if verdict == POOL_EVICT:
        pooled_close(w, <Conn *>conn_at(w, item.owner), CLOSE_EVICTED)
        verdict = POOL_CONNECT
    x.attempts += 1
    x.endpoint = e
    e.in_flight += 1
    if verdict == POOL_CONNECT:
        verdict = open_connection(w, x, e)
        if x.up == NULL:                             # not even a socket: nothing that a release would give back
            e.in_flight -= 1
        return verdict
    c = <Conn *>conn_at(w, item.owner)
    conn_move(w, c, C_READY)
    c.exchange = x
    x.up = c
    x.reused = 1
    u.cell.reuses += 1
    u.cell.idle -= 1
    u.cell.in_use += 1
    return RC_OK


cdef void *conn_at(Worker *w, uint32_t slot) noexcept nogil:
    return slab_at(&w.upstreams, slot)


cdef void attempt_release(Worker *w, Exchange *x, bint reusable, int why) noexcept nogil:
    """Give the connection back: to its pool when it may be reused, else it is closed as `why`. Releasing twice is harmless."""
    cdef Conn *c = x.up
    cdef int verdict = why
    if c == NULL:
        return
    x.up = NULL
    c.exchange = NULL
    x.endpoint.in_flight -= 1
    if x.upstream.queue.n:                       # the turn's end serves the queue: never from inside another exchange
        link_drop(&x.upstream.serve)
        link_push(&w.serve, &x.upstream.serve)
    if c.state == C_CONNECTING:
        x.upstream.cell.connecting -= 1
    else:
        x.upstream.cell.in_use -= 1
    if reusable:
        verdict = pool_release(&c.pooled, w.now_ms)
        if verdict < 0:
            conn_move(w, c, C_POOLED)
            x.upstream.cell.idle += 1
            conn_arm(w, c, w.now_ms + x.endpoint.pool.idle_ms)
            if pool_at_cap(&x.endpoint.pool):
                worker_look(w, LOOK_IDLE_MS)
            return
    x.upstream.cell.closed[verdict] += 1
    pool_closed(&c.pooled, verdict)
    conn_close(w, c)


cdef void pooled_close(Worker *w, Conn *c, int why) noexcept nogil:
    """Close an idle connection of a pool."""
    cdef Endpoint *e = <Endpoint *>c.owner
    if c.state == C_POOLED:
        e.upstream.cell.idle -= 1
        e.upstream.cell.closed[why] += 1
    pool_closed(&c.pooled, why)
    conn_close(w, c)


cdef void ask_for_place(Upstream *u) noexcept nogil:
    cdef uint32_t i
    for i in range(u.n):
        pool_ask(&u.endpoints[i].pool)


cdef bint attempt_queue(Worker *w, Exchange *x) noexcept nogil:
    """Wait for a place; False when the queue is full (x.reason)."""
    if not waiters_push(&x.upstream.queue, &x.waiter, w.now_ms, x.upstream.queue_ms):
        x.reason = R_QUEUE_FULL
        x.upstream.cell.queue_full += 1
        return False
    x.waiter_owner = x.item.slot
    x.queued_us = w.now_us
    if x.queue_deadline_ms:                      # it waited before, and another worker was quicker: its turn and its time stay
        x.waiter.deadline_ms = x.queue_deadline_ms
        link_drop(&x.waiter.link)
        link_push(&x.upstream.queue.head, &x.waiter.link)
    x.queue_deadline_ms = x.waiter.deadline_ms
    x.upstream.cell.waiting += 1
    ask_for_place(x.upstream)
    worker_look(w, LOOK_WAIT_MS)                 # a place that another worker gives up comes without an event
    return True


cdef void attempt_leave_queue(Worker *w, Exchange *x) noexcept nogil:
    cdef uint32_t i
    if x.upstream == NULL or not waiters_drop(&x.upstream.queue, &x.waiter):
        return
    x.upstream.cell.waiting -= 1
    x.queue_us += <uint32_t>(w.now_us - x.queued_us)
    if x.upstream.queue.n == 0:                  # nobody of us waits any more: the others need not make room
        for i in range(x.upstream.n):
            pool_unask(&x.upstream.endpoints[i].pool)


cdef struct WaitingExchange:     # the waiter and what must follow it in an Exchange
    Waiter waiter
    uint32_t owner


cdef Exchange *attempt_next_waiter(Worker *w, Upstream *u) noexcept nogil:
    """The oldest waiter, when some endpoint has room for it (it still stands in the queue); else NULL."""
    cdef uint32_t i
    if link_empty(&u.queue.head):
        return NULL
    for i in range(u.n):
        if endpoint_has_room(u.endpoints[i]):
            return <Exchange *>slab_at(&w.exchanges, (<WaitingExchange *>u.queue.head.next).owner)
    return NULL
