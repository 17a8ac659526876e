"""The waiting queue of an upstream. P0 goes before P1 before P2. Within a tier the oldest is first; while the queue is over half full the newest is,
because its client is the likeliest still to be there (adaptive LIFO; Maurer, Fail at Scale). A queue that stands, in which nobody waits less than 5 ms
for 100 ms, only makes everybody late: from then on who has waited longer than 20 ms leaves, until the queue has been empty once (controlled delay,
after CoDel, RFC 8289). These times are for a timeout of 250 ms; where people may wait longer, they grow with it."""
from libc.stdlib cimport calloc, free

from gwcore._speedups.types cimport link_append, link_drop, link_empty, link_init, link_push

cdef enum:
    PACE_MS = 250


cdef void waiters_init(WaitQueue *q, uint32_t size) noexcept nogil:
    cdef int i
    for i in range(TIERS):
        link_init(&q.tiers[i])
        q.of_tier[i] = 0
    q.n = 0
    q.size = size
    q.calm_until_ms = 0
    q.plain = q.drowning = False
    waiters_pace(q, 0)


cdef void waiters_pace(WaitQueue *q, uint64_t timeout_ms) noexcept nogil:
    """The times of controlled delay, by how long one may wait."""
    cdef uint64_t ms = timeout_ms if timeout_ms > PACE_MS else PACE_MS
    q.calm_ms = <uint32_t>(ms * 5 // PACE_MS)
    q.patience_ms = <uint32_t>(ms * 100 // PACE_MS)
    q.drowned_ms = <uint32_t>(ms * 20 // PACE_MS)


cdef Waiter *oldest(WaitQueue *q) noexcept nogil:
    cdef Waiter *best = NULL
    cdef Waiter *w
    cdef int i
    for i in range(TIERS):
        if q.of_tier[i]:
            w = <Waiter *>q.tiers[i].next
            if best == NULL or w.since_ms < best.since_ms:
                best = w
    return best


cdef void join(WaitQueue *q, Waiter *w, bint last) noexcept nogil:
    if last:
        link_append(&q.tiers[w.tier], &w.link)
    else:
        link_push(&q.tiers[w.tier], &w.link)
    q.of_tier[w.tier] += 1
    q.n += 1


cdef bint waiters_push(WaitQueue *q, Waiter *w, uint32_t tier, uint64_t now_ms, uint64_t timeout_ms) noexcept nogil:
    """Join the queue as its youngest; False when it is full."""
    if q.n >= q.size:
        return False
    if q.n == 0:
        q.calm_until_ms = now_ms + q.calm_ms
    w.since_ms = now_ms
    w.deadline_ms = now_ms + timeout_ms
    w.tier = 0 if q.plain or tier >= TIERS else <uint8_t>tier
    w.newest = 0
    join(q, w, True)
    return True


cdef void waiters_return(WaitQueue *q, Waiter *w, uint64_t deadline_ms) noexcept nogil:
    """Its turn had come, but somebody was quicker: it stands where it stood, however full the queue is."""
    w.deadline_ms = deadline_ms
    join(q, w, w.newest)


cdef bint waiters_drop(WaitQueue *q, Waiter *w, uint64_t now_ms) noexcept nogil:
    """Leave the queue; False when it was not in it, so leaving twice is harmless."""
    cdef Waiter *first
    if w.deadline_ms == 0:
        return False
    link_drop(&w.link)
    w.deadline_ms = 0
    q.of_tier[w.tier] -= 1
    q.n -= 1
    first = oldest(q)
    if first == NULL:
        q.drowning = False
    elif now_ms < first.since_ms + q.calm_ms:
        q.calm_until_ms = first.since_ms + q.calm_ms
    return True


cdef Waiter *waiters_next(WaitQueue *q) noexcept nogil:
    """Who is to have the next place; NULL when nobody waits. It stays in the queue."""
    cdef Waiter *w
    cdef int i
    for i in range(TIERS):
        if q.of_tier[i]:
            if not q.plain and q.n * 2 > q.size:
                w = <Waiter *>q.tiers[i].prev
                w.newest = 1
            else:
                w = <Waiter *>q.tiers[i].next
                w.newest = 0
            return w
    return NULL


cdef Waiter *waiters_overdue(WaitQueue *q, uint64_t now_ms) noexcept nogil:
    """Somebody who has to leave because the queue stands; NULL when there is none."""
    cdef Waiter *w
    if q.n == 0 or q.plain:
        return NULL
    if not q.drowning and now_ms >= q.calm_until_ms + q.patience_ms:
        q.drowning = True
    if not q.drowning:
        return NULL
    w = oldest(q)
    return w if now_ms > w.since_ms + q.drowned_ms else NULL


cdef Waiter *waiters_lower(WaitQueue *q, uint32_t tier) noexcept nogil:
    """Who has to give way in a full queue to a newcomer of this tier: the oldest of the lowest tier below it. NULL: nobody."""
    cdef uint32_t i = TIERS - 1
    while i > tier:
        if q.of_tier[i]:
            return <Waiter *>q.tiers[i].next
        i -= 1
    return NULL


# ---- the door for unit tests --------------------------------------------------------------------------------------

cdef class WaitProbe:
    """A queue with room for `size`, of n waiters by number. next, overdue and lower give a number, or None."""
    cdef WaitQueue q
    cdef Waiter *w
    cdef readonly int count

    def __cinit__(self, int n, int size, bint plain=False):
        self.w = <Waiter *>calloc(n, sizeof(Waiter))
        if self.w == NULL:
            raise MemoryError
        self.count = n
        waiters_init(&self.q, size)
        self.q.plain = plain
        for i in range(n):
            link_init(&self.w[i].link)

    def __dealloc__(self):
        free(self.w)

    cdef Waiter *_at(self, int i) except NULL:
        if not 0 <= i < self.count:
            raise IndexError(i)
        return &self.w[i]

    cdef _number(self, Waiter *w):
        return None if w == NULL else w - self.w

    def pace(self, uint64_t timeout_ms):
        waiters_pace(&self.q, timeout_ms)

    def push(self, int i, int tier, uint64_t now_ms, uint64_t timeout_ms=250):
        return bool(waiters_push(&self.q, self._at(i), tier, now_ms, timeout_ms))

    def give_back(self, int i, uint64_t deadline_ms):
        waiters_return(&self.q, self._at(i), deadline_ms)

    def drop(self, int i, uint64_t now_ms):
        return bool(waiters_drop(&self.q, self._at(i), now_ms))

    def next(self):
        return self._number(waiters_next(&self.q))

    def overdue(self, uint64_t now_ms):
        return self._number(waiters_overdue(&self.q, now_ms))

    def lower(self, int tier):
        return self._number(waiters_lower(&self.q, tier))

    def before(self, int tier):
        return bool(waiters_before(&self.q, tier))

    @property
    def n(self):
        return self.q.n

    @property
    def by_tier(self):
        assert all([link_empty(&self.q.tiers[i]) == (self.q.of_tier[i] == 0) for i in range(TIERS)])
        return [self.q.of_tier[i] for i in range(TIERS)]

    @property
    def drowning(self):
        return bool(self.q.drowning)
