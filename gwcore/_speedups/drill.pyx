"""Drills: for a bounded time a share of a route's requests fails as if its upstream had, so that what they get instead is seen before it is needed.

A drawn request holds nothing while it waits: no permit, no place, no connection. Its fault is none of the upstream's, so breakers, limits and the
figures of endpoints learn nothing of it."""
from gwcore._speedups.conn cimport random_next
from gwcore._speedups.histogram cimport histogram_cell
from gwcore._speedups.reasons cimport SIDE_CLIENT, reason_row
from gwcore._speedups.shm cimport (
    DRILLS, DRILL_COPY, DRILL_LEFT, DRILL_LIVE, DRILL_REFUSED, DRILL_STATIC, FAULT_503, FAULT_SLOW, FAULT_TIMEOUT, Drill, gw_atomic_add, gw_atomic_load,
    gw_atomic_load64, gw_atomic_win,
)
from gwcore._speedups.story cimport DEGRADED_STATIC, answer_us, by_deadline, deadline_over, has_failed

cdef enum:
    BIT_503 = 3              # of on_status, which counts from 500


cdef bint drill_draws(Worker *w, Exchange *x) noexcept nogil:
    """Is the request, which would be sent now, drawn by a drill of its route? Then x.fault says how it fails."""
    cdef Drill *d = w.segment.drills
    cdef uint32_t i
    if x.client.sink or x.upgrade:
        return False
    for i in range(min(gw_atomic_load(&w.segment.drilled), <uint32_t>DRILLS)):
        if d[i].slot == x.route.slot and gw_atomic_load64(&d[i].until_ms) > w.now_ms and (random_next(w) >> 20 & 0xffff) < d[i].share:
            x.fault = <unsigned char>d[i].fault
            x.drill = <unsigned char>i
            x.drill_serial = gw_atomic_load(&d[i].serial)
            gw_atomic_add(&d[i].drawn, 1)
            return True
    return False


cdef uint32_t drill_wait_ms(Worker *w, Exchange *x) noexcept nogil:
    """How long a drawn request waits. One that would have to wait longer than for any answer is never sent."""
    cdef uint64_t due = w.now_ms + x.route.response_ms
    cdef uint32_t delay_ms = w.segment.drills[x.drill].delay_ms
    if x.upstream.per_try_ms:
        due = min(due, w.now_ms + <uint64_t>x.upstream.per_try_ms)
    due = by_deadline(x, due)
    if x.fault == FAULT_SLOW and w.now_ms + delay_ms < due:
        return delay_ms
    x.fault = FAULT_TIMEOUT
    return <uint32_t>(due - w.now_ms) if due > w.now_ms else 0


cdef bint drill_over(const Worker *w, const Exchange *x) noexcept nogil:
    """It has waited: does it fail now? Else it is sent."""
    return x.fault == FAULT_TIMEOUT or (x.attempts == 0 and deadline_over(w, x))


cdef void drill_count(Worker *w, const Exchange *x, uint64_t us) noexcept nogil:
    """A drawn request is over, after us: what did its client get, and was that what its ladder promises?"""
    cdef Drill *d = &w.segment.drills[x.drill]
    cdef uint32_t end
    cdef uint64_t most
    cdef bint late, lost
    if gw_atomic_load(&d.serial) != x.drill_serial:      # its place is another's by now
        return
    if x.reason and reason_row(x.reason).side == SIDE_CLIENT:
        gw_atomic_add(&d.ends[<int>DRILL_LEFT], 1)
        return
    if x.degraded:
        end = DRILL_STATIC if x.degraded == DEGRADED_STATIC else DRILL_COPY
    elif has_failed(x):
        end = DRILL_REFUSED
        gw_atomic_add(&d.refused[x.reason], 1)
    else:
        end = DRILL_LIVE
    us = answer_us(x, us)
    late = us > <uint64_t>x.plan.head.latency_ms[x.tier] * 1000
    lost = x.reason != 0 and end == DRILL_REFUSED and x.ladder != NULL and (x.ladder.status != 0 or x.ladder.copies != 0) \
        and (x.fault != FAULT_503 or x.ladder.on_status >> BIT_503 & 1)
    gw_atomic_add(&d.late, late)
    gw_atomic_add(&d.lost, lost)
    gw_atomic_add(&d.unkept, late or lost)
    gw_atomic_add(&d.seconds[histogram_cell(us)], 1)
    while True:
        most = gw_atomic_load64(&d.max_us)
        if us <= most or gw_atomic_win(&d.max_us, most, us):
            break
    gw_atomic_add(&d.ends[end], 1)           # last: who sees none under way sees all of their figures
