"""The breaker's mathematics, for the data plane and for gwcore.breaker.

Evidence is a one-sided CUSUM (Page, Continuous Inspection Schemes, 1954): it opens the breaker where nearly everything fails. Shedding is
proportional to pressure (timeouts, overload) above a threshold that adapts. Latency is read from a log-linear histogram of the window.
"""
from libc.math cimport exp, fmax, fmin, ldexp
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy, memset

from gwcore._speedups.histogram cimport histogram_cell, histogram_quantile_us

cdef enum:
    FOLD_US = 50000          # learning and the quantile are brought up to date so often

# from CLOSED, OPEN, HALF_OPEN: the legal next states
cdef uint32_t[3] LEGAL
LEGAL[:] = [1 << BRK_OPEN, 1 << BRK_HALF_OPEN | 1 << BRK_CLOSED, 1 << BRK_CLOSED | 1 << BRK_OPEN]


cdef bint breaker_move(BreakerCore *b, int to, int why) noexcept nogil:
    """The only writer of the state. Every transition is a new generation: older permits prove nothing any more."""
    if not LEGAL[b.state] >> to & 1:
        b.illegal += 1
        return False
    b.moved_on.failure_ratio, b.moved_on.pressure_ratio = breaker_ratio(b.f, b.n), breaker_ratio(b.p, b.n)
    b.moved_on.n, b.moved_on.evidence, b.moved_on.bar, b.moved_on.p99_s = b.n, b.evidence, b.bar, b.p99_s
    b.moved_on.saturation, b.moved_on.score = breaker_saturation(b), breaker_score(b)
    b.was = b.state
    b.state = to
    b.why = why
    b.generation += 1
    b.probes_ok = b.probes_bad = 0
    b.issued = 0
    b.evidence = 0
    return True


cdef void clean_sheet(BreakerCore *b) noexcept nogil:
    """Ratios, evidence, histogram forgotten; baselines kept."""
    b.n = b.f = b.p = b.evidence = b.p99_s = 0
    b.issued = 0
    memset(b.young, 0, sizeof(b.young))
    memset(b.old, 0, sizeof(b.old))
    b.half_us = b.now_us


cdef void breaker_init(BreakerCore *b, const BreakerRules *rules, int64_t now_us) noexcept nogil:
    memset(b, 0, sizeof(BreakerCore))
    b.rules = rules[0]
    b.now_us = b.folded_us = b.half_us = now_us
    b.threshold = rules.threshold_ceiling
    b.bar = rules.trip_failures


cdef double breaker_saturation(const BreakerCore *b) noexcept nogil:
    """How full, 0 to 1; an unknown capacity reads 0."""
    cdef double most = b.rules.capacity
    if b.limit > 0 and (most <= 0 or b.limit < most):
        most = b.limit
    return fmin(1.0, b.in_flight / most) if most > 0 else 0.0


cdef double breaker_ratio(double part, double n) noexcept nogil:
    return fmin(1.0, part / n) if n > 1e-9 else 0.0


cdef double breaker_score(const BreakerCore *b) noexcept nogil:
    """How ill, 0 to 1."""
    cdef const BreakerRules *r = &b.rules
    cdef double weight, score, slow = 0
    if b.state != BRK_CLOSED:
        return 1.0
    if r.classic:
        score = r.classic_w_latency * fmin(b.p99_s / r.classic_latency_s, 1.0) + r.classic_w_errors * breaker_ratio(b.f, b.n)
        return fmin(1.0, score + r.classic_w_saturation * breaker_saturation(b))
    weight = fmin(1.0, b.n / r.min_volume)
    if b.slow_limit_s > 0:
        slow = 0.5 * fmin(1.0, fmax(0.0, b.p99_s / b.slow_limit_s - 1))
    score = fmax(breaker_ratio(b.f, b.n) / r.trip_ratio * weight, slow * weight)
    return fmin(1.0, fmax(score, (breaker_saturation(b) - 0.7) / 0.3))


cdef double breaker_shed(const BreakerCore *b) noexcept nogil:
    """The probability with which a caller is refused, over admitted calls."""
    if b.state != BRK_CLOSED or b.rules.classic or b.n < b.rules.min_volume or b.p <= 0:
        return 0.0
    return fmin(b.rules.shed_max, fmax(0.0, 1 - (1 - breaker_ratio(b.p, b.n)) / (1 - b.threshold)))


cdef double breaker_ramp(const BreakerCore *b) noexcept nogil:
    """The share that is admitted; below 1 only for a while after the breaker closed."""
    cdef double since
    if b.ramp_from_us == 0 or b.state != BRK_CLOSED:
        return 1.0
    since = (b.now_us - b.ramp_from_us) / 1e6
    if since >= b.rules.ramp_s:
        return 1.0
    return b.rules.ramp_start + (1 - b.rules.ramp_start) * since / b.rules.ramp_s


cdef bint breaker_wants_chance(const BreakerCore *b) noexcept nogil:
    """Will the next admit look at its chance?"""
    return b.ramp_from_us != 0 or b.p > 0


cdef uint32_t breaker_probes_out(const BreakerCore *b) noexcept nogil:
    cdef uint32_t i, n = 0
    if b.state != BRK_HALF_OPEN:
        return 0
    for i in range(LEASES):
        n += b.lease[i].serial != 0 and b.lease[i].generation == b.generation
    return n


cdef bint lease_drop(Lease *lease, uint32_t generation, uint32_t serial) noexcept nogil:
    """Give a probe's place back. False: that was done before, by its owner or by the end of its lease."""
    return lease.generation == generation and serial != 0 and brk_cas(&lease.serial, serial, 0)


cdef void leases_expire(BreakerCore *b) noexcept nogil:
    """A probe whose owner never came back loses its place."""
    cdef uint32_t i, serial
    b.leases = 0
    for i in range(LEASES):
        serial = brk_load(&b.lease[i].serial)
        if serial == 0:
            continue
        if b.lease[i].until_us > b.now_us:
            b.leases += 1
        elif brk_cas(&b.lease[i].serial, serial, 0):
            b.expired += 1
            b.in_flight -= 1


cdef int64_t breaker_retry_after_us(const BreakerCore *b) noexcept nogil:
    """When a refused caller may try again."""
    cdef int64_t soonest = 0
    cdef uint32_t i
    if b.forced == FORCE_OPEN:
        return b.forced_until_us - b.now_us if b.forced_until_us else 1000000
    if b.state == BRK_OPEN:
        return b.open_until_us - b.now_us if b.open_until_us > b.now_us else 0
    if b.state == BRK_HALF_OPEN:
        for i in range(LEASES):
            if b.lease[i].serial and (soonest == 0 or b.lease[i].until_us < soonest):
                soonest = b.lease[i].until_us
        return soonest - b.now_us if soonest > b.now_us else 0
    return 0


cdef void open_now(BreakerCore *b, int why) noexcept nogil:
    cdef double seconds
    if not breaker_move(b, BRK_OPEN, why):
        return
    seconds = fmin(b.rules.open_max_s, ldexp(b.rules.open_s, b.level))
    if why != WHY_FORCED and b.level < 64:   # an operator's act says nothing of the upstream
        b.level += 1
    b.opens += 1
    b.opened_us = b.now_us
    b.open_until_us = b.now_us + <int64_t>(seconds * 1e6)
    b.ramp_from_us = 0
    b.wants_jitter = 1


cdef void breaker_jitter(BreakerCore *b, double chance) noexcept nogil:
    """Spread the open interval that just began; chance is from [0, 1)."""
    if b.wants_jitter:
        b.wants_jitter = 0
        chance = fmin(1.0, fmax(0.0, chance))
        b.open_until_us = b.opened_us + <int64_t>((b.open_until_us - b.opened_us) * (1 + b.rules.open_jitter * (2 * chance - 1)))


cdef void close_now(BreakerCore *b, int why, bint ramp) noexcept nogil:
    if breaker_move(b, BRK_CLOSED, why):
        b.closed_us = b.now_us
        clean_sheet(b)
        b.ramp_from_us = b.now_us if ramp and b.rules.ramp_s > 0 else 0
        b.ramp_second = -1


cdef bint stressed(const BreakerCore *b) noexcept nogil:
    cdef double floor = b.baseline_failure + b.rules.threshold_floor
    if b.state != BRK_CLOSED or breaker_saturation(b) >= 0.9:
        return True
    return b.n >= b.rules.min_volume / 2.0 and (breaker_ratio(b.f, b.n) > floor or breaker_ratio(b.p, b.n) > floor)


cdef void breaker_measure(BreakerCore *b) noexcept nogil:
    """The quantile as of now, from the two halves of the window; the older is dropped when the younger is full of time."""
    cdef uint32_t cells[161]
    cdef uint32_t i
    if b.now_us - b.half_us >= b.rules.window_s * 5e5:
        if b.now_us - b.half_us >= b.rules.window_s * 1e6:
            memset(b.old, 0, sizeof(b.old))
        else:
            memcpy(b.old, b.young, sizeof(b.young))
        memset(b.young, 0, sizeof(b.young))
        b.half_us = b.now_us
    b.samples = 0
    for i in range(HIST):
        cells[i] = b.young[i] + b.old[i]
        b.samples += cells[i]
    b.p99_s = histogram_quantile_us(cells, 0.99) / 1e6


cdef void breaker_fold(BreakerCore *b, int64_t now_us) noexcept nogil:
    """Quantile, threshold and baselines up to now."""
    cdef const BreakerRules *r = &b.rules
    cdef double dt = (now_us - b.folded_us) / 1e6, goal, rate
    cdef bint stress
    if dt <= 0:
        return
    b.folded_us = now_us
    breaker_measure(b)
    stress = stressed(b)
    if b.state == BRK_CLOSED and not stress and b.n >= r.min_volume and b.samples >= 5 * r.min_volume:
        b.baseline_failure = fmin(r.baseline_max, b.baseline_failure + (breaker_ratio(b.f, b.n) - b.baseline_failure) * (1 - exp(-dt / r.baseline_s)))
        if b.baseline_p99_s == 0:
            b.baseline_p99_s = b.p99_s
        elif b.p99_s < b.baseline_p99_s:
            b.baseline_p99_s += (b.p99_s - b.baseline_p99_s) * (1 - exp(-2 * dt / r.baseline_s))
        else:
            b.baseline_p99_s = fmin(b.p99_s, b.baseline_p99_s * exp(r.baseline_growth_per_s * dt))
        b.slow_limit_s = fmax(r.slow_min_s, r.slow_factor * b.baseline_p99_s)
    goal = b.baseline_failure + (r.threshold_floor if stress else r.threshold_ceiling)
    rate = r.tighten_per_s if stress else r.relax_per_s
    b.threshold = goal + (b.threshold - goal) * exp(-rate * dt)
    b.threshold = fmin(b.baseline_failure + r.threshold_ceiling, fmax(b.baseline_failure + r.threshold_floor, b.threshold))


cdef void breaker_advance(BreakerCore *b, int64_t now_us) noexcept nogil:
    """Let time pass. A clock that goes back is read as standing still."""
    cdef double dt, keep
    if now_us > b.now_us:
        dt = (now_us - b.now_us) / 1e6
        keep = exp(-dt / b.rules.window_s)
        b.n *= keep
        b.f *= keep
        b.p *= keep
        if b.evidence > 0:
            b.evidence *= exp(-dt / b.rules.evidence_s)
        b.now_us = now_us
        if now_us - b.folded_us >= FOLD_US:
            breaker_fold(b, now_us)
    if b.level and b.state == BRK_CLOSED and b.now_us - b.closed_us >= b.rules.open_forget_s * 1e6:
        b.level = 0
    if b.forced and b.forced_until_us and b.now_us >= b.forced_until_us:
        b.forced = FORCE_NONE
        b.forced_until_us = 0
        b.open_until_us = b.now_us
    if b.leases:
        leases_expire(b)


cdef bint stalled(const BreakerCore *b) noexcept nogil:
    cdef double limit
    if b.rules.stall_s <= 0 or b.baseline_p99_s <= 0 or b.issued < b.rules.trip_failures or b.forced:
        return False
    limit = fmax(b.rules.stall_s, 10 * b.baseline_p99_s)
    return b.now_us - b.issued_us >= limit * 1e6


cdef int refuse(BreakerCore *b, int why) noexcept nogil:
    b.refused[why] += 1
    return why


cdef void issue(BreakerCore *b, uint32_t place, PermitRef *permit) noexcept nogil:
    b.admitted += 1
    b.in_flight += 1
    permit.generation = b.generation
    permit.lease = place
    permit.live = b.lease_serial if place else 1
    permit.started_us = b.now_us


cdef int breaker_probe(BreakerCore *b, int64_t lease_us, uint32_t owner, PermitRef *permit) noexcept nogil:
    """A permit of a breaker that is not CLOSED, as of its now_us: none, or one with a lease."""
    cdef uint32_t i, place = 0
    permit.live = 0
    if b.state == BRK_OPEN:
        if b.forced == FORCE_OPEN or b.now_us < b.open_until_us:
            return refuse(b, BRK_REFUSED_OPEN)
        breaker_move(b, BRK_HALF_OPEN, WHY_PROBE)
    if breaker_probes_out(b) >= b.rules.probes:
        return refuse(b, BRK_REFUSED_PROBES)
    for i in range(LEASES):
        if b.lease[i].serial == 0:
            place = i + 1
            break
    if place == 0:
        return refuse(b, BRK_REFUSED_PROBES)
    b.leases += 1
    b.lease_serial = b.lease_serial % 65535 + 1
    b.lease[place - 1].until_us = b.now_us + (lease_us if lease_us > 0 else 1)
    b.lease[place - 1].generation = b.generation
    b.lease[place - 1].owner = owner
    brk_store(&b.lease[place - 1].serial, b.lease_serial)
    issue(b, place, permit)
    return BRK_ADMITTED


cdef int breaker_admit(BreakerCore *b, int64_t now_us, double chance, int64_t lease_us, PermitRef *permit) noexcept nogil:
    """BRK_ADMITTED, and the permit is live; or a BreakerRefusal. chance is from [0, 1)."""
    cdef double part
    breaker_advance(b, now_us)
    permit.live = 0
    if b.state != BRK_CLOSED:
        return breaker_probe(b, lease_us, 0, permit)
    if stalled(b):
        open_now(b, WHY_STALL)
        return refuse(b, BRK_REFUSED_OPEN)
    if b.forced != FORCE_CLOSED:
        part = breaker_ramp(b)
        if part < 1:
            if b.now_us // 1000000 != b.ramp_second:
                b.ramp_second = b.now_us // 1000000
                b.ramp_passed = 0
            if b.ramp_passed >= b.rules.ramp_min_rps:
                if chance >= part:
                    return refuse(b, BRK_REFUSED_RAMP)
                chance /= part               # given that it passed, evenly spread again
            b.ramp_passed += 1
        else:
            b.ramp_from_us = 0
        if chance < breaker_shed(b):
            return refuse(b, BRK_REFUSED_SHED)
    if b.issued == 0:                        # of those since the last result, without the cancelled: they prove nothing
        b.issued_us = b.now_us
    b.issued += 1
    issue(b, 0, permit)
    return BRK_ADMITTED


cdef void evidence_add(BreakerCore *b, double ok, double bad, int64_t first_bad_us, double ratio_before) noexcept nogil:
    """Successes and failures: one of either, or those of a tick, whose order is lost."""
    cdef const BreakerRules *r = &b.rules
    if bad and b.evidence < 0.5:             # the change point
        b.bar = r.trip_failures / (1 - fmin(r.trip_ratio, ratio_before))
        b.change_us = first_bad_us
    b.evidence = fmin(b.bar, fmax(0.0, b.evidence + bad - ok * r.trip_ratio / (1 - r.trip_ratio)))
    if bad and b.evidence >= b.bar and b.now_us - b.change_us >= r.trip_time_s * 1e6 and not b.forced:
        open_now(b, WHY_FAILURES)


cdef void score_look(BreakerCore *b) noexcept nogil:
    """The classic mode: open by the score."""
    cdef double score
    if b.n >= b.rules.min_volume and not b.forced:
        breaker_measure(b)
        score = breaker_score(b)
        if score > b.rules.classic_threshold * (1 - b.rules.classic_step) + score * b.rules.classic_step:
            open_now(b, WHY_SCORE)


cdef void probes_count(BreakerCore *b, uint32_t ok, uint32_t bad) noexcept nogil:
    """The first to `probes` verdicts of one kind decides."""
    b.probes_ok += ok
    b.probes_bad += bad
    if b.probes_bad >= b.rules.probes:
        open_now(b, WHY_PROBE_FAILED)
    elif b.probes_ok >= b.rules.probes:
        close_now(b, WHY_RECOVERED, True)


cdef void breaker_batch(BreakerCore *b, const BreakerBatch *batch, int64_t now_us) noexcept nogil:
    """Take in the results of a tick. The caller has added their latencies to `young`, and set in_flight."""
    cdef double before
    breaker_advance(b, now_us)
    if b.state == BRK_HALF_OPEN:
        probes_count(b, <uint32_t>batch.ok, <uint32_t>batch.bad)
        return
    if b.state == BRK_OPEN:
        return
    before = breaker_ratio(b.f, b.n) if b.n >= b.rules.min_volume / 2.0 else 0.0
    b.n += batch.ok + batch.bad
    b.f += batch.bad
    b.p += batch.pressure
    if batch.ok or batch.bad:
        b.issued = 0
    elif batch.admitted + b.issued > batch.uncounted:
        if b.issued == 0:
            b.issued_us = b.now_us
        b.issued = <uint32_t>(batch.admitted + b.issued - batch.uncounted)
    else:
        b.issued = 0
    if not batch.may_open:
        b.evidence = 0
        b.issued = 0
    elif stalled(b):
        open_now(b, WHY_STALL)
    elif b.rules.classic:
        score_look(b)
    elif batch.ok or batch.bad:
        evidence_add(b, batch.ok, batch.bad, batch.first_bad_us if batch.first_bad_us else b.now_us, before)


cdef bint breaker_eject(BreakerCore *b) noexcept nogil:
    """Open it because it fares so much worse than its siblings. False: it is not CLOSED, or forced."""
    if b.state != BRK_CLOSED or b.forced:
        return False
    open_now(b, WHY_OUTLIER)
    return True


cdef bint breaker_end(BreakerCore *b, PermitRef *permit, int outcome, int64_t latency_us, int64_t now_us) noexcept nogil:
    """End a permit; False when it was ended before, or its lease ran out. Whatever the state, its place is given back once."""
    cdef const BreakerRules *r = &b.rules
    cdef double before, weight
    cdef uint32_t serial
    if not permit.live:
        return False
    serial = permit.live
    permit.live = 0
    breaker_advance(b, now_us)
    if permit.lease:
        if not lease_drop(&b.lease[permit.lease - 1], permit.generation, serial):
            b.stale += outcome != OUTCOME_CANCEL     # expired meanwhile: its place was given back then
            return False
        b.leases -= 1
    b.in_flight -= 1
    if outcome == OUTCOME_CANCEL:
        b.cancelled += 1
        if permit.generation == b.generation and b.issued and <int64_t>permit.started_us >= b.issued_us:
            b.issued -= 1
        return True
    if latency_us < 0:
        latency_us = 0
    if outcome == OUTCOME_SUCCESS and r.latency_limit_s > 0 and latency_us > r.latency_limit_s * 1e6:
        outcome = OUTCOME_PRESSURE
    if outcome == OUTCOME_SUCCESS:
        b.succeeded += 1
    else:
        b.failed += 1
    if permit.generation != b.generation:
        b.stale += 1
        return True
    b.issued = 0
    if b.state == BRK_HALF_OPEN:
        probes_count(b, outcome == OUTCOME_SUCCESS, outcome != OUTCOME_SUCCESS)
        return True
    before = breaker_ratio(b.f, b.n) if b.n >= r.min_volume / 2.0 else 0.0
    b.n += 1
    if outcome != OUTCOME_FAILURE:           # a fast failure must not make the upstream look fast
        b.young[histogram_cell(latency_us)] += 1
    if outcome == OUTCOME_SUCCESS:
        if b.slow_limit_s > 0 and latency_us > b.slow_limit_s * 1e6:
            b.slow += 1
            weight = (breaker_saturation(b) - 0.5) / 0.4
            b.p += fmin(1.0, fmax(0.0, weight))
    else:
        b.f += 1
        if outcome == OUTCOME_PRESSURE:
            b.p += 1
    if r.classic:
        score_look(b)
    else:
        evidence_add(b, outcome == OUTCOME_SUCCESS, outcome != OUTCOME_SUCCESS, b.now_us, before)
    return True


cdef void breaker_force(BreakerCore *b, int to, int64_t now_us, int64_t for_us) noexcept nogil:
    """FORCE_OPEN refuses everything, FORCE_CLOSED admits everything, FORCE_NONE lets the breaker decide again. for_us 0 = until reset."""
    breaker_advance(b, now_us)
    if to == FORCE_OPEN and b.state != BRK_OPEN:
        open_now(b, WHY_FORCED)
    elif to == FORCE_CLOSED and b.state != BRK_CLOSED:
        close_now(b, WHY_FORCED, False)
    elif to == FORCE_NONE and b.forced == FORCE_OPEN:
        b.open_until_us = b.now_us
    b.forced = to
    b.forced_until_us = b.now_us + for_us if for_us > 0 else 0


cdef void breaker_reset(BreakerCore *b, int64_t now_us) noexcept nogil:
    """CLOSED; ratios, evidence and back-off forgotten, baselines kept."""
    breaker_advance(b, now_us)
    b.forced = FORCE_NONE
    b.forced_until_us = 0
    if b.state != BRK_CLOSED:
        close_now(b, WHY_RESET, False)
    clean_sheet(b)
    b.level = 0
    b.ramp_from_us = 0


cdef void breaker_hint(BreakerCore *b, int64_t now_us) noexcept nogil:
    """An active check passed: the open interval ends, after at least a second. Probes that are out were sent before that: they keep their
    places for a second more, or a silence that is over would cost another round."""
    cdef uint32_t i
    breaker_advance(b, now_us)
    if b.state == BRK_HALF_OPEN and not b.forced:
        for i in range(LEASES):
            if b.lease[i].serial and b.lease[i].until_us > b.now_us + 1000000:
                b.lease[i].until_us = b.now_us + 1000000
    if b.state == BRK_OPEN and not b.forced and b.open_until_us > b.opened_us + 1000000:
        b.open_until_us = b.now_us if b.now_us > b.opened_us + 1000000 else b.opened_us + 1000000


def edges() -> dict:
    """The legal moves, for tests and diagrams."""
    return {was: [to for to in range(3) if LEGAL[was] >> to & 1] for was in range(3)}


def try_move(int was, int to) -> bool:
    """Does breaker_move take this edge? For the test that walks the table."""
    cdef BreakerCore b
    memset(&b, 0, sizeof(b))
    b.state = was
    return breaker_move(&b, to, WHY_FORCED) and b.state == to and b.generation == 1 and b.illegal == 0


def pairs(uint32_t n) -> None:
    """n admitted calls that succeed, a microsecond apart, under the usual rules. For bench/micro."""
    cdef BreakerRules rules
    cdef BreakerCore b
    cdef PermitRef permit
    cdef uint32_t i
    memset(&rules, 0, sizeof(rules))
    rules.window_s = rules.evidence_s = rules.baseline_s = rules.open_s = rules.open_max_s = 5
    rules.trip_ratio, rules.threshold_floor, rules.threshold_ceiling = 0.8, 0.05, 0.2
    rules.trip_failures, rules.probes, rules.min_volume = 10, 3, 20
    with nogil:
        breaker_init(&b, &rules, 1)
        for i in range(n):
            breaker_admit(&b, 2 * i + 2, 0.5, 0, &permit)
            breaker_end(&b, &permit, OUTCOME_SUCCESS, 1000, 2 * i + 3)
