"""The state of each endpoint in one line, why, and since when: for /status and /metrics alike."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gwcore.health import Tally, Watched
    from gwcore.supervisor import Supervisor


def slow_start(since_ms: int, slow_start_s: float) -> int:
    """Percent of its weight that an endpoint has which came back at since_ms."""
    age = time.monotonic() - since_ms / 1000
    return 100 if age >= slow_start_s else int(10 + 90 * max(age, 0) / slow_start_s)


def state_of(s: Supervisor, upstream: str, watched: Watched, tally: Tally) -> tuple[str, str]:
    """State (unresolved, draining, down, ejected, up) and reason."""
    u = s.config.upstreams[upstream]
    place = watched.place
    if not place.ip and not place.path:
        return "unresolved", s.discovery.status().get(place.host, {}).get("failure") or "the name has no address"
    if place.endpoint.weight == 0:
        return "draining", "weight 0"
    if tally.drained:
        return "draining", "taken out by the admin interface"
    if tally.state == "down":
        return "down", tally.reason()
    ejected = s.breakers.snapshot(upstream, place.cell.partition("|")[2])
    if ejected and ejected["state"] != "closed":
        figures = f"failure ratio {ejected['failure_ratio']:.2f}, a probe in {ejected['open_remaining_s']:.1f} s"
        return "ejected", f"{ejected['why']}; {figures}" if ejected["state"] == "open" else "probes are under way"
    share = slow_start(tally.since_ms, u.slow_start) if tally.state == "back" else 100
    if share < 100:
        return "up", f"slow start {share} %"
    return "up", tally.reason() if watched.checker else "not checked"


def endpoints(s: Supervisor) -> dict[str, dict[str, dict[str, Any]]]:
    """By upstream and endpoint: {state, reason, since (unix time), checks, failures}."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for (upstream, name), watched in s.health.watched.items():
        if upstream not in s.config.upstreams:
            continue  # between two configurations
        tally = s.health.tallies[upstream, name]
        state, reason = state_of(s, upstream, watched, tally)
        out.setdefault(upstream, {})[name] = {
            "state": state,
            "reason": reason,
            "since": round(tally.since, 3),
            "checks": tally.checks,
            "failures": tally.failures,
        }
    return out
