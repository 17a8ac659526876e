# Level 2. The adaptive breaker: states, edges, permits, evidence. No I/O, no clock, no allocation: callers give `now_us` and chances.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum BreakerState: BRK_CLOSED, BRK_OPEN, BRK_HALF_OPEN
cdef enum BreakerRefusal: BRK_ADMITTED, BRK_REFUSED_OPEN, BRK_REFUSED_PROBES, BRK_REFUSED_SHED, BRK_REFUSED_RAMP
cdef enum BreakerOutcome: OUTCOME_SUCCESS, OUTCOME_FAILURE, OUTCOME_PRESSURE, OUTCOME_CANCEL     # pressure: timeout, overload
cdef enum BreakerWhy: WHY_NONE, WHY_FAILURES, WHY_STALL, WHY_SCORE, WHY_PROBE, WHY_RECOVERED, WHY_PROBE_FAILED, WHY_FORCED, WHY_RESET, WHY_OUTLIER
cdef enum BreakerForce: FORCE_NONE, FORCE_OPEN, FORCE_CLOSED
cdef enum:
    PROBES_MAX = 32
    LEASES = 64
    HIST = 161

cdef struct BreakerRules:        # BreakerConfig; times in seconds
    double window_s, trip_ratio, trip_time_s, evidence_s, stall_s, open_s, open_max_s, open_jitter, open_forget_s, probe_lease_s
    double ramp_s, ramp_start, ramp_min_rps, threshold_floor, threshold_ceiling, tighten_per_s, relax_per_s, shed_max
    double baseline_s, baseline_max, baseline_growth_per_s, slow_factor, slow_min_s, capacity, latency_limit_s
    double classic_latency_s, classic_w_latency, classic_w_errors, classic_w_saturation, classic_threshold, classic_step
    uint32_t trip_failures, probes, min_volume, classic

cdef struct PermitRef:           # 16 bytes, embedded in what holds it
    uint32_t generation
    uint16_t lease               # place + 1 in the lease table; 0 = no probe
    uint16_t live                # a serial number until it is ended, then 0
    uint64_t started_us

cdef struct Lease:
    int64_t until_us
    uint32_t generation
    uint32_t serial              # 0 = the place is free; who swaps a serial for 0 has given it back, once
    uint32_t owner               # for the caller: who holds it
    uint32_t unused

cdef struct BreakerFigures:      # what a transition was decided on
    double failure_ratio, pressure_ratio, n, evidence, bar, p99_s, saturation, score

cdef struct BreakerBatch:        # results of a tick, whose order is lost
    double ok, bad, pressure     # of the present generation
    uint64_t admitted            # without probes
    uint64_t uncounted           # cancelled, of those that were issued since the last result
    int64_t first_bad_us         # 0 = not known
    bint may_open                # else failures are not held against it, and it does not leave CLOSED

cdef struct BreakerCore:
    BreakerRules rules
    uint8_t state                # BreakerState; breaker_move alone writes it
    uint8_t forced
    uint8_t was                  # of the last transition
    uint8_t why
    uint8_t wants_jitter         # an open interval began without its jitter: breaker_jitter
    uint32_t generation
    int64_t now_us               # the latest time seen
    int64_t folded_us
    int64_t change_us            # evidence began to rise
    int64_t issued_us            # first permit since the last result
    int64_t opened_us
    int64_t open_until_us
    int64_t closed_us            # closed since; 0 = from the start
    int64_t ramp_from_us         # 0 = no ramp
    int64_t ramp_second
    int64_t half_us              # the younger half of the histogram began
    int64_t forced_until_us
    uint32_t ramp_passed
    uint32_t issued
    uint32_t level
    uint32_t probes_ok, probes_bad
    uint32_t lease_serial
    uint32_t leases              # probes out, of any generation (at least: those that end elsewhere are told of later)
    uint32_t illegal             # moves refused: always 0
    double limit                 # the present concurrency limit, which is the capacity if it is lower; 0 = none
    double n, f, p, evidence, bar, threshold, baseline_failure, baseline_p99_s, p99_s, slow_limit_s
    uint64_t in_flight, admitted, succeeded, failed, cancelled, expired, slow, stale, opens
    uint64_t refused[5]
    uint64_t samples             # in the histogram, as of the last breaker_measure
    BreakerFigures moved_on      # of the last transition
    uint32_t young[161]
    uint32_t old[161]
    Lease lease[64]

cdef void breaker_init(BreakerCore *b, const BreakerRules *rules, int64_t now_us) noexcept nogil
cdef int breaker_probe(BreakerCore *b, int64_t lease_us, uint32_t owner, PermitRef *permit) noexcept nogil
cdef bint lease_drop(Lease *lease, uint32_t generation, uint32_t serial) noexcept nogil
cdef void breaker_batch(BreakerCore *b, const BreakerBatch *batch, int64_t now_us) noexcept nogil
cdef bint breaker_eject(BreakerCore *b) noexcept nogil
cdef int breaker_admit(BreakerCore *b, int64_t now_us, double chance, int64_t lease_us, PermitRef *permit) noexcept nogil
cdef bint breaker_end(BreakerCore *b, PermitRef *permit, int outcome, int64_t latency_us, int64_t now_us) noexcept nogil
cdef void breaker_measure(BreakerCore *b) noexcept nogil
cdef void breaker_fold(BreakerCore *b, int64_t now_us) noexcept nogil
cdef void breaker_advance(BreakerCore *b, int64_t now_us) noexcept nogil
cdef void breaker_jitter(BreakerCore *b, double chance) noexcept nogil
cdef bint breaker_wants_chance(const BreakerCore *b) noexcept nogil
cdef void breaker_force(BreakerCore *b, int to, int64_t now_us, int64_t for_us) noexcept nogil
cdef void breaker_reset(BreakerCore *b, int64_t now_us) noexcept nogil
cdef void breaker_hint(BreakerCore *b, int64_t now_us) noexcept nogil
cdef double breaker_ratio(double part, double n) noexcept nogil
cdef double breaker_shed(const BreakerCore *b) noexcept nogil
cdef double breaker_score(const BreakerCore *b) noexcept nogil
cdef double breaker_saturation(const BreakerCore *b) noexcept nogil
cdef double breaker_ramp(const BreakerCore *b) noexcept nogil
cdef uint32_t breaker_probes_out(const BreakerCore *b) noexcept nogil
cdef int64_t breaker_retry_after_us(const BreakerCore *b) noexcept nogil

cdef extern from * nogil:
    """
    static inline int brk_cas(uint32_t *p, uint32_t was, uint32_t to) {
        return __atomic_compare_exchange_n(p, &was, to, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    }
    #define brk_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define brk_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    """
    bint brk_cas(uint32_t *p, uint32_t was, uint32_t to)
    uint32_t brk_load(const uint32_t *p)
    void brk_store(uint32_t *p, uint32_t v)
