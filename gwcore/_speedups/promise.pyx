"""Promises: each request of a route ends as met, late, degraded or failed, by what its tier promises.

An answer is in time when its head came within the tier's latency; how long a client takes for the rest of it is its own affair. What a client
caused itself counts neither way: it proves nothing of the service. What the gateway refuses to keep itself or an upstream alive has failed."""
from libc.stdint cimport uint8_t, uint32_t

from gwcore._speedups.head cimport Field, field_is
from gwcore._speedups.plan cimport PlanHead, plan_text
from gwcore._speedups.reasons cimport SIDE_CLIENT, reason_row
from gwcore._speedups.shm cimport SLA_DEGRADED, SLA_FAILED, SLA_LATE, SLA_MET, SLA_OUTCOMES
from gwcore._speedups.story cimport answer_us, has_failed


cdef void promise_count(Worker *w, const Exchange *x, RouteCell *cell, uint64_t us) noexcept nogil:
    """Count the outcome of a request that ends after us."""
    cdef uint64_t most = <uint64_t>x.plan.head.latency_ms[x.tier] * 1000
    cdef uint32_t outcome
    if x.reason and reason_row(x.reason).side == SIDE_CLIENT:
        return
    if x.degraded:
        outcome = SLA_DEGRADED if us <= most else SLA_LATE
    elif has_failed(x):
        outcome = SLA_FAILED
    else:
        outcome = SLA_MET if answer_us(x, us) <= most else SLA_LATE
    cell.sla[x.tier * <uint32_t>SLA_OUTCOMES + outcome] += 1


cdef void tier_find(Exchange *x, const Head *h) noexcept nogil:
    """The tier that a trusted proxy chose, if it did: P0, P1 or P2."""
    cdef const PlanHead *p = x.plan.head
    cdef const Field *f
    cdef const char *at
    cdef uint32_t i
    for i in range(h.n):
        f = &h.f[i]
        if f.value_len == 2 and field_is(h, f, plan_text(p, p.tier_name), p.tier_name.len):
            at = h.base + f.value
            if at[0] == c'P' and c'0' <= at[1] <= c'2':
                x.tier = <uint8_t>(at[1] - c'0')
