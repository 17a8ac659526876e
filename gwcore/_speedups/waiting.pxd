# Level 2. Who waits for a place, and who is next. The queue does no I/O and reads no clock: it names who goes, its owner lets him go.
# Every operation is O(1). Times are milliseconds, given by the caller.
from gwcore._speedups.types cimport Link, uint32_t, uint64_t
from libc.stdint cimport uint8_t

cdef enum:
    TIERS = 3                # P0 first

cdef struct Waiter:          # embedded in what waits
    Link link                # first member
    uint64_t since_ms
    uint64_t deadline_ms     # 0 = it does not wait
    uint8_t tier
    uint8_t newest           # it was taken from the young end of its tier, and returns there

cdef struct WaitQueue:
    Link tiers[3]            # each oldest first
    uint32_t n
    uint32_t size
    uint32_t of_tier[3]
    uint64_t calm_until_ms   # the oldest has waited less than calm_ms until then
    uint32_t calm_ms         # nobody waits so short a time ...
    uint32_t patience_ms     # ... for so long: the queue stands, and only makes everybody late
    uint32_t drowned_ms      # then who has waited longer leaves
    bint plain               # in order of arrival and no more: no tiers, no newest first, no controlled delay
    bint drowning            # controlled delay: old ones leave, until the queue has been empty once

cdef void waiters_init(WaitQueue *q, uint32_t size) noexcept nogil
cdef void waiters_pace(WaitQueue *q, uint64_t timeout_ms) noexcept nogil
cdef bint waiters_push(WaitQueue *q, Waiter *w, uint32_t tier, uint64_t now_ms, uint64_t timeout_ms) noexcept nogil
cdef void waiters_return(WaitQueue *q, Waiter *w, uint64_t deadline_ms) noexcept nogil
cdef bint waiters_drop(WaitQueue *q, Waiter *w, uint64_t now_ms) noexcept nogil
cdef Waiter *waiters_next(WaitQueue *q) noexcept nogil
cdef Waiter *waiters_overdue(WaitQueue *q, uint64_t now_ms) noexcept nogil
cdef Waiter *waiters_lower(WaitQueue *q, uint32_t tier) noexcept nogil

cdef inline bint waiters_before(const WaitQueue *q, uint32_t tier) noexcept nogil:
    """Does anybody wait whom a newcomer of this tier must not overtake?"""
    return q.of_tier[0] or (tier > 0 and q.of_tier[1]) or (tier > 1 and q.of_tier[2])
