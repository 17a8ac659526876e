"""What a run comes to: time to detect, failed requests, good requests refused, time to recover."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bench.resilience.scenarios import Scenario
from bench.resilience.world import Request

GAP_S = 1.0  # an endpoint that gets nothing for so long is out (its share is ten requests)
STEP_S = 0.25
BAD = 0.05  # recovered: fewer than these refused or failed, in each second that follows


@dataclass
class Figures:
    """Counts are of the fault and what follows."""

    sent: int
    ok: int
    failed: int
    refused: int
    refused_good: float  # of those refused: would have succeeded
    detect_s: float | None  # from the beginning of the fault to the first protective act; None: there was none
    recover_s: float | None  # from its end; None: it does not end, or all is not well when the run ends
    p50_ms: float  # of good answers during the fault
    p99_ms: float
    failing_ms: float  # mean time of a bad answer

    @property
    def lost(self) -> float:
        """Failed, and refused in vain."""
        return self.failed + self.refused_good

    def plain(self) -> dict[str, Any]:
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in (asdict(self) | {"lost": self.lost}).items()}


def detect(s: Scenario, plan: list[Request], length: float) -> float | None:
    """The first refusal; where one endpoint alone is ill, the beginning of its first pause."""
    if s.one:
        times = sorted(t for r in plan for t, i in r.reached if i == 0)
        after = [0.0, *(t for t in times if 0 <= t < length), length]
        return next((a for a, b in zip(after, after[1:], strict=False) if b - a >= GAP_S * 100 / s.rate), None)
    return next((r.due for r in plan if r.due >= 0 and r.outcome == "refused"), None)


def recover(plan: list[Request], length: float, after: float) -> float | None:
    """The end of the last second in which more than a few were refused or failed. A fault's own late answers count, for clients wait for them."""
    last, at = 0.0, 0.0
    while at + 1 <= after:
        here = [r for r in plan if length + at <= r.due < length + at + 1 and r.outcome != "left"]
        if here and sum(r.outcome != "ok" for r in here) / len(here) >= BAD:
            last = at + 1
        at += STEP_S
    return None if last >= after - STEP_S else last


def figures(s: Scenario, plan: list[Request], length: float, after: float) -> Figures:
    counted = [r for r in plan if r.due >= 0]
    refused = [r for r in counted if r.outcome == "refused"]
    bad = [r.took for r in counted if r.outcome in ("refused", "failed") and r.took]
    good = sorted(r.took for r in counted if r.outcome == "ok" and r.due < length)
    return Figures(
        sent=len(counted),
        ok=sum(r.outcome == "ok" for r in counted),
        failed=sum(r.outcome == "failed" for r in counted),
        refused=len(refused),
        refused_good=sum(s.chance(r.due, length, r.fate) for r in refused),
        detect_s=detect(s, plan, length),
        recover_s=None if s.for_good else recover(plan, length, after),
        p50_ms=good[len(good) // 2] * 1000 if good else 0.0,
        p99_ms=good[int(len(good) * 0.99)] * 1000 if good else 0.0,
        failing_ms=sum(bad) / len(bad) * 1000 if bad else 0.0,
    )
