from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Literal, final

class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"

FAILURE_KINDS: tuple[str, ...]
STATES: tuple[State, State, State]
REFUSALS: tuple[str | None, ...]
REASONS: tuple[str | None, ...]
PRESSURE: frozenset[str]

@dataclass(frozen=True)
class BreakerConfig:
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
    classic_weights: tuple[float, float, float] = (0.3, 0.2, 0.5)
    classic_threshold: float = 0.7
    classic_step: float = 0.05
    def __post_init__(self) -> None: ...

class BreakerOpen(Exception):
    name: str
    reason: str
    retry_after_s: float
    def __init__(self, name: str, reason: str, retry_after_s: float) -> None: ...

@final
class Refusal:
    @property
    def reason(self) -> str: ...
    @property
    def retry_after_s(self) -> float: ...
    def __bool__(self) -> Literal[False]: ...

@final
class Permit:
    @property
    def generation(self) -> int: ...
    @property
    def probe(self) -> bool: ...
    @property
    def started(self) -> float: ...
    def success(self, latency_s: float | None = None) -> bool: ...
    def failure(self, kind: str = "error", latency_s: float | None = None) -> bool: ...
    def cancel(self) -> bool: ...
    def __enter__(self) -> Permit: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> bool: ...
    async def __aenter__(self) -> Permit: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> bool: ...

class Breaker:
    def __init__(
        self,
        name: str,
        config: BreakerConfig | None = None,
        *,
        clock: Callable[[], float] = ...,
        rng: Callable[[], float] = ...,
        on_transition: Callable[[Breaker, State, State, str], Any] | None = None,
    ) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def config(self) -> BreakerConfig: ...
    @property
    def state(self) -> State: ...
    @property
    def generation(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def failure_ratio(self) -> float: ...
    @property
    def pressure_ratio(self) -> float: ...
    @property
    def saturation(self) -> float: ...
    @property
    def shed_probability(self) -> float: ...
    @property
    def admit_ratio(self) -> float: ...
    def try_acquire(self, lease_s: float | None = None) -> Permit | Refusal: ...
    def acquire(self, lease_s: float | None = None) -> Permit: ...
    def force(self, state: Literal["open", "closed"] | None, for_s: float | None = None) -> None: ...
    def force_open(self) -> None: ...
    def reset(self) -> None: ...
    def hint_healthy(self) -> None: ...
    def snapshot(self) -> dict[str, Any]: ...
