"""Admission to an upstream. All workers fill one limit: a cell in the shared segment, whose counts are atomics that are touched only where a limit is
configured. A worker with less than its share that finds the limit full says so in `wanted`, and those that have more leave it the next place. The
counts of a worker that dies are given back by the supervisor.

The adaptive limit follows the latency of the answers, from the whole request sent to the response head. Each worker keeps the histogram of its
window; the one that moves the window's end on folds them all, and asks limiter.pyx."""
from libc.string cimport memset

from gwcore._speedups.histogram cimport HISTOGRAM_CELLS, histogram_cell
from gwcore._speedups.limiter cimport LIMIT_SAMPLES, LIMIT_WINDOW_MS, limiter_median_us, limiter_share, limiter_update
from gwcore._speedups.reasons cimport R_CONCURRENCY_LIMIT, R_OVERLOAD, R_QUEUE_FULL, R_QUEUE_TIMEOUT
from gwcore._speedups.shm cimport (
    LimitCell, LimitLane, TierCell, gw_atomic_add, gw_atomic_load, gw_atomic_load64, gw_atomic_store, gw_atomic_win, segment_lane,
)
from gwcore._speedups.types cimport RC_FAIL, RC_OK, link_drop, link_push
from gwcore._speedups.upstream cimport upstream_limit
from gwcore._speedups.waiting cimport waiters_before


cdef bint limit_has_room(Worker *w, const Upstream *u, uint32_t tier) noexcept nogil:
    """May one request more of this tier be under way? Always, where there is no limit."""
    cdef uint32_t limit, wanted
    if u.limit_start == 0:
        return True
    limit = upstream_limit(u)
    if gw_atomic_load(&u.limit.in_flight) >= limiter_share(limit, tier):
        return False
    wanted = gw_atomic_load(&u.limit.wanted)
    return wanted == 0 or wanted & 0xffff == w.number + 1 or tier < wanted >> 16 or u.limited.held < limit // w.segment.workers


cdef int admission_take(Worker *w, Exchange *x) noexcept nogil:
    """Before every attempt. RC_OK: it may be made. RC_FAIL with x.reason 0: it has to wait. Who waits already is not overtaken."""
    cdef Upstream *u = x.upstream
    cdef bint first = x.attempts == 0 and not x.turn
    x.turn = 0
    x.reason = 0
    x.limited = 0
    if first and u.queue.n and not x.placed and waiters_before(&u.queue, x.tier if not u.queue.plain else 0):
        if not limit_has_room(w, u, x.tier):
            x.limited = 1
        link_drop(&u.serve)                          # should there be a place after all, the end of this turn gives it away
        link_push(&w.serve, &u.serve)
        return RC_FAIL
    if u.limit_start == 0 or x.placed:
        return RC_OK
    return place_take(w, x)


cdef int place_take(Worker *w, Exchange *x) noexcept nogil:
    cdef Upstream *u = x.upstream
    cdef LimitLane *own = u.limited
    cdef uint32_t n, window
    if not limit_has_room(w, u, x.tier):
        x.limited = 1
        return RC_FAIL
    n = gw_atomic_add(&u.limit.in_flight, 1)
    if n > limiter_share(upstream_limit(u), x.tier):      # another worker was quicker
        gw_atomic_add(&u.limit.in_flight, -1)
        x.limited = 1
        return RC_FAIL
    own.held += 1
    x.placed = 1
    limit_unask(w, u)
    window = gw_atomic_load(&u.limit.window)
    if own.window != window:
        window_begin(own, window)
    if n > own.peak:
        own.peak = n
    return RC_OK


cdef void place_give(Worker *w, Exchange *x) noexcept nogil:
    cdef Upstream *u = x.upstream
    x.placed = 0
    u.limited.held -= 1
    gw_atomic_add(&u.limit.in_flight, -1)
    if u.queue.n:                                    # the turn's end serves the queue: never from inside another exchange
        link_drop(&u.serve)
        link_push(&w.serve, &u.serve)


cdef void limit_ask(Worker *w, Upstream *u, uint32_t tier) noexcept nogil:
    """We wait, with less than our share of a full limit: others may leave us the next place. Only a higher tier pushes an asker aside."""
    cdef uint32_t wanted
    if u.limit_start == 0 or u.limited.held >= upstream_limit(u) // w.segment.workers and u.limited.held:
        return
    wanted = gw_atomic_load(&u.limit.wanted)
    if wanted == 0 or tier < wanted >> 16:
        gw_atomic_store(&u.limit.wanted, (w.number + 1) | tier << 16)


cdef void limit_unask(Worker *w, Upstream *u) noexcept nogil:
    """We got a place, or wait no longer."""
    if gw_atomic_load(&u.limit.wanted) & 0xffff == w.number + 1:
        gw_atomic_store(&u.limit.wanted, 0)


# ---- measuring

cdef void window_begin(LimitLane *own, uint32_t window) noexcept nogil:
    own.window = window
    own.peak = own.samples = 0
    memset(own.seconds, 0, sizeof(own.seconds))


cdef void limit_sample(Worker *w, Exchange *x) noexcept nogil:
    """What an answer took, or, without one, how long it was waited for."""
    cdef Upstream *u = x.upstream
    cdef LimitLane *own = u.limited
    cdef uint32_t window
    cdef uint64_t due
    if u.limit_min == u.limit_max or x.sent_us == 0:
        return
    window = gw_atomic_load(&u.limit.window)
    if own.window != window:
        window_begin(own, window)
    own.samples += 1
    own.seconds[histogram_cell(w.now_us - x.sent_us)] += 1
    due = gw_atomic_load64(&u.limit.due_ms)
    if w.now_ms >= due and gw_atomic_win(&u.limit.due_ms, due, w.now_ms + LIMIT_WINDOW_MS):
        if due:
            limit_fold(w, u)


cdef void limit_fold(Worker *w, Upstream *u) noexcept nogil:
    """The window is over. We alone are here: we moved its end. With too few samples it goes on."""
    cdef LimitCell *cell = u.limit
    cdef LimitLane *lane
    cdef uint32_t cells[HISTOGRAM_CELLS]
    cdef uint32_t window = gw_atomic_load(&cell.window), i, k, samples = 0, peak = 0
    memset(cells, 0, sizeof(cells))
    for i in range(w.segment.workers):
        lane = &segment_lane(w.segment, i).limits[u.slot]
        if lane.window != window or lane.samples == 0 and lane.peak == 0:
            continue
        samples += lane.samples
        peak = lane.peak if lane.peak > peak else peak
        for k in range(HISTOGRAM_CELLS):
            cells[k] += lane.seconds[k]
    if samples < LIMIT_SAMPLES:
        return
    if <uint32_t>cell.state.limit != upstream_limit(u):      # another plan may have other bounds
        cell.state.limit = upstream_limit(u)
    limiter_update(&cell.state, limiter_median_us(cells), peak, u.limit_min, u.limit_max)
    gw_atomic_store(&cell.limit, <uint32_t>cell.state.limit)
    gw_atomic_store(&cell.window, window + 1)


# ---- counting

cdef void admission_count(Worker *w, Exchange *x, uint64_t us) noexcept nogil:
    """A request for an upstream ends. us: what it took; 0 = it was no request by then but a tunnel."""
    cdef TierCell *cell = &w.lane.tiers[x.tier]
    cdef int reason = x.reason
    cell.queued += x.queue_deadline_ms != 0
    if reason == R_OVERLOAD:
        cell.shed[0] += 1
    elif reason == R_CONCURRENCY_LIMIT:
        cell.shed[1] += 1
    elif reason == R_QUEUE_FULL:
        cell.shed[2] += 1
    elif reason == R_QUEUE_TIMEOUT:
        cell.shed[3] += 1
    elif x.endpoint != NULL:
        cell.admitted += 1
        if us:
            cell.sum_us += us
            cell.seconds[histogram_cell(us)] += 1
