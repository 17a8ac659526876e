"""The state of each endpoint in one line, why, and since when: for /status and /metrics alike."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gwcore.health import Tally, Watched
    from gwcore.supervisor import Supervisor


def slow_start(since_ms: int, slow_start_s: float) -> int:
    """Percent of its weight that an endpoint has which came back at since_ms."""
    age = time.monotonic() - since_ms / 1000
    return 100 if age >= slow_start_s else int(10 + 90 * max(age, 0) / slow_start_s)


def place_of(watched: Watched) -> str:
    """The endpoint's name as breakers have it."""
    return watched.place.cell.split("|", 1)[1]


def ejection(s: Supervisor, upstream: str, place: str, breaker: dict[str, Any], siblings: list[float]) -> str:
    """Why an endpoint is ejected."""
    if breaker["forced"]:
        return "forced open by the admin interface"
    event = next(
        (e for e in reversed(s.events.ring) if (e["upstream"], e["endpoint"], e.get("to")) == (upstream, place, "open")), None
    )
    if event is None or "calls" not in event:
        told = f"{breaker['why']}"
    else:
        told = f"{event['reason']}: {event['failure_ratio']:.0%} of {event['calls']:.0f} calls failed".replace("%", " %")
    if siblings:
        told += f", siblings {statistics.median(siblings):.0%}".replace("%", " %")
    if breaker["state"] == "half_open":
        return told + "; probing"
    return (
        told + f"; next try in {breaker['open_remaining_s']:.1f} s"
        if breaker["open_remaining_s"]
        else told + "; next request probes"
    )


def state_of(s: Supervisor, upstream: str, watched: Watched, tally: Tally, breakers: dict[str, Any]) -> tuple[str, str, float]:
    """State (unresolved, draining, down, ejected, up), reason, and since when (unix time)."""
    u = s.config.upstreams[upstream]
    place = watched.place
    if not place.ip and not place.path:
        name = s.discovery.status().get(place.host, {})
        return "unresolved", name.get("failure") or "the name has no address", name.get("failed_since") or tally.since
    if place.endpoint.weight == 0:
        return "draining", "weight 0", tally.since
    if tally.drained:
        return "draining", "taken out by the admin interface", tally.since
    if tally.state == "down":
        return "down", tally.reason(), tally.since
    own = breakers.get(place_of(watched))
    if own and own["state"] != "closed":
        siblings = [b["failure_ratio"] for name, b in breakers.items() if name != place_of(watched)]
        return "ejected", ejection(s, upstream, place_of(watched), own, siblings), time.time() - own["since_s"]
    share = slow_start(tally.since_ms, u.slow_start) if tally.state == "back" else 100
    if share < 100:
        return "up", f"slow start {share} %", tally.since
    return "up", tally.reason() if watched.checker else "not checked", tally.since


def endpoints(s: Supervisor) -> dict[str, dict[str, dict[str, Any]]]:
    """By upstream and endpoint: {state, reason, since (unix time), checks, failures}."""
    s.take_events()
    out: dict[str, dict[str, dict[str, Any]]] = {}
    breakers: dict[str, dict[str, Any]] = {}
    for (upstream, name), watched in s.health.watched.items():
        if upstream not in s.config.upstreams:
            continue  # between two configurations
        if upstream not in breakers:
            mine = [place_of(w) for key, w in s.health.watched.items() if key[0] == upstream]
            breakers[upstream] = {place: b for place in mine if (b := s.breakers.snapshot(upstream, place))}
        tally = s.health.tallies[upstream, name]
        state, reason, since = state_of(s, upstream, watched, tally, breakers[upstream])
        out.setdefault(upstream, {})[name] = {
            "state": state,
            "reason": reason,
            "since": round(since, 3),
            "checks": tally.checks,
            "failures": tally.failures,
        }
    for upstream, found in out.items():
        if panics(found, s.config.upstreams[upstream].health):
            for e in found.values():
                if e["state"] in ("down", "ejected"):
                    e["reason"] += "; panic, so it gets requests all the same"
    return out


def panics(found: dict[str, dict[str, Any]], health: Any) -> bool:
    """Are so few usable that nothing is held against any? As upstream_survey decides in the data plane."""
    states = [e["state"] for e in found.values() if e["state"] not in ("unresolved", "draining")]
    sound = states.count("up")
    return sound < len(states) and (sound == 0 or sound < len(states) * (health.panic if health else 0.5))
