"""Connection pools: who may reuse, who must connect, who waits. Last in, first out, so that a falling load leaves the oldest idle
connections to expire. The nogil core is what the data plane runs."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from gwcore._speedups.shm cimport gw_atomic_add, gw_atomic_load, gw_atomic_store
from gwcore._speedups.types cimport link_append, link_drop, link_empty, link_init, link_push

# from FREE, OPENING, BUSY, IDLE: the legal next states
cdef uint8_t[4] LEGAL
LEGAL[:] = [1 << ITEM_OPENING, 1 << ITEM_BUSY | 1 << ITEM_FREE, 1 << ITEM_IDLE | 1 << ITEM_FREE, 1 << ITEM_BUSY | 1 << ITEM_FREE]


cdef void pool_init(PoolCore *p) noexcept nogil:
    memset(p, 0, sizeof(PoolCore))
    link_init(&p.idle)


cdef void item_init(PoolItem *item, PoolCore *p, uint32_t owner) noexcept nogil:
    memset(item, 0, sizeof(PoolItem))
    link_init(&item.link)
    item.pool = p
    item.owner = owner


cdef void count(PoolCore *p, uint32_t state, int by) noexcept nogil:
    if state == ITEM_OPENING:
        p.n_opening += by
    elif state == ITEM_BUSY:
        p.n_busy += by
    elif state == ITEM_IDLE:
        p.n_idle += by


cdef bint pool_move(PoolItem *item, uint32_t to) noexcept nogil:
    """The only writer of an item's state."""
    cdef PoolCore *p = item.pool
    if not LEGAL[item.state] >> to & 1:
        p.illegal += 1
        return False
    count(p, item.state, -1)
    count(p, to, 1)
    link_drop(&item.link)
    if to == ITEM_IDLE:
        link_push(&p.idle, &item.link)
    item.state = to
    return True


cdef int pool_acquire(PoolCore *p, PoolItem **out, uint64_t now_ms) noexcept nogil:
    """POOL_REUSE: out[0] is yours and busy. POOL_CONNECT: open one (pool_opening takes the place). POOL_FULL: wait."""
    cdef PoolItem *item
    cdef uint32_t total
    if not link_empty(&p.idle):
        item = <PoolItem *>p.idle.next
        pool_move(item, ITEM_BUSY)
        item.requests += 1
        p.reuses += 1
        out[0] = item
        return POOL_REUSE
    if p.max_connections:
        total = gw_atomic_load(p.shared_open) if p.shared_open != NULL else pool_open(p)
        if total >= p.max_connections:
            return POOL_FULL
    return POOL_CONNECT


cdef void pool_opening(PoolCore *p, PoolItem *item, uint32_t owner, uint64_t now_ms, uint32_t jitter) noexcept nogil:
    """A connection is being opened for item; it holds a place from now on. jitter (any number) spreads the age limit by 10 %."""
    item_init(item, p, owner)
    pool_move(item, ITEM_OPENING)
    p.opens += 1
    item.requests = 1
    item.retire_ms = now_ms + p.max_age_ms * (900 + jitter % 201) // 1000 if p.max_age_ms else <uint64_t>-1
    if p.shared_open != NULL:
        gw_atomic_add(p.shared_open, 1)
        p.own_open[0] += 1


cdef void pool_opened(PoolItem *item) noexcept nogil:
    pool_move(item, ITEM_BUSY)


cdef int pool_release(PoolItem *item, uint64_t now_ms) noexcept nogil:
    """-1: kept idle. Otherwise the CloseReason with which the caller must close it (and then call pool_closed)."""
    cdef PoolCore *p = item.pool
    cdef uint32_t wanted
    if p.draining:
        return CLOSE_DRAIN
    if p.max_requests and item.requests >= p.max_requests:
        return CLOSE_MAX_REQUESTS
    if now_ms >= item.retire_ms:
        return CLOSE_MAX_AGE
    if p.n_idle >= p.max_idle:
        return CLOSE_EVICTED
    if p.wanted != NULL:
        wanted = gw_atomic_load(p.wanted)
        if wanted:
            gw_atomic_store(p.wanted, 0)
            if wanted != p.worker:           # another worker waits for a place: let it have this one
                return CLOSE_EVICTED
    item.used_ms = now_ms
    pool_move(item, ITEM_IDLE)
    return -1


cdef void pool_closed(PoolItem *item, int why) noexcept nogil:
    """The connection is gone, from whatever state. Calling twice is harmless."""
    if item.pool == NULL or item.state == ITEM_FREE:
        return
    pool_move(item, ITEM_FREE)
    item.pool.closed[why] += 1
    if item.pool.shared_open != NULL:
        gw_atomic_add(item.pool.shared_open, -1)
        item.pool.own_open[0] -= 1


cdef PoolItem *pool_oldest(PoolCore *p, uint64_t now_ms) noexcept nogil:
    """The oldest idle item when it idled too long (or the pool drains); NULL when none did. O(1): the list is in order of age."""
    cdef PoolItem *item
    if link_empty(&p.idle):
        return NULL
    item = <PoolItem *>p.idle.prev
    if p.draining or now_ms >= item.used_ms + p.idle_ms or now_ms >= item.retire_ms:
        return item
    return NULL


cdef void waiters_init(WaitQueue *q, uint32_t size) noexcept nogil:
    link_init(&q.head)
    q.n = 0
    q.size = size


cdef bint waiters_push(WaitQueue *q, Waiter *w, uint64_t now_ms, uint64_t timeout_ms) noexcept nogil:
    """Join the queue's end; False when it is full."""
    if q.n >= q.size:
        return False
    link_append(&q.head, &w.link)
    w.since_ms = now_ms
    w.deadline_ms = now_ms + timeout_ms
    q.n += 1
    return True


cdef bint waiters_drop(WaitQueue *q, Waiter *w) noexcept nogil:
    """Leave the queue; False when it was not in it, so leaving twice is harmless."""
    if w.deadline_ms == 0:
        return False
    link_drop(&w.link)
    w.deadline_ms = 0
    q.n -= 1
    return True
