"""Models of `breaker` and `outlier`: the fields of gwcore.breaker.BreakerConfig, with durations as people write them."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from gwcore.breaker import BreakerConfig
from gwcore.config.base import Model
from gwcore.config.units import Duration

if TYPE_CHECKING:
    from gwcore.config.upstreams import Upstream

D = BreakerConfig()
APART = {"score", "classic_weights"}  # fields that a core has in another form


class BreakerRules(Model):
    window: Duration = D.window_s
    """Ratios and latencies are those of about this time; a call counts for less the older it is."""
    trip_failures: int = D.trip_failures
    """So many failures beyond what is usual open it."""
    trip_ratio: float = D.trip_ratio
    """Evidence rises only while more than this share fails."""
    trip_time: Duration = D.trip_time_s
    """And only when it has been rising for so long."""
    evidence: Duration = D.evidence_s
    """Evidence fades in about this time."""
    stall: Duration = D.stall_s
    """Open when nothing comes back for so long; `off` = never."""
    open: Duration = D.open_s
    """Before the first probe; doubles each time it opens again."""
    open_max: Duration = D.open_max_s
    """At most."""
    open_jitter: float = D.open_jitter
    """Spread of that time."""
    open_forget: Duration = D.open_forget_s
    """After so long in `closed` the doubling begins anew."""
    probes: int = D.probes
    """Requests let through when half open; so many of one outcome decide."""
    probe_lease: Duration = D.probe_lease_s
    """A probe that has not ended by then loses its place."""
    ramp: Duration = D.ramp_s
    """Once closed again, all are admitted after this time."""
    ramp_start: float = D.ramp_start
    """The share that is admitted at first."""
    ramp_min_rps: float = D.ramp_min_rps
    """So many a second pass in any case."""
    threshold_floor: float = D.threshold_floor
    """Pressure tolerated beyond what is usual, under stress."""
    threshold_ceiling: float = D.threshold_ceiling
    """The same, when all is well."""
    tighten_per_s: float = D.tighten_per_s
    """How fast the threshold falls under stress."""
    relax_per_s: float = D.relax_per_s
    """How fast it rises again."""
    min_volume: int = D.min_volume
    """Calls in the window below which ratios prove nothing."""
    baseline: Duration = D.baseline_s
    """What is usual is learned over this time."""
    baseline_max: float = D.baseline_max
    """No higher failure ratio is ever usual."""
    baseline_growth_per_s: float = D.baseline_growth_per_s
    """How fast the usual latency may rise."""
    slow_factor: float = D.slow_factor
    """A success is slow beyond this times the usual P99."""
    slow_min: Duration = D.slow_min_s
    """And never below this."""
    capacity: float = D.capacity
    """Requests at once that count as full; 0 = endpoints times `pool.max_connections`."""
    latency_limit: Duration = D.latency_limit_s
    """A success slower than this counts as a timeout; `off` = none."""
    score: Literal["adaptive", "classic"] = "adaptive"
    """`classic`: open by a weighted sum of P99, failures and saturation. It never opens on failures alone."""
    classic_latency: Duration = D.classic_latency_s
    """The P99 that counts as 1."""
    classic_weights: tuple[float, float, float] = D.classic_weights
    """Of P99, failure ratio and saturation."""
    classic_threshold: float = D.classic_threshold
    """Opens above this."""
    classic_step: float = D.classic_step
    """The share by which the threshold follows the score."""

    def config(self) -> BreakerConfig:
        """The same as gwcore.breaker has it; ValueError names the key that is wrong."""
        values: dict[str, Any] = {}
        for f in fields(BreakerConfig):
            key = f.name if f.name.endswith("_per_s") else f.name.removesuffix("_s")
            values[f.name] = getattr(self, key, 0.0)
        return BreakerConfig(**values)

    @model_validator(mode="after")
    def _valid(self) -> BreakerRules:
        try:
            self.config()
        except ValueError as why:
            words = [w.removesuffix("_s") if not w.endswith("_per_s") else w for w in str(why).split()]
            raise ValueError(" ".join(words)) from None
        return self


class Breaker(BreakerRules):
    shed_max: float = D.shed_max
    """At most this share of the requests is shed."""
    count_429: bool = False
    """An upstream's 429 counts as overload, like its 503."""


class Outlier(BreakerRules):
    trip_failures: int = 5
    """So many failures beyond what is usual eject it."""
    trip_time: Duration = 0.0
    """And only when evidence has been rising for so long."""
    open: Duration = 5.0
    """Before the first probe; doubles each time it is ejected again."""
    open_max: Duration = 60.0
    """At most."""
    above: float = Field(0.25, gt=0, le=1)
    """Ejected when its failure ratio lies so much above the median of the others, with `min_volume` calls."""
    max_out: float = Field(0.5, ge=0, lt=1)
    """At most this share of the endpoints is out, and never the last one."""


def core_rules(c: BreakerConfig, capacity: float) -> dict[str, Any]:
    """The same as the core has it; `capacity` where it sets none."""
    row: dict[str, Any] = {f.name: getattr(c, f.name) for f in fields(c) if f.name not in APART}
    latency, errors, saturation = c.classic_weights
    row.update(classic=int(c.score == "classic"), classic_w_latency=latency, classic_w_errors=errors)
    row.update(classic_w_saturation=saturation, capacity=c.capacity or capacity)
    return row


def rules(u: Upstream, endpoints: int) -> dict[str, Any]:
    """What the plan says of an upstream's breakers; `endpoints`: how many it has by now."""
    breaker, outlier = u.breaker or Breaker(), u.outlier or Outlier()
    most = float(u.pool.max_connections)
    limit = float(u.concurrency.bounds[2])  # 0 = none
    return {
        "breaker_on": int(u.breaker is not None),
        "outlier_on": int(u.outlier is not None),
        "count_429": int(breaker.count_429),
        "eject_most_pct": int(outlier.max_out * 100),
        "eject_above_pct": int(outlier.above * 100),
        "breaker": core_rules(breaker.config(), min(most * endpoints, limit or most * endpoints)),
        "outlier": core_rules(outlier.config(), most),
    }
