# Level 5. The public breaker is the same code as the data plane's: its nogil core stands in _speedups/breaker_core.pxd.
from gwcore._speedups.breaker_core cimport (
    BRK_ADMITTED, BRK_OPEN, BRK_REFUSED_OPEN, BRK_REFUSED_PROBES, BRK_REFUSED_RAMP, BRK_REFUSED_SHED, BreakerCore,
    BreakerRules, FORCE_CLOSED, FORCE_NONE, FORCE_OPEN, OUTCOME_CANCEL, OUTCOME_FAILURE, OUTCOME_PRESSURE,
    OUTCOME_SUCCESS, PROBES_MAX, PermitRef, breaker_admit, breaker_advance, breaker_end, breaker_force, breaker_hint,
    breaker_init, breaker_jitter, breaker_measure, breaker_probes_out, breaker_ramp, breaker_ratio, breaker_reset,
    breaker_retry_after_us, breaker_saturation, breaker_score, breaker_shed, breaker_wants_chance,
)
