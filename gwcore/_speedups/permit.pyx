"""Permits: every attempt asks the breaker of its upstream and that of its endpoint, and tells both once how it went. What ends without a
verdict is cancelled: a client that leaves proves nothing."""
from libc.stdint cimport int64_t, uint32_t

from gwcore._speedups.breaker_cell cimport BreakerView, cell_admit, cell_blame, cell_end, cell_fold, cell_plain, cell_state
from gwcore._speedups.breaker_core cimport (
    BRK_ADMITTED, BRK_CLOSED, BRK_REFUSED_OPEN, BRK_REFUSED_SHED, OUTCOME_CANCEL, OUTCOME_FAILURE, OUTCOME_PRESSURE, OUTCOME_SUCCESS,
    breaker_retry_after_us,
)
from gwcore._speedups.conn cimport chance_next
from gwcore._speedups.outlier cimport upstream_tick
from gwcore._speedups.reasons cimport (
    BRK_CONNECT, BRK_ENDPOINT, BRK_INVALID, BRK_RESET, BRK_TIMEOUT, BRK_TLS, R_BREAKER_OPEN, R_BREAKER_SHED, R_DEADLINE, reason_row,
)
from gwcore._speedups.shm cimport segment_breaker
from gwcore._speedups.upstream cimport Upstream


# ---- taking -------------------------------------------------------------------------------------------------------

cdef int permit_take(Worker *w, Exchange *x) noexcept nogil:
    """Ask the upstream's breaker. 0: the permit is live; else the reason of the refusal."""
    cdef Upstream *u = x.upstream
    cdef const BreakerView *v = &u.breaker
    cdef int verdict
    cdef int64_t wait_us
    x.refusal = 0
    if not u.watched:
        return 0
    if <int64_t>w.now_us >= v.cell.due_us:
        upstream_tick(w, u)
    if not v.on:
        return 0
    if x.retries and cell_state(v.cell) != BRK_CLOSED:           # a retry is no probe
        verdict = BRK_REFUSED_OPEN
    else:
        verdict = cell_admit(v, <int64_t>w.now_us, 0.0 if cell_plain(v.cell) else chance_next(w), x.tier, &x.permit)
    if verdict == BRK_ADMITTED:
        w.lane.worker.permits += 1
        return 0
    x.refusal = <unsigned char>verdict
    wait_us = breaker_retry_after_us(&v.cell.core)
    x.retry_after_s = <uint32_t>((wait_us + 999999) // 1000000) if 0 < wait_us < <int64_t>1000000 * 86400 else 1
    return R_BREAKER_SHED if verdict == BRK_REFUSED_SHED else R_BREAKER_OPEN


cdef bint permit_endpoint(Worker *w, Exchange *x, Endpoint *e) noexcept nogil:
    """Ask the endpoint's breaker, too; False: another endpoint may be asked."""
    cdef const BreakerView *v = &e.breaker
    if not v.on:
        return True
    if x.retries and cell_state(v.cell) != BRK_CLOSED:           # a retry is no probe
        return e.upstream.panic
    if cell_admit(v, <int64_t>w.now_us, 0.0 if cell_plain(v.cell) else chance_next(w), 1, &x.endpoint_permit) != BRK_ADMITTED:
        return e.upstream.panic
    if not v.cell.touched:
        v.cell.touched = 1
    w.lane.worker.permits += 1
    x.endpoint_slot = v.which
    return True


cdef void permit_move(Worker *w, Exchange *x, Endpoint *e) noexcept nogil:
    """The attempt goes on at another endpoint, whatever its breaker says."""
    permit_endpoint(w, x, e)


cdef bint permit_refused(const Exchange *x) noexcept nogil:
    """Did a breaker refuse the attempt?"""
    return x.reason == R_BREAKER_OPEN or x.reason == R_BREAKER_SHED


# ---- ending -------------------------------------------------------------------------------------------------------

cdef void settle(Worker *w, Exchange *x, int outcome) noexcept nogil:
    cdef const BreakerView *v
    cdef bint probe = x.permit.lease != 0
    if x.permit.live:
        v = &x.upstream.breaker
        w.lane.worker.permits -= 1
        cell_end(v, &x.permit, outcome, <int64_t>(w.now_us - x.permit.started_us), <int64_t>w.now_us)
        if probe or <int64_t>w.now_us >= v.cell.due_us:
            upstream_tick(w, x.upstream)
    if x.endpoint_permit.live:
        endpoint_settle(w, x, outcome)


cdef void endpoint_settle(Worker *w, Exchange *x, int outcome) noexcept nogil:
    cdef const BreakerView *v = &x.endpoint.breaker
    cdef BreakerView other
    cdef bint probe = x.endpoint_permit.lease != 0
    if x.endpoint_slot != v.which:           # by a reload the endpoint got another place
        segment_breaker(w.segment, w.number + 1, x.endpoint_slot, &other)
        v = &other
    w.lane.worker.permits -= 1
    cell_end(v, &x.endpoint_permit, outcome, <int64_t>(w.now_us - x.endpoint_permit.started_us), <int64_t>w.now_us)
    if probe:
        cell_fold(v, <int64_t>w.now_us, chance_next(w), False)


cdef int verdict_of(Worker *w, const Exchange *x, int reason) noexcept nogil:
    """What a reason says of the upstream, by its row in reasons.h."""
    cdef int kind = reason_row(reason).breaker
    if reason == R_DEADLINE and (x.fault or (w.now_us - x.permit.started_us) * 2 < w.now_us - x.start_us):
        return OUTCOME_CANCEL                # the attempt had less than half of the time, or a drill took some of it
    if kind == BRK_TIMEOUT:
        return OUTCOME_PRESSURE
    if kind == BRK_CONNECT or kind == BRK_TLS or kind == BRK_RESET or kind == BRK_INVALID:
        return OUTCOME_FAILURE
    return OUTCOME_CANCEL


cdef void permit_answer(Worker *w, Exchange *x, int status) noexcept nogil:
    """The response's head is here: the verdict, with the latency so far."""
    cdef int outcome = OUTCOME_SUCCESS
    if status == 503 or (status == 429 and x.upstream.count_429):
        outcome = OUTCOME_PRESSURE
    elif status == 500 or status == 502 or status == 504:
        outcome = OUTCOME_FAILURE
    settle(w, x, outcome)


cdef void permit_fail(Worker *w, Exchange *x, int reason) noexcept nogil:
    """The attempt failed, or the exchange did: a verdict by the row of reasons.h. What is no fault of the upstream is none."""
    if reason_row(reason).breaker == BRK_ENDPOINT and x.endpoint != NULL and x.endpoint.breaker.on:
        cell_blame(&x.endpoint.breaker, <int64_t>w.now_us)
    if x.permit.live or x.endpoint_permit.live:
        settle(w, x, verdict_of(w, x, reason))


cdef void permit_endpoint_fail(Worker *w, Exchange *x, int reason) noexcept nogil:
    """The endpoint alone failed; the attempt goes on elsewhere. reason 0: no verdict."""
    if x.endpoint_permit.live:
        endpoint_settle(w, x, verdict_of(w, x, reason))


cdef void permit_cancel(Worker *w, Exchange *x) noexcept nogil:
    """End what is live without a verdict."""
    if x.permit.live or x.endpoint_permit.live:
        settle(w, x, OUTCOME_CANCEL)
