"""Connection pools: who may reuse, who must connect, who waits. Last in, first out, so that a falling load leaves the oldest idle
connections to expire. The nogil core is what the data plane runs; `Pool` is the same for asyncio programs."""
import asyncio
import inspect
import random
import time
from collections import deque

from libc.math cimport fmax, fmin
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from gwcore._speedups.shm cimport gw_atomic_add, gw_atomic_load, gw_atomic_store
from gwcore._speedups.types cimport link_drop, link_empty, link_init, link_push
from gwcore._speedups.waiting cimport Waiter, WaitQueue, waiters_drop, waiters_init, waiters_push

# from FREE, OPENING, BUSY, IDLE: the legal next states
cdef uint8_t[4] LEGAL
LEGAL[:] = [1 << ITEM_OPENING, 1 << ITEM_BUSY | 1 << ITEM_FREE, 1 << ITEM_IDLE | 1 << ITEM_FREE, 1 << ITEM_BUSY | 1 << ITEM_FREE]


cdef void pool_init(PoolCore *p) noexcept nogil:
    memset(p, 0, sizeof(PoolCore))
    link_init(&p.idle)


cdef void item_init(PoolItem *item, PoolCore *p, uint32_t owner) noexcept nogil:
    memset(item, 0, sizeof(PoolItem))
    link_init(&item.link)
    link_init(&item.same)
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
    link_drop(&item.same)
    if to == ITEM_IDLE:
        link_push(&p.idle, &item.link)
        if p.buckets != NULL:
            link_push(&p.buckets[item.key % POOL_BUCKETS], &item.same)
    item.state = to
    return True


cdef bint pool_templates(PoolCore *p) noexcept nogil:
    """From now on an item is reused for its own key only. False when memory is out."""
    cdef int i
    if p.buckets == NULL:
        p.buckets = <Link *>malloc(POOL_BUCKETS * sizeof(Link))
        if p.buckets == NULL:
            return False
        for i in range(POOL_BUCKETS):
            link_init(&p.buckets[i])
    return True


cdef void pool_free(PoolCore *p) noexcept nogil:
    """Free what the pool holds besides its items, of which there are none any more."""
    free(p.buckets)
    p.buckets = NULL


cdef PoolItem *idle_with(PoolCore *p, uint64_t key) noexcept nogil:
    """The idle item used last that a request of this key may reuse."""
    cdef Link *head
    cdef Link *at
    cdef PoolItem *item
    if p.buckets == NULL:
        return <PoolItem *>p.idle.next if not link_empty(&p.idle) else NULL
    head = &p.buckets[key % POOL_BUCKETS]
    at = head.next
    while at != head:
        item = <PoolItem *>(<char *>at - sizeof(Link))       # `same` is the second member
        if item.key == key:
            return item
        at = at.next
    return NULL


cdef bint pool_at_cap(const PoolCore *p) noexcept nogil:
    """Are all connections open that may be, of all workers together?"""
    if p.max_connections == 0:
        return False
    return (gw_atomic_load(p.shared_open) if p.shared_open != NULL else pool_open(p)) >= p.max_connections


cdef bint pool_pressed(const PoolCore *p) noexcept nogil:
    """Does another worker wait for a place?"""
    cdef uint32_t wanted = gw_atomic_load(p.wanted) if p.wanted != NULL else 0
    return wanted != 0 and wanted != p.worker


cdef void pool_ask(PoolCore *p) noexcept nogil:
    """We wait, with less than our share of a full pool: the others may give up a place. Whoever asked before us is not pushed aside."""
    if p.wanted != NULL and gw_atomic_load(p.wanted) == 0 and (p.own_open[0] < p.fair or p.own_open[0] == 0):
        gw_atomic_store(p.wanted, p.worker)


cdef void pool_unask(PoolCore *p) noexcept nogil:
    """We wait no longer."""
    if p.wanted != NULL and gw_atomic_load(p.wanted) == p.worker:
        gw_atomic_store(p.wanted, 0)


cdef bint pool_has_place(const PoolCore *p) noexcept nogil:
    """May one connection more be opened? With its fair share of a cap that all workers have in common, a worker leaves the next place to one that
    waits."""
    if p.max_connections == 0:
        return True
    return not pool_at_cap(p) and not (pool_pressed(p) and p.own_open[0] >= p.fair)


cdef int pool_acquire(PoolCore *p, PoolItem **out, uint64_t key, uint64_t now_ms) noexcept nogil:
    """POOL_REUSE: out[0] is yours and busy. POOL_CONNECT: open one (pool_opening takes the place). POOL_EVICT: the same, after closing
    out[0], an idle one of another template. POOL_FULL: wait."""
    cdef PoolItem *item = idle_with(p, key)
    if item != NULL:
        pool_move(item, ITEM_BUSY)
        item.requests += 1
        p.reuses += 1
        out[0] = item
        return POOL_REUSE
    if pool_has_place(p):
        return POOL_CONNECT
    if link_empty(&p.idle):
        return POOL_FULL
    out[0] = <PoolItem *>p.idle.prev
    return POOL_EVICT


cdef void pool_opening(PoolCore *p, PoolItem *item, uint32_t owner, uint64_t key, uint64_t now_ms, uint32_t jitter) noexcept nogil:
    """A connection is being opened for item; it holds a place from now on. jitter (any number) spreads the age limit by 10 %."""
    item_init(item, p, owner)
    item.key = key
    pool_move(item, ITEM_OPENING)
    p.opens += 1
    item.requests = 1
    item.retire_ms = now_ms + p.max_age_ms * (900 + jitter % 201) // 1000 if p.max_age_ms else <uint64_t>-1
    if p.shared_open != NULL:
        gw_atomic_add(p.shared_open, 1)
        p.own_open[0] += 1
        pool_unask(p)                                # this is what we waited for


cdef void pool_opened(PoolItem *item) noexcept nogil:
    pool_move(item, ITEM_BUSY)


cdef int pool_release(PoolItem *item, uint64_t now_ms) noexcept nogil:
    """-1: kept idle. Otherwise the CloseReason with which the caller must close it (and then call pool_closed)."""
    cdef PoolCore *p = item.pool
    if p.draining:
        return CLOSE_DRAIN
    if p.max_requests and item.requests >= p.max_requests:
        return CLOSE_MAX_REQUESTS
    if now_ms >= item.retire_ms:
        return CLOSE_MAX_AGE
    if p.n_idle >= p.max_idle:
        return CLOSE_EVICTED
    if pool_pressed(p) and p.own_open[0] > p.fair:   # another worker waits, and we have more than our share: let it have this place
        return CLOSE_EVICTED
    pool_unask(p)
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


# ---- for asyncio programs -----------------------------------------------------------------------------------------

CLOSE_WORDS = ("idle", "max_requests", "max_age", "peer", "error", "stale", "evicted", "drain", "timeout", "aborted")

class PoolFull(Exception):
    """The pool's queue is full: nobody was asked to wait."""


class PoolTimeout(Exception):
    """No connection became free within the queue's time."""


cdef class _Item:
    """One connection of a Pool. The struct is the data plane's; the object lives as long as the connection."""
    cdef PoolItem item
    cdef object connection


cdef class _Waiting:
    cdef Waiter waiter
    cdef object future


cdef class Lease:
    """What `Pool.acquire` gives: an async context manager that yields the connection.

    Leaving without an exception gives the connection back for reuse; with one it is closed. `discard()` inside has it closed anyway.
    """
    cdef Pool pool
    cdef _Item held
    cdef bint entered
    cdef bint broken

    def discard(self):
        """Do not reuse this connection."""
        self.broken = True

    @property
    def connection(self):
        """The connection while it is held, else None."""
        return self.held.connection if self.held is not None else None

    async def __aenter__(self):
        if self.entered:
            raise RuntimeError("this lease is in use already; call acquire() once for every connection")
        self.entered, self.broken = True, False
        try:
            self.held = await self.pool._take()
        except BaseException:
            self.entered = False
            raise
        return self.held.connection

    async def __aexit__(self, kind, value, traceback):
        held, self.held, self.entered = self.held, None, False
        self.pool._give(held, CLOSE_ERROR if kind is not None or self.broken else -1)
        return False


cdef class Pool:
    """Connections to one place, reused last in first out. `connect` is an async function that opens one; `close` (optional, plain or
    async) closes one, otherwise its own `aclose` or `close` is called; what closing raises is dropped.

    async with pool.acquire() as connection: ...

    Beyond max_connections callers wait, at most queue_size of them (PoolFull) and queue_timeout_s long (PoolTimeout). What becomes free
    while somebody waits is promised at once to the oldest, connection or place, and no newcomer can take it. A cancelled wait or connect
    gives back. Times are seconds of `clock`, max_age_s or max_requests 0 is no limit; idle connections past idle_timeout_s are closed when
    the pool is next used or `expire()` is called. For one event loop; not thread-safe.
    """
    cdef PoolCore core
    cdef WaitQueue queue
    cdef object connect, close_one, clock, waiting, closing
    cdef double queue_timeout_s
    cdef dict items          # owner number -> _Item
    cdef uint32_t last_owner
    cdef readonly bint closed
    cdef uint64_t waits, queue_full, queue_timeout

    def __cinit__(self):
        pool_init(&self.core)
        waiters_init(&self.queue, 0)
        self.queue.plain = True

    def __init__(self, connect, *, close=None, max_connections=256, max_idle=256, idle_timeout_s=60.0, max_requests=10000, max_age_s=3600.0,
                 queue_size=512, queue_timeout_s=0.25, clock=time.monotonic):
        if self.items is not None:
            raise TypeError("a Pool is initialised once; make another one")
        for name, value, least in (("max_connections", max_connections, 1), ("max_idle", max_idle, 0), ("max_requests", max_requests, 0), ("queue_size", queue_size, 0)):
            if not isinstance(value, int) or not least <= value < 1 << 31:
                raise ValueError(f"{name} must be an integer of at least {least}")
        for name, value in (("idle_timeout_s", idle_timeout_s), ("max_age_s", max_age_s), ("queue_timeout_s", queue_timeout_s)):
            if not isinstance(value, (int, float)) or not 0 <= value < 1e9:
                raise ValueError(f"{name} must be seconds of at least 0")
        self.queue.size = queue_size
        self.core.max_connections, self.core.max_idle, self.core.max_requests = max_connections, max_idle, max_requests
        self.core.idle_ms, self.core.max_age_ms = int(idle_timeout_s * 1000), int(max_age_s * 1000)
        self.connect, self.close_one, self.clock, self.queue_timeout_s = connect, close, clock, queue_timeout_s
        self.items, self.waiting, self.closing = {}, deque(), set()

    cdef uint64_t _now(self) except? 0:
        return <uint64_t>(fmin(1e15, fmax(0.0, <double>self.clock() * 1000))) + 1

    def acquire(self):
        """A Lease, to be entered with `async with`."""
        cdef Lease lease = Lease.__new__(Lease)
        lease.pool = self
        return lease

    async def _take(self):
        """An _Item with its connection, busy and the caller's."""
        cdef _Item held
        if self.closed:
            raise RuntimeError("the pool is closed; make another one")
        self._expire()
        held = self._reuse_or_reserve()
        if held is None:
            held = await self._wait()
        if held.item.state == ITEM_OPENING:
            await self._open(held)
        return held

    cdef _Item _reuse_or_reserve(self):
        """An idle connection, now busy; a place, now OPENING; None when the pool is full."""
        cdef PoolItem *item = NULL
        cdef int verdict = pool_acquire(&self.core, &item, 0, self._now())
        if verdict == POOL_REUSE:
            return self.items[item.owner]
        return self._reserve() if verdict == POOL_CONNECT else None

    cdef _Item _reserve(self):
        cdef _Item held = _Item.__new__(_Item)
        cdef uint64_t now = self._now()
        self.last_owner += 1
        while self.last_owner in self.items:
            self.last_owner += 1
        pool_opening(&self.core, &held.item, self.last_owner, 0, now, random.getrandbits(16))
        self.items[self.last_owner] = held
        return held

    async def _open(self, _Item held):
        try:
            if self.closed:                      # while we waited for the place
                raise RuntimeError("the pool is closed; make another one")
            held.connection = await self.connect()
        except BaseException as why:
            self._forget(held, CLOSE_ERROR if isinstance(why, Exception) else CLOSE_ABORTED)
            raise
        pool_opened(&held.item)

    cdef _forget(self, _Item held, int why):
        """The connection, or the place for one, is no more: the oldest waiter may open one."""
        del self.items[held.item.owner]
        pool_closed(&held.item, why)
        if self.waiting and not self.closed:
            self._promise(self._reserve())

    cdef bint _promise(self, _Item held) except? -1:
        """Hand a connection or a place to the oldest waiter. Futures that are done were cancelled: their owners find out later."""
        cdef _Waiting w
        while self.waiting:
            w = self.waiting.popleft()
            waiters_drop(&self.queue, &w.waiter, self._now())
            if not w.future.done():
                w.future.set_result(held)
                return True
        if held.item.state == ITEM_OPENING:      # nobody after all
            self._forget(held, CLOSE_ABORTED)
        return False

    async def _wait(self):
        cdef _Waiting w = _Waiting.__new__(_Waiting)
        link_init(&w.waiter.link)
        if not waiters_push(&self.queue, &w.waiter, 0, self._now(), <uint64_t>(self.queue_timeout_s * 1000) + 1):
            self.queue_full += 1
            raise PoolFull(f"all {self.core.max_connections} connections are in use and {self.queue.n} callers wait already; "
                           "raise max_connections or queue_size")
        loop = asyncio.get_running_loop()
        w.future = loop.create_future()
        self.waiting.append(w)
        self.waits += 1
        alarm = loop.call_later(self.queue_timeout_s, self._too_late, w)
        try:
            return await w.future
        except BaseException:                    # too late, closed, or cancelled
            if waiters_drop(&self.queue, &w.waiter, self._now()):
                self.waiting.remove(w)
            elif w.future.done() and not w.future.cancelled() and w.future.exception() is None:
                self._give(w.future.result(), -1)        # promised to us in the moment in which we gave up
            raise
        finally:
            alarm.cancel()

    def _too_late(self, _Waiting w):
        if waiters_drop(&self.queue, &w.waiter, self._now()):
            self.waiting.remove(w)
            if not w.future.done():
                self.queue_timeout += 1
                w.future.set_exception(PoolTimeout(f"no connection became free within {self.queue_timeout_s:g}s; "
                                                   "raise max_connections or queue_timeout_s"))

    def _give(self, _Item held, int why):
        """Take back what a caller held: promised on, kept idle, or closed (why, or what the pool's limits say)."""
        cdef uint64_t now
        if held.item.state == ITEM_OPENING:
            self._forget(held, CLOSE_ABORTED)
            return
        now = self._now()
        if why < 0 and self.closed:
            why = CLOSE_DRAIN
        if why < 0 and self.waiting and (self.core.max_requests == 0 or held.item.requests < self.core.max_requests) and now < held.item.retire_ms:
            if self._promise(held):              # stays busy: promised, never idle in between
                held.item.requests += 1
                self.core.reuses += 1
                return
        if why < 0:
            why = pool_release(&held.item, now)
        if why >= 0:
            self._forget(held, why)
            self._close(held.connection)

    cdef _close(self, connection):
        """Close without waiting: nobody who wants a connection should wait for the end of another."""
        close = self.close_one
        try:
            if close is not None:
                done = close(connection)
            else:
                close = getattr(connection, "aclose", None) or getattr(connection, "close", None)
                done = close() if close is not None else None
        except Exception:
            return
        if inspect.isawaitable(done):
            task = asyncio.ensure_future(done)
            self.closing.add(task)
            task.add_done_callback(self._closed)

    def _closed(self, task):
        self.closing.discard(task)
        if not task.cancelled():
            task.exception()                     # looked at, so that the loop does not complain

    cdef int _expire(self) except -1:
        cdef PoolItem *item
        cdef _Item held
        cdef int n = 0
        while True:
            item = pool_oldest(&self.core, self._now())
            if item == NULL:
                return n
            held = self.items[item.owner]
            self._forget(held, CLOSE_DRAIN if self.closed else CLOSE_MAX_AGE if self._now() >= item.retire_ms else CLOSE_IDLE)
            self._close(held.connection)
            n += 1

    async def expire(self):
        """Close connections that idled too long or are too old; returns how many."""
        n = self._expire()
        while self.closing:
            await asyncio.wait(self.closing)
        return n

    async def aclose(self):
        """Close idle connections now, and those in use as they come back. Those who wait get a RuntimeError."""
        cdef _Waiting w
        self.closed = True
        self.core.draining = 1
        while self.waiting:
            w = self.waiting.popleft()
            waiters_drop(&self.queue, &w.waiter, self._now())
            if not w.future.done():
                w.future.set_exception(RuntimeError("the pool was closed"))
        await self.expire()

    def stats(self):
        """Counts since the start, and gauges."""
        used = self.core.opens + self.core.reuses
        return {"opens": self.core.opens, "reuses": self.core.reuses, "reuse_ratio": self.core.reuses / used if used else 0.0, "in_use": self.core.n_busy,
                "idle": self.core.n_idle, "opening": self.core.n_opening, "waiting": self.queue.n, "waits": self.waits,
                "queue_full": self.queue_full, "queue_timeout": self.queue_timeout,
                "closed": {word: self.core.closed[i] for i, word in enumerate(CLOSE_WORDS)}, "illegal_moves": self.core.illegal}

    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, value, traceback):
        await self.aclose()
        return False
