"""Waiting for a place, of the concurrency limit or in a pool. Who waits holds nothing. waiting.pyx says who is next."""
from libc.stdint cimport uint32_t, uint64_t

from gwcore._speedups.admission cimport admission_end, limit_ask, limit_has_room, limit_unask
from gwcore._speedups.conn cimport LOOK_WAIT_MS, worker_look
from gwcore._speedups.histogram cimport histogram_cell
from gwcore._speedups.reasons cimport R_CONCURRENCY_LIMIT, R_DEADLINE, R_QUEUE_FULL
from gwcore._speedups.slab cimport slab_at
from gwcore._speedups.story cimport by_deadline
from gwcore._speedups.upstream cimport endpoint_takes
from gwcore._speedups.waiting cimport Waiter, waiters_drop, waiters_lower, waiters_next, waiters_overdue, waiters_push, waiters_return
from gwcore.pool cimport pool_ask, pool_unask

cdef struct WaitingExchange:     # the waiter and what must follow it in an Exchange
    Waiter waiter
    uint32_t owner


cdef Exchange *exchange_of(Worker *w, const Waiter *waiter) noexcept nogil:
    return <Exchange *>slab_at(&w.exchanges, (<const WaitingExchange *>waiter).owner) if waiter != NULL else NULL


cdef int queue_enter(Worker *w, Exchange *x) noexcept nogil:
    """Wait for a place. 0: it waits, until x.waiter.deadline_ms at the most; else the reason why it cannot."""
    cdef Upstream *u = x.upstream
    admission_end(w, x)
    if x.deadline_ms and x.deadline_ms <= w.now_ms + <uint64_t>(u.limit.state.base_us / 1000):
        return R_DEADLINE                            # no answer can come in time
    if x.queue_deadline_ms:                          # it waited before, and somebody was quicker: its turn and its time stay
        waiters_return(&u.queue, &x.waiter, x.queue_deadline_ms)
    elif u.queue.size == 0 or u.queue_ms == 0:
        return R_CONCURRENCY_LIMIT if x.limited else R_QUEUE_FULL
    elif not waiters_push(&u.queue, &x.waiter, x.tier, w.now_ms, u.queue_ms):
        return R_QUEUE_FULL
    x.waiter_owner = x.item.slot
    x.queued_us = w.now_us
    x.queue_deadline_ms = x.waiter.deadline_ms = by_deadline(x, x.waiter.deadline_ms)
    u.cell.waiting += 1
    queue_ask(w, u)
    worker_look(w, LOOK_WAIT_MS)                     # a place that another worker gives up comes without an event
    return 0


cdef void queue_leave(Worker *w, Exchange *x) noexcept nogil:
    """Leave the queue, for whatever reason. Leaving twice is harmless."""
    cdef Upstream *u = x.upstream
    cdef uint32_t i
    if u == NULL or not waiters_drop(&u.queue, &x.waiter, w.now_ms):
        return
    u.cell.waiting -= 1
    x.queue_us += <uint32_t>(w.now_us - x.queued_us)
    if u.queue.n == 0:                               # nobody of us waits any more: the others need not make room
        limit_unask(w, u)
        for i in range(u.n):
            pool_unask(&u.endpoints[i].pool)


cdef void wait_over(Worker *w, Exchange *x) noexcept nogil:
    """It has waited for the last time: for a place, or in vain."""
    if x.queued_us:
        x.upstream.cell.waits[histogram_cell(x.queue_us)] += 1
        x.upstream.cell.wait_us += x.queue_us
        x.queued_us = 0


cdef void queue_ask(Worker *w, Upstream *u) noexcept nogil:
    """Ask the other workers for a place, on behalf of those who wait here."""
    cdef Exchange *x = exchange_of(w, waiters_next(&u.queue))
    cdef uint32_t i
    if x == NULL:
        return
    if not limit_has_room(w, u, x.tier):
        limit_ask(w, u, x.tier)
        return
    for i in range(u.n):
        pool_ask(&u.endpoints[i].pool)


cdef Exchange *queue_next(Worker *w, Upstream *u) noexcept nogil:
    """Who is next, when the limit and some endpoint have room for him (he still stands in the queue); else NULL."""
    cdef Exchange *x = exchange_of(w, waiters_next(&u.queue))
    cdef uint32_t i
    if x == NULL or not limit_has_room(w, u, x.tier):
        return NULL
    for i in range(u.n):
        if endpoint_takes(w, u, u.endpoints[i]):
            return x
    return NULL


cdef Exchange *queue_overdue(Worker *w, Upstream *u) noexcept nogil:
    """Somebody who has to leave because the queue stands; NULL: nobody."""
    cdef Exchange *x = exchange_of(w, waiters_overdue(&u.queue, w.now_ms))
    if x != NULL:
        x.drowned = 1
    return x


cdef Exchange *queue_lower(Worker *w, const Exchange *x) noexcept nogil:
    """In a full queue: who has to give way to x, which is of a higher tier. NULL: nobody."""
    return exchange_of(w, waiters_lower(&x.upstream.queue, x.tier))
