# Level 2. The adaptive breaker: states, edges, permits, evidence. No I/O, no clock, no allocation: callers give `now_us` and chances.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum BreakerState: BRK_CLOSED, BRK_OPEN, BRK_HALF_OPEN
cdef enum BreakerRefusal: BRK_ADMITTED, BRK_REFUSED_OPEN, BRK_REFUSED_PROBES, BRK_REFUSED_SHED, BRK_REFUSED_RAMP
cdef enum BreakerOutcome: OUTCOME_SUCCESS, OUTCOME_FAILURE, OUTCOME_PRESSURE, OUTCOME_CANCEL     # pressure: timeout, overload
cdef enum BreakerWhy: WHY_NONE, WHY_FAILURES, WHY_STALL, WHY_SCORE, WHY_PROBE, WHY_RECOVERED, WHY_PROBE_FAILED, WHY_FORCED, WHY_RESET
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
    int64_t until_us             # 0 = free; times given by callers are above 0
    uint32_t generation
    uint32_t serial

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
    uint32_t leases              # probes out, of any generation
    uint32_t illegal             # moves refused: always 0
    double n, f, p, evidence, bar, threshold, baseline_failure, baseline_p99_s, p99_s, slow_limit_s
    uint64_t in_flight, admitted, succeeded, failed, cancelled, expired, slow, stale, opens
    uint64_t refused[5]
    uint64_t samples             # in the histogram, as of the last breaker_measure
    uint32_t young[161]
    uint32_t old[161]
    Lease lease[64]

cdef void breaker_init(BreakerCore *b, const BreakerRules *rules, int64_t now_us) noexcept nogil
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
