"""Ejection. An endpoint's breaker is the upstream's with rules of its own; it opens by its own evidence, or because the endpoint fails so much
more often than its siblings. At most a share of them is out, and never the last one: beyond that the upstream is ill, and its breaker decides.
Who folds the upstream's breaker looks at its endpoints too, under the same lock, so that the share holds over all workers."""
from libc.stdint cimport int64_t, uint32_t

from gwcore._speedups.breaker_cell cimport (
    BREAKER_TICK_US, BreakerCell, cell_eject_locked, cell_fold_locked, cell_lock, cell_state, cell_unlock,
)
from gwcore._speedups.breaker_core cimport BRK_CLOSED, BreakerCore, breaker_ratio
from gwcore._speedups.conn cimport chance_next
from gwcore._speedups.upstream cimport Endpoint, upstream_limit


cdef bint ready(const Endpoint *e) noexcept nogil:
    return e.weight != 0 and e.sockaddr_len != 0 and e.breaker.on


cdef double ratio_of(const BreakerCore *b) noexcept nogil:
    return breaker_ratio(b.f, b.n)


cdef bint stands_out(const Upstream *u, const Endpoint *e) noexcept nogil:
    """Enough calls, and a failure ratio so far above the siblings' median: at least half of them are that much better."""
    cdef const BreakerCore *b = &e.breaker.cell.core
    cdef const BreakerCore *other
    cdef double limit = ratio_of(b) - u.eject_above
    cdef uint32_t i, better = 0, all = 0
    if limit < 0 or b.n < b.rules.min_volume:
        return False
    for i in range(u.n):
        other = &u.endpoints[i].breaker.cell.core
        if u.endpoints[i] == e or not ready(u.endpoints[i]) or other.state != BRK_CLOSED or other.n < b.rules.min_volume / 4.0:
            continue
        all += 1
        better += ratio_of(other) <= limit
    return all != 0 and better * 2 >= all


cdef void endpoint_look(Worker *w, Upstream *u, Endpoint *e, bint may_open) noexcept nogil:
    cdef BreakerCell *c = e.breaker.cell
    cdef int64_t now_us = <int64_t>w.now_us
    if not c.touched and c.core.n < 0.01 and c.core.issued == 0 and c.core.state == BRK_CLOSED and c.core.in_flight == 0:
        return                               # nothing happened, and nothing is left to decay
    if not cell_lock(c, e.breaker.process):
        return
    cell_fold_locked(&e.breaker, now_us, chance_next(w), may_open)
    if may_open and stands_out(u, e):
        cell_eject_locked(&e.breaker, now_us, chance_next(w))
    cell_unlock(&e.breaker)


cdef void upstream_tick(Worker *w, Upstream *u) noexcept nogil:
    """Fold the breakers of an upstream and its endpoints, unless another worker is at it."""
    cdef BreakerCell *c = u.breaker.cell
    cdef Endpoint *e
    cdef uint32_t i, all = 0, out = 0, most
    if not cell_lock(c, u.breaker.process):
        return
    if u.breaker.on:
        c.core.limit = upstream_limit(u) if u.limit_start else 0
        cell_fold_locked(&u.breaker, <int64_t>w.now_us, chance_next(w), True)
    else:
        c.due_us = <int64_t>w.now_us + BREAKER_TICK_US
    for i in range(u.n):
        e = u.endpoints[i]
        if ready(e):
            all += 1
            out += cell_state(e.breaker.cell) != BRK_CLOSED
    most = all * u.eject_most_pct // 100
    if most >= all and all:
        most = all - 1
    for i in range(u.n):
        e = u.endpoints[(i + c.epoch) % u.n]         # nobody is always the first to be judged
        if not ready(e):
            continue
        if cell_state(e.breaker.cell) != BRK_CLOSED:
            endpoint_look(w, u, e, False)
            out -= cell_state(e.breaker.cell) == BRK_CLOSED
        else:
            endpoint_look(w, u, e, out < most)
            out += cell_state(e.breaker.cell) != BRK_CLOSED
    c.out = out
    cell_unlock(&u.breaker)
