"""The idle life of upstream connections: what we allow, what the peer announced, what its peers were seen to grant. A request that crosses the
FIN of a connection which its server gave up is the main source of stray 502s, so it is better to close first."""
from libc.stdint cimport uint32_t

from gwcore._speedups.types cimport Link
from gwcore.pool cimport PoolCore, pool_closed, pool_init, pool_opened, pool_opening, pool_release

cdef enum:
    LEARN_LEAST_MS = 1000    # closed sooner: the peer restarts, or is full


cdef uint64_t idle_life_ms(const PoolItem *item) noexcept nogil:
    """How long this one may idle."""
    cdef uint64_t ms = item.pool.idle_ms
    if item.hint_ms and item.hint_ms < ms:
        ms = item.hint_ms
    if item.pool.granted_ms and item.pool.granted_ms < ms:
        ms = item.pool.granted_ms
    return ms


cdef void idle_peer_closed(PoolItem *item, uint64_t now_ms) noexcept nogil:
    """The peer ended a connection that idled (or was taken the moment before). When none idles longer, it is taken for the peer's limit,
    and the others get an eighth less. A peer that restarts closes them in any order."""
    cdef PoolCore *p = item.pool
    cdef Link *oldest = p.idle.prev if p.idle.prev != &item.link else item.link.prev
    cdef uint64_t idled = now_ms - item.used_ms
    if item.requests == 0 or item.used_ms == 0 or idled < LEARN_LEAST_MS or idled >= p.idle_ms:
        return
    if oldest != &p.idle and (<PoolItem *>oldest).used_ms < item.used_ms:
        return
    if p.granted_ms == 0 or idled - idled // 8 < p.granted_ms:
        p.granted_ms = <uint32_t>(idled - idled // 8)
        p.granted_at_ms = now_ms


cdef void idle_outlived(PoolItem *item, uint64_t now_ms) noexcept nogil:
    """We end this one for its idle time, and the peer still held on: what was learned is doubted, an eighth at a time."""
    cdef PoolCore *p = item.pool
    if p.granted_ms and now_ms - item.used_ms >= p.granted_ms and now_ms - p.granted_at_ms >= p.granted_ms:
        p.granted_ms += p.granted_ms // 8
        p.granted_at_ms = now_ms
        if p.granted_ms >= p.idle_ms:
            p.granted_ms = 0


cdef class IdleProbe:
    """For tests: a pool of up to eight connections, by number, whose idle times are told."""
    cdef PoolCore core
    cdef PoolItem items[8]

    def __init__(self, idle_ms: int):
        pool_init(&self.core)
        self.core.idle_ms, self.core.max_idle = idle_ms, 8

    def kept(self, number: int, now_ms: int, hint_ms: int = 0, requests: int = 1) -> int:
        """Connection `number` is opened, used and given back; returns how long it may idle."""
        cdef PoolItem *item = &self.items[number]
        pool_opening(&self.core, item, number, 0, now_ms, 0)
        pool_opened(item)
        item.requests, item.hint_ms = requests, hint_ms
        pool_release(item, now_ms)
        return idle_life_ms(item)

    def peer_closed(self, number: int, now_ms: int) -> int:
        """Its peer closes it; returns how long others may idle from now on."""
        idle_peer_closed(&self.items[number], now_ms)
        return self._gone(number)

    def outlived(self, number: int, now_ms: int) -> int:
        """It has idled as long as it may."""
        idle_outlived(&self.items[number], now_ms)
        return self._gone(number)

    cdef _gone(self, int number):
        pool_closed(&self.items[number], 0)
        return self.core.granted_ms or self.core.idle_ms
