"""The adaptive circuit breaker, for any asyncio or threaded program. The data plane runs the same core (breaker.pxd)."""
import random
import time
from dataclasses import dataclass, fields
from enum import Enum

cimport cython
from libc.math cimport fmax, fmin
from libc.stdint cimport int64_t, uint32_t

from gwcore._speedups.sys cimport CLOCK_MONOTONIC, clock_gettime, timespec


class State(Enum):
    """CLOSED admits, OPEN refuses, HALF_OPEN admits a few probes."""
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


FAILURE_KINDS = ("connect", "tls", "timeout", "reset", "status", "overload", "invalid", "error")
STATES = (State.CLOSED, State.OPEN, State.HALF_OPEN)
REFUSALS = (None, "open", "probe_limit", "shed", "ramp")
REASONS = (None, "failures", "stall", "score", "probe", "recovered", "probe_failed", "forced", "reset", "outlier")
PRESSURE = frozenset(("timeout", "overload"))


@dataclass(frozen=True)
class BreakerConfig:
    """Times in seconds, ratios from 0 to 1. A value out of range is a ValueError that names the field."""
    window_s: float = 5.0
    trip_failures: int = 10
    trip_ratio: float = 0.8
    trip_time_s: float = 0.25
    evidence_s: float = 30.0
    stall_s: float = 5.0
    open_s: float = 1.0
    open_max_s: float = 5.0
    open_jitter: float = 0.2
    open_forget_s: float = 60.0
    probes: int = 3
    probe_lease_s: float = 10.0
    ramp_s: float = 3.0
    ramp_start: float = 0.2
    ramp_min_rps: float = 10.0
    threshold_floor: float = 0.05
    threshold_ceiling: float = 0.20
    tighten_per_s: float = 0.05
    relax_per_s: float = 0.02
    shed_max: float = 0.8
    min_volume: int = 20
    baseline_s: float = 60.0
    baseline_max: float = 0.2
    baseline_growth_per_s: float = 0.02
    slow_factor: float = 3.0
    slow_min_s: float = 0.1
    capacity: float = 0.0
    latency_limit_s: float = 0.0
    score: str = "adaptive"
    classic_latency_s: float = 0.5
    classic_weights: tuple = (0.3, 0.2, 0.5)
    classic_threshold: float = 0.7
    classic_step: float = 0.05

    def __post_init__(self):
        positive = {"window_s", "evidence_s", "open_s", "open_max_s", "probe_lease_s", "baseline_s", "slow_factor", "classic_latency_s"}
        shares = {"open_jitter", "ramp_start", "threshold_floor", "threshold_ceiling", "shed_max", "baseline_max", "classic_threshold", "classic_step"}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "score":
                if value not in ("adaptive", "classic"):
                    raise ValueError("score must be 'adaptive' or 'classic'")
            elif f.name == "classic_weights":
                if len(value) != 3 or not all(isinstance(x, (int, float)) and x >= 0 for x in value):
                    raise ValueError("classic_weights must be three numbers of at least 0")
            elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
                raise ValueError(f"{f.name} must be a number of at least 0")
            elif f.name in positive and value <= 0:
                raise ValueError(f"{f.name} must be above 0")
            elif f.name in shares and value > 1:
                raise ValueError(f"{f.name} must be from 0 to 1")
        if not 0 < self.trip_ratio < 1:
            raise ValueError("trip_ratio must be above 0 and below 1")
        if self.threshold_floor > self.threshold_ceiling or self.threshold_ceiling + self.baseline_max >= 1:
            raise ValueError("threshold_ceiling must be at least threshold_floor, and below 1 - baseline_max")
        if self.open_max_s < self.open_s:
            raise ValueError("open_max_s must be at least open_s")
        for name, low, high in (("trip_failures", 1, 1000000), ("probes", 1, PROBES_MAX), ("min_volume", 1, 1000000)):
            if not isinstance(getattr(self, name), int) or not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be an integer from {low} to {high}")


class BreakerOpen(Exception):
    """The breaker refused. `name`, `reason` ("open", "probe_limit", "shed", "ramp") and `retry_after_s`."""

    def __init__(self, name, reason, retry_after_s):
        super().__init__(name, reason, retry_after_s)
        self.name, self.reason, self.retry_after_s = name, reason, retry_after_s

    def __str__(self):
        return f"{self.name}: refused, {self.reason}; retry after {self.retry_after_s:.3g}s"


cdef inline int64_t micros(double seconds) noexcept nogil:
    """Microseconds; negative and NaN read as 0, and 30 years are enough."""
    return <int64_t>(fmin(1e9, fmax(0.0, seconds)) * 1e6 + 0.5)


@cython.final
cdef class Refusal:
    """Falsy. `reason` as in BreakerOpen, `retry_after_s` at least 0."""
    cdef readonly str reason
    cdef readonly double retry_after_s

    def __bool__(self):
        return False

    def __repr__(self):
        return f"Refusal({self.reason!r}, retry_after_s={self.retry_after_s:.3g})"


@cython.final
@cython.freelist(64)
@cython.no_gc_clear          # or a cycle (a traceback holds frames) loses the breaker before __dealloc__ can give the place back
cdef class Permit:
    """Truthy. End it once: `success`, `failure` or `cancel`; a context manager ends it by what happens inside."""
    cdef PermitRef ref
    cdef Breaker breaker
    cdef double started_at

    @property
    def generation(self):
        return self.ref.generation

    @property
    def probe(self):
        return self.ref.lease != 0

    @property
    def started(self):
        """By the breaker's clock, in seconds."""
        return self.started_at

    cdef bint _end(self, int outcome, latency_s) except? -1:
        cdef Breaker b = self.breaker
        cdef int64_t now, latency = 0
        cdef uint32_t generation
        cdef bint done
        if not self.ref.live:
            return False
        if latency_s is not None:
            latency = micros(latency_s)
        now = b._now()
        if latency_s is None:
            latency = now - <int64_t>self.ref.started_us
        generation = b.core.generation       # no Python from here to the comparison: another thread could move the state
        done = breaker_end(&b.core, &self.ref, outcome, latency, now)
        if generation != b.core.generation:
            b._changed()
        return done

    def success(self, latency_s=None):
        return self._end(OUTCOME_SUCCESS, latency_s)

    def failure(self, kind="error", latency_s=None):
        if kind not in FAILURE_KINDS:
            raise ValueError(f"{kind!r} is not a kind of failure; use one of {', '.join(FAILURE_KINDS)}")
        return self._end(OUTCOME_PRESSURE if kind in PRESSURE else OUTCOME_FAILURE, latency_s)

    def cancel(self):
        return self._end(OUTCOME_CANCEL, None)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        if not self.ref.live:
            return False
        if kind is None:
            self.success()
        elif not issubclass(kind, Exception):        # CancelledError, GeneratorExit, KeyboardInterrupt
            self.cancel()
        elif issubclass(kind, TimeoutError):
            self.failure("timeout")
        elif issubclass(kind, ConnectionRefusedError):
            self.failure("connect")
        elif issubclass(kind, ConnectionError):
            self.failure("reset")
        else:
            self.failure("error")
        return False

    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, value, traceback):
        return self.__exit__(kind, value, traceback)

    def __dealloc__(self):
        if self.ref.live and self.breaker is not None:
            breaker_end(&self.breaker.core, &self.ref, OUTCOME_CANCEL, 0, self.breaker.core.now_us)


cdef class Breaker:
    """A private breaker. Any thread may call anything; nothing blocks, and there is no thread or timer of its own.

    clock returns seconds, rng a number from [0, 1). on_transition(breaker, was, to, reason) runs after a change, in the caller's thread;
    what it raises is dropped.
    """
    cdef BreakerCore core
    cdef readonly str name
    cdef readonly object config
    cdef object clock, rng, on_transition, __weakref__
    cdef bint own_clock
    cdef double origin, seconds              # of the caller's clock: its first reading, its latest
    cdef int64_t lease_us

    def __init__(self, str name, config=None, *, clock=time.monotonic, rng=random.random, on_transition=None):
        cdef BreakerRules r
        if self.config is not None:          # permits may be out: they would end in a breaker that knows nothing of them
            raise TypeError(f"{self.name}: a Breaker is initialised once; make another one, or use reset()")
        config = config or BreakerConfig()
        if not isinstance(config, BreakerConfig):
            raise TypeError("config must be a BreakerConfig")
        self.name, self.config, self.clock, self.rng, self.on_transition = name, config, clock, rng, on_transition
        self.own_clock = clock is time.monotonic
        self.seconds = self.origin = 0.0 if self.own_clock else clock()
        values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in ("score", "classic_weights")}
        wl, we, ws = config.classic_weights
        r = dict(values, classic=config.score == "classic", classic_w_latency=wl, classic_w_errors=we, classic_w_saturation=ws)
        self.lease_us = micros(config.probe_lease_s)
        breaker_init(&self.core, &r, self._now())

    cdef int64_t _now(self) except? -1:
        """The core's time: microseconds, above 0, never going back. Also sets self.seconds, the same by the caller's clock."""
        cdef timespec t
        cdef double seconds
        if self.own_clock:
            clock_gettime(CLOCK_MONOTONIC, &t)
            self.seconds = t.tv_sec + t.tv_nsec * 1e-9
            return <int64_t>t.tv_sec * 1000000 + t.tv_nsec // 1000
        seconds = self.clock()
        if self.seconds < seconds < self.origin + 1e9:
            self.seconds = seconds
        return 1000000 + micros(self.seconds - self.origin)

    cdef _touch(self):
        breaker_advance(&self.core, self._now())

    cdef _changed(self):
        """Tell of the transition that just was. Nothing of Python runs before it is read: another thread could cause the next."""
        was, to, why = STATES[self.core.was], STATES[self.core.state], REASONS[self.core.why]
        if self.core.wants_jitter:
            breaker_jitter(&self.core, self.rng())
        if self.on_transition is not None:
            try:
                self.on_transition(self, was, to, why)
            except Exception:
                pass

    def try_acquire(self, lease_s=None):
        """A Permit, or a Refusal (falsy). Never blocks, never raises."""
        cdef Permit permit = Permit.__new__(Permit)
        cdef Refusal refusal
        cdef int64_t lease_us = self.lease_us if lease_s is None else micros(lease_s)
        cdef double chance = self.rng() if breaker_wants_chance(&self.core) else 0.0
        cdef int64_t now = self._now()
        cdef uint32_t generation = self.core.generation      # no Python from here to the comparison, see _end
        cdef int verdict
        permit.started_at = self.seconds
        verdict = breaker_admit(&self.core, now, chance, lease_us, &permit.ref)
        permit.breaker = self
        if generation != self.core.generation:
            self._changed()
        if verdict == BRK_ADMITTED:
            return permit
        refusal = Refusal.__new__(Refusal)
        refusal.reason = REFUSALS[verdict]
        refusal.retry_after_s = breaker_retry_after_us(&self.core) / 1e6
        return refusal

    def acquire(self, lease_s=None):
        """A Permit; BreakerOpen when refused."""
        got = self.try_acquire(lease_s)
        if not got:
            raise BreakerOpen(self.name, got.reason, got.retry_after_s)
        return got

    cdef _act(self, int what, int64_t for_us):
        cdef int64_t now = self._now()
        cdef uint32_t generation = self.core.generation
        if what < 0:
            breaker_reset(&self.core, now)
        else:
            breaker_force(&self.core, what, now, for_us)
        if generation != self.core.generation:
            self._changed()

    def force(self, state, for_s=None):
        """Whatever the evidence: "open" refuses everything, "closed" admits everything, None decides again; for_s ends it by itself."""
        try:
            what = {"open": FORCE_OPEN, "closed": FORCE_CLOSED, None: FORCE_NONE}[state]
        except KeyError:
            raise ValueError("state must be 'open', 'closed' or None") from None
        if for_s is not None and not for_s > 0:
            raise ValueError("for_s must be above 0, or None for no end")
        self._act(what, 0 if for_s is None else max(1, micros(for_s)))

    def force_open(self):
        """OPEN until reset()."""
        self._act(FORCE_OPEN, 0)

    def reset(self):
        """CLOSED; ratios, evidence and back-off forgotten, baselines kept."""
        self._act(-1, 0)

    def hint_healthy(self):
        """An active check passed: the open interval ends, after at least 1 s."""
        breaker_hint(&self.core, self._now())

    @property
    def state(self):
        return STATES[self.core.state]

    @property
    def generation(self):
        return self.core.generation

    @property
    def in_flight(self):
        self._touch()
        return self.core.in_flight

    @property
    def score(self):
        self._touch()
        breaker_measure(&self.core)
        return breaker_score(&self.core)

    @property
    def failure_ratio(self):
        return breaker_ratio(self.core.f, self.core.n)

    @property
    def pressure_ratio(self):
        return breaker_ratio(self.core.p, self.core.n)

    @property
    def saturation(self):
        self._touch()
        return breaker_saturation(&self.core)

    @property
    def shed_probability(self):
        self._touch()
        return breaker_shed(&self.core)

    @property
    def admit_ratio(self):
        self._touch()
        return breaker_ramp(&self.core)

    def snapshot(self):
        """Every figure as of now."""
        cdef BreakerCore *b = &self.core
        self._touch()
        breaker_measure(b)
        out = {k: getattr(self, k) for k in ("name", "generation", "in_flight", "failure_ratio", "pressure_ratio", "saturation", "score", "shed_probability", "admit_ratio")}
        return dict(out, state=self.state.value, forced=(None, "open", "closed")[b.forced], threshold=b.threshold, evidence=b.evidence, evidence_needed=b.bar,
                    p99_s=b.p99_s, slow_limit_s=b.slow_limit_s, baseline_p99_s=b.baseline_p99_s, baseline_failure_ratio=b.baseline_failure,
                    open_remaining_s=breaker_retry_after_us(b) / 1e6 if b.state == BRK_OPEN else 0.0, opens=b.opens, backoff_level=b.level,
                    probes_in_flight=breaker_probes_out(b), admitted=b.admitted, succeeded=b.succeeded, failed=b.failed, cancelled=b.cancelled,
                    expired=b.expired, slow=b.slow, stale=b.stale, refused_open=b.refused[BRK_REFUSED_OPEN], refused_probe_limit=b.refused[BRK_REFUSED_PROBES],
                    refused_shed=b.refused[BRK_REFUSED_SHED], refused_ramp=b.refused[BRK_REFUSED_RAMP])
