"""Breakers in shared memory. While one is CLOSED, a worker reads the cell's word and adds to its own lane with plain stores; it waits for
nobody. Every 50 ms the first who comes folds all lanes into the core, under a lock that is only ever tried and that names its owner: when he
dies the supervisor takes it away. What a lane holds of an older generation is never read as evidence, whoever was late."""
from libc.math cimport fmax, fmin
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp

from gwcore._speedups.breaker_core cimport (
    BRK_HALF_OPEN, BRK_OPEN, BRK_REFUSED_OPEN, BRK_REFUSED_PROBES, BRK_REFUSED_RAMP, BRK_REFUSED_SHED, BreakerBatch, FORCE_CLOSED,
    FORCE_OPEN, LEASES, OUTCOME_CANCEL, OUTCOME_PRESSURE, OUTCOME_SUCCESS, breaker_advance, breaker_batch, breaker_eject, breaker_force, breaker_hint,
    breaker_init, breaker_jitter, breaker_measure, breaker_probe, breaker_probes_out, breaker_ramp, breaker_ratio, breaker_reset,
    breaker_retry_after_us, breaker_saturation, breaker_score, breaker_shed, brk_cas, brk_store, lease_drop,
)
from gwcore._speedups.histogram cimport HISTOGRAM_CELLS, histogram_cell

cdef extern from * nogil:
    """
    #define EVER_US (1LL << 62)
    #define brk_add64(p, v) __atomic_add_fetch((p), (v), __ATOMIC_ACQ_REL)
    #define brk_add32(p, v) __atomic_add_fetch((p), (v), __ATOMIC_RELAXED)
    #define brk_store64(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #if defined(__x86_64__) || defined(__i386__)
    #define brk_pause() __builtin_ia32_pause()
    #else
    #define brk_pause() __asm__ volatile("" ::: "memory")
    #endif
    """
    int64_t EVER_US
    uint64_t brk_add64(uint64_t *p, uint64_t v)
    uint32_t brk_add32(uint32_t *p, uint32_t v)
    void brk_store64(uint64_t *p, uint64_t v)
    void brk_pause()

cdef enum:
    SPINS = 2000000              # some milliseconds: only control waits for a lock, and only until the supervisor sees that its owner died

# levels 1 and 2: the score that leads there
cdef double[3] LEVEL_SCORE
LEVEL_SCORE[:] = [0.0, 0.5, 0.8]
cdef enum:
    LEVEL_UP_US = 500000
    LEVEL_DOWN_US = 5000000

STATE_WORDS = ("closed", "open", "half_open")
WHY_WORDS = ("", "failures", "stall", "score", "probe", "recovered", "probe_failed", "forced", "reset", "outlier")
FORCE_WORDS = (None, "open", "closed")


# ---- the lock -----------------------------------------------------------------------------------------------------

cdef bint cell_lock(BreakerCell *c, uint32_t process) noexcept nogil:
    """Try to get the core. Who has it must not wait for anything before cell_unlock."""
    return brk_load(&c.lock) == 0 and brk_cas(&c.lock, 0, process)


cdef bint cell_lock_wait(BreakerCell *c, uint32_t process) noexcept nogil:
    """For control, never for a request."""
    cdef uint32_t spins = 0
    while not cell_lock(c, process):
        spins += 1
        if spins == SPINS:
            return False
        brk_pause()
    return True


cdef void cell_unlock(const BreakerView *v) noexcept nogil:
    """Publish what workers read without the lock, tell of the transition if there was one, and give the lock back."""
    cdef BreakerCell *c = v.cell
    cdef BreakerCore *b = &c.core
    cdef uint32_t word = b.generation << WORD_GENERATION | b.state
    if (c.word ^ word) >> WORD_GENERATION:
        if (c.word ^ word) & 3:
            c.since_us = b.now_us
        event_put(v, c.word)
        lanes_forget(v)
    c.shed = 0.0 if b.forced == FORCE_CLOSED else breaker_shed(b)
    c.ramp = 1.0 if b.forced == FORCE_CLOSED else breaker_ramp(b)
    c.slow_limit_us = <int64_t>(b.slow_limit_s * 1e6)
    c.latency_limit_us = <int64_t>(b.rules.latency_limit_s * 1e6)
    c.slow_weight = <uint32_t>(1000 * fmin(1.0, fmax(0.0, (breaker_saturation(b) - 0.5) / 0.4)))
    c.issued_us = b.issued_us if b.issued else EVER_US
    c.refuse_until_us = b.open_until_us
    if b.forced == FORCE_OPEN:
        c.refuse_until_us = b.forced_until_us if b.forced_until_us else EVER_US
    if b.state == BRK_CLOSED and c.shed <= 0 and c.ramp >= 1:
        word |= WORD_PLAIN
    brk_store(&c.word, word)
    brk_store(&c.lock, 0)


cdef void event_put(const BreakerView *v, uint32_t before) noexcept nogil:
    cdef const BreakerCore *b = &v.cell.core
    cdef BreakerEvent *e
    cdef uint64_t serial
    if v.events == NULL:
        return
    serial = brk_add64(&v.events.head, 1)
    e = &v.events.ring[serial % BREAKER_EVENTS]
    brk_store64(&e.serial, 0)
    e.at_us, e.which, e.generation, e.process = b.now_us, v.which, b.generation, v.process
    e.was, e.to, e.why, e.forced = before & 3, b.state, b.why, b.forced
    e.figures = b.moved_on
    brk_store64(&e.serial, serial)


# ---- admission ----------------------------------------------------------------------------------------------------

cdef int cell_refuse(const BreakerView *v, int why) noexcept nogil:
    v.lane.refused[why] += 1
    return why


cdef int cell_look(const BreakerView *v, int64_t now_us, double chance, uint32_t tier, PermitRef *permit) noexcept nogil:
    """cell_admit, where somebody may be refused."""
    cdef BreakerCell *c = v.cell
    cdef uint32_t word = brk_load(&c.word), second
    cdef double share
    cdef int verdict
    permit.live = 0
    if word & 3 == BRK_CLOSED:
        share = c.ramp
        if share < 1:
            second = <uint32_t>(now_us // 1000000)
            if c.ramp_second != second:
                c.ramp_second = second
                c.ramp_passed = 0
            if c.ramp_passed >= c.core.rules.ramp_min_rps:
                if chance >= share:
                    return cell_refuse(v, BRK_REFUSED_RAMP)
                chance /= share                  # given that it passed, evenly spread again
            brk_add32(&c.ramp_passed, 1)
        share = c.shed
        if tier == 2:
            share = fmin(1.0, 2 * share)
        elif tier == 0:
            share = fmax(0.0, 2 * share - 1)
        if chance < share:
            return cell_refuse(v, BRK_REFUSED_SHED)
        return cell_grant(v, word, now_us, permit)
    if word & 3 == BRK_OPEN and now_us < c.refuse_until_us:
        return cell_refuse(v, BRK_REFUSED_OPEN)
    if not cell_lock(c, v.process):
        return cell_refuse(v, BRK_REFUSED_PROBES)
    breaker_advance(&c.core, now_us)
    if c.core.state == BRK_CLOSED:               # by another, in between
        cell_unlock(v)
        return cell_admit(v, now_us, chance, tier, permit)
    verdict = breaker_probe(&c.core, <int64_t>(c.core.rules.probe_lease_s * 1e6), v.process, permit)
    c.granted += verdict == BRK_ADMITTED
    cell_unlock(v)
    return verdict if verdict == BRK_ADMITTED else cell_refuse(v, verdict)


cdef bint cell_would_admit(const BreakerCell *c, int64_t now_us) noexcept nogil:
    """Would somebody be admitted now? For the choice among several; asks for nothing."""
    cdef uint32_t word = brk_load(&c.word)
    if word & 3 == BRK_CLOSED:
        return True
    if word & 3 == BRK_OPEN:
        return now_us >= c.refuse_until_us
    return breaker_probes_out(&c.core) < c.core.rules.probes


# ---- results ------------------------------------------------------------------------------------------------------

cdef bint cell_end(const BreakerView *v, PermitRef *permit, int outcome, int64_t latency_us, int64_t now_us) noexcept nogil:
    """End a permit, in whatever state the breaker is. False: it was ended before, or its lease ran out. After the end of a probe the caller
    folds, so that its verdict counts at once."""
    cdef BreakerCell *c = v.cell
    cdef BreakerLane *l = v.lane
    cdef uint32_t word, slot, serial = permit.live
    if serial == 0:
        return False
    permit.live = 0
    if permit.lease:
        if not lease_drop(&c.core.lease[permit.lease - 1], permit.generation, serial):
            l.stale += outcome != OUTCOME_CANCEL
            return False
        l.probes_ended += 1
    word = brk_load(&c.word)
    slot = permit.generation & 1
    if outcome == OUTCOME_CANCEL:
        l.cancelled += 1
        l.uncounted += permit.generation == word >> WORD_GENERATION and <int64_t>permit.started_us >= c.issued_us
        return True
    if outcome == OUTCOME_SUCCESS and c.latency_limit_us and latency_us > c.latency_limit_us:
        outcome = OUTCOME_PRESSURE
    if outcome == OUTCOME_SUCCESS:
        l.succeeded += 1
    else:
        l.failed += 1
    if permit.generation != word >> WORD_GENERATION:
        l.stale += 1
        return True
    c.touched = 1
    if outcome == OUTCOME_SUCCESS:
        l.ok[slot] += 1
        l.cells[histogram_cell(<uint64_t>latency_us)] += 1
        if c.slow_limit_us and latency_us > c.slow_limit_us:
            l.slow += 1
            l.pressure[slot] += c.slow_weight
        return True
    bad_add(c, l, slot, now_us)
    if outcome == OUTCOME_PRESSURE:
        l.pressure[slot] += 1000
        l.cells[histogram_cell(<uint64_t>latency_us)] += 1
    return True


cdef void bad_add(BreakerCell *c, BreakerLane *l, uint32_t slot, int64_t now_us) noexcept nogil:
    if l.bad_epoch != c.epoch:
        l.bad_epoch = c.epoch
        l.first_bad_us = now_us
    l.bad[slot] += 1


cdef void cell_blame(const BreakerView *v, int64_t now_us) noexcept nogil:
    """A failure that showed after the permit had been a success."""
    v.lane.blamed += 1
    v.cell.touched = 1
    bad_add(v.cell, v.lane, brk_load(&v.cell.word) >> WORD_GENERATION & 1, now_us)


# ---- folding ------------------------------------------------------------------------------------------------------

cdef void lanes_forget(const BreakerView *v) noexcept nogil:
    """A new generation: what lanes hold by now under its bit came late, of an older one."""
    cdef uint32_t w, slot = v.cell.core.generation & 1
    cdef BreakerLane *l
    for w in range(v.workers):
        l = cell_lane(v, w)
        l.seen_ok[slot], l.seen_bad[slot], l.seen_pressure[slot] = l.ok[slot], l.bad[slot], l.pressure[slot]
        l.seen_admitted, l.seen_uncounted = l.admitted, l.uncounted


cdef void lanes_sum(const BreakerView *v) noexcept nogil:
    """The core's counts become the sums of all lanes."""
    cdef BreakerCore *b = &v.cell.core
    cdef BreakerLane *l
    cdef uint32_t w
    cdef uint64_t count, out, ended, probes = 0
    b.in_flight = b.admitted = b.succeeded = b.failed = b.cancelled = b.slow = b.stale = 0
    for w in range(v.workers):
        l = cell_lane(v, w)
        # ends before beginnings: a lane that moves on meanwhile shows one too many out, never one too few
        ended = l.succeeded + l.failed + l.cancelled - l.probes_ended + l.expired
        probes += l.probes_ended
        count = l.admitted
        out = count - ended
        b.in_flight += out if <int64_t>out > 0 else 0
        b.admitted += count
        b.succeeded += l.succeeded
        b.failed += l.failed
        b.cancelled += l.cancelled
        b.slow += l.slow
        b.stale += l.stale
    b.admitted += v.cell.granted
    out = v.cell.granted - b.expired
    b.in_flight += out - probes if out > probes else 0


cdef uint64_t news(const uint64_t *count, uint64_t *seen) noexcept nogil:
    cdef uint64_t now = count[0], new = now - seen[0]
    seen[0] = now
    return new


cdef void lanes_gather(const BreakerView *v, BreakerBatch *batch) noexcept nogil:
    """What is new in all lanes."""
    cdef BreakerCore *b = &v.cell.core
    cdef BreakerLane *l
    cdef uint32_t w, i, n, slot = b.generation & 1
    cdef uint64_t bad
    batch.ok = batch.bad = batch.pressure = 0
    batch.admitted = batch.uncounted = 0
    batch.first_bad_us = 0
    for w in range(v.workers):
        l = cell_lane(v, w)
        batch.ok += news(&l.ok[slot], &l.seen_ok[slot])
        bad = news(&l.bad[slot], &l.seen_bad[slot])
        batch.bad += bad
        if bad and l.bad_epoch == v.cell.epoch and (batch.first_bad_us == 0 or l.first_bad_us < batch.first_bad_us):
            batch.first_bad_us = l.first_bad_us
        batch.pressure += news(&l.pressure[slot], &l.seen_pressure[slot]) / 1000.0
        batch.uncounted += news(&l.uncounted, &l.seen_uncounted)
        batch.admitted += news(&l.admitted, &l.seen_admitted)
        if l.succeeded == l.seen_succeeded and l.failed == l.seen_failed:
            continue
        l.seen_succeeded, l.seen_failed = l.succeeded, l.failed
        for i in range(HISTOGRAM_CELLS):
            n = l.cells[i]
            if n != l.seen_cells[i]:
                if b.state == BRK_CLOSED:
                    b.young[i] += n - l.seen_cells[i]
                l.seen_cells[i] = n


cdef void level_look(BreakerCell *c) noexcept nogil:
    """The level of degradation follows the score: up after half a second, down after five at a tenth less. After a pause without calls the score counts
    as low since a window after the last look, for it fades in about that time: nobody needs to call for the level to fall."""
    cdef BreakerCore *b = &c.core
    cdef double score = breaker_score(b)
    cdef int64_t low_us = c.level_seen_us + <int64_t>(b.rules.window_s * 1e6)
    c.level_seen_us = b.now_us
    if b.state != BRK_CLOSED:
        level_move(c, 2)
        return
    if c.level < 2 and score >= LEVEL_SCORE[c.level + 1]:
        if c.level_up_us == 0:
            c.level_up_us = b.now_us
        elif b.now_us - c.level_up_us >= LEVEL_UP_US:
            level_move(c, 2 if score >= LEVEL_SCORE[2] else 1)
    else:
        c.level_up_us = 0
    if c.level and score < LEVEL_SCORE[c.level] - 0.1:
        if c.level_down_us == 0:
            c.level_down_us = low_us if low_us < b.now_us else b.now_us
        low_us = c.level_down_us
        if b.now_us - low_us >= LEVEL_DOWN_US:
            level_move(c, c.level - 1)
            if c.level and score < LEVEL_SCORE[c.level] - 0.1:
                c.level_down_us = low_us + LEVEL_DOWN_US
                if b.now_us - c.level_down_us >= LEVEL_DOWN_US:
                    level_move(c, c.level - 1)
    else:
        c.level_down_us = 0


cdef void level_move(BreakerCell *c, uint32_t to) noexcept nogil:
    if c.level != to:
        c.level_since_us = c.core.now_us
    c.level = to
    c.level_up_us = c.level_down_us = 0


cdef void cell_fold_locked(const BreakerView *v, int64_t now_us, double chance, bint may_open) noexcept nogil:
    """Bring the core up to now, from all lanes. chance is from [0, 1)."""
    cdef BreakerCell *c = v.cell
    cdef BreakerBatch batch
    c.touched = 0
    lanes_sum(v)
    lanes_gather(v, &batch)
    batch.may_open = may_open
    breaker_batch(&c.core, &batch, now_us)
    breaker_jitter(&c.core, chance)
    level_look(c)
    c.due_us = now_us + BREAKER_TICK_US
    c.epoch += 1


cdef bint cell_fold(const BreakerView *v, int64_t now_us, double chance, bint may_open) noexcept nogil:
    """Fold, unless somebody else is at it. may_open: it may leave CLOSED."""
    if not cell_lock(v.cell, v.process):
        return False
    cell_fold_locked(v, now_us, chance, may_open)
    cell_unlock(v)
    return True


cdef bint cell_eject_locked(const BreakerView *v, int64_t now_us, double chance) noexcept nogil:
    if not breaker_eject(&v.cell.core):
        return False
    breaker_jitter(&v.cell.core, chance)
    return True


# ---- control ------------------------------------------------------------------------------------------------------

cdef void cell_use(BreakerView *v, const BreakerRules *rules, uint64_t identity, int64_t now_us) noexcept nogil:
    """Follow these rules from now on (NULL: none). State and what was learned stay, unless it is for something else by now."""
    cdef BreakerCell *c = v.cell
    cdef BreakerCore *b = &c.core
    cdef uint64_t expired
    cdef uint32_t i, generation, serial
    v.on = rules != NULL
    if rules == NULL or (c.on and c.identity == identity and memcmp(&b.rules, rules, sizeof(BreakerRules)) == 0):
        return
    if not cell_lock_wait(c, v.process):
        v.on = c.on
        return
    if c.on and c.identity == identity:
        b.rules = rules[0]
        breaker_advance(b, now_us)
    else:
        expired, generation, serial = b.expired, b.generation, b.lease_serial
        for i in range(LEASES):
            expired += b.lease[i].serial != 0
        breaker_init(b, rules, now_us)
        b.expired, b.generation, b.lease_serial = expired, generation + (c.on != 0), serial
        c.word = b.generation << WORD_GENERATION     # no transition to tell of
        lanes_forget(v)
        c.since_us = c.level_since_us = now_us
        c.level = 0
        c.identity = identity
        c.due_us = now_us + BREAKER_TICK_US
        c.on = 1
    cell_unlock(v)


cdef void cell_retire(const BreakerView *v, BreakerLane *lane, uint32_t process, int64_t now_us) noexcept nogil:
    """The process of a lane died: its lock, its probes and its permits are taken back."""
    cdef BreakerCell *c = v.cell
    cdef BreakerCore *b = &c.core
    cdef uint64_t ended
    cdef uint32_t i, serial
    if brk_load(&c.lock) == process:             # it died in the middle: what it left is brought in order
        if b.state > BRK_HALF_OPEN:
            b.state = BRK_CLOSED
        b.generation += 1
        b.evidence = fmin(b.evidence, b.bar)
        b.leases = LEASES                        # counted anew by the next who looks
        c.word = b.generation << WORD_GENERATION | (c.word & 7)
        lanes_forget(v)
        if b.state != c.word & 3:                # a transition of which nobody was told
            c.word ^= 1 << WORD_GENERATION
        brk_store(&c.lock, v.process)
    elif not cell_lock_wait(c, v.process):
        return
    for i in range(LEASES):
        serial = b.lease[i].serial
        if serial and b.lease[i].owner == process and brk_cas(&b.lease[i].serial, serial, 0):
            b.expired += 1
    ended = lane.succeeded + lane.failed + lane.cancelled - lane.probes_ended + lane.expired
    if lane.admitted > ended:
        lane.expired += lane.admitted - ended
    cell_unlock(v)


cdef void cell_force(const BreakerView *v, int to, int64_t now_us, int64_t for_us) noexcept nogil:
    """As breaker_force; to -1 is breaker_reset."""
    if not cell_lock_wait(v.cell, v.process):
        return
    if to < 0:
        breaker_reset(&v.cell.core, now_us)
    else:
        breaker_force(&v.cell.core, to, now_us, for_us)
    level_look(v.cell)
    cell_unlock(v)


cdef void cell_hint(const BreakerView *v, int64_t now_us) noexcept nogil:
    """An active check passed."""
    if cell_lock_wait(v.cell, v.process):
        breaker_hint(&v.cell.core, now_us)
        cell_unlock(v)


# ---- explaining ---------------------------------------------------------------------------------------------------

cdef dict cell_snapshot(const BreakerView *v, int64_t now_us):
    """Every figure as of now."""
    cdef BreakerCell *c = v.cell
    cdef BreakerCore *b = &c.core
    cdef BreakerLane *l
    cdef uint32_t w, i
    cdef uint64_t lost = 0, blamed = 0
    cdef uint64_t refused[5]
    if cell_lock_wait(c, v.process):
        lanes_sum(v)
        breaker_advance(b, now_us)
        breaker_measure(b)
        level_look(c)
        cell_unlock(v)
    for i in range(5):
        refused[i] = 0
    for w in range(v.workers):
        l = cell_lane(v, w)
        lost += l.expired
        blamed += l.blamed
        for i in range(5):
            refused[i] += l.refused[i]
    return {
        "state": STATE_WORDS[b.state], "since_s": (now_us - c.since_us) / 1e6, "forced": FORCE_WORDS[b.forced],
        "forced_remaining_s": max(0.0, (b.forced_until_us - now_us) / 1e6) if b.forced_until_us else 0.0, "level": c.level,
        "level_since_s": (now_us - c.level_since_us) / 1e6, "generation": b.generation, "why": WHY_WORDS[b.why], "in_flight": b.in_flight,
        "calls": b.n, "failure_ratio": breaker_ratio(b.f, b.n), "pressure_ratio": breaker_ratio(b.p, b.n), "threshold": b.threshold,
        "evidence": b.evidence, "evidence_needed": b.bar, "p99_s": b.p99_s, "slow_limit_s": b.slow_limit_s, "baseline_p99_s": b.baseline_p99_s,
        "baseline_failure_ratio": b.baseline_failure, "saturation": breaker_saturation(b), "score": breaker_score(b),
        "shed_probability": c.shed, "admit_ratio": c.ramp,
        "open_remaining_s": breaker_retry_after_us(b) / 1e6 if b.state == BRK_OPEN else 0.0, "opens": b.opens, "backoff_level": b.level,
        "probes_in_flight": breaker_probes_out(b), "admitted": b.admitted, "succeeded": b.succeeded, "failed": b.failed,
        "cancelled": b.cancelled, "expired": b.expired + lost, "slow": b.slow, "stale": b.stale, "blamed": blamed,
        "refused_open": refused[<int>BRK_REFUSED_OPEN], "refused_probe_limit": refused[<int>BRK_REFUSED_PROBES],
        "refused_shed": refused[<int>BRK_REFUSED_SHED], "refused_ramp": refused[<int>BRK_REFUSED_RAMP], "illegal": b.illegal,
    }


cdef dict event_words(const BreakerEvent *e):
    """One transition, as plain data; at_us is of CLOCK_MONOTONIC."""
    cdef const BreakerFigures *f = &e.figures
    return {"from": STATE_WORDS[e.was], "to": STATE_WORDS[e.to], "reason": WHY_WORDS[e.why], "generation": e.generation, "at_us": e.at_us,
            "failure_ratio": round(f.failure_ratio, 4), "pressure_ratio": round(f.pressure_ratio, 4), "calls": round(f.n, 1),
            "evidence": round(f.evidence, 2), "evidence_needed": round(f.bar, 2), "p99_s": round(f.p99_s, 6),
            "saturation": round(f.saturation, 4), "score": round(f.score, 4)}
