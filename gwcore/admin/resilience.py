"""What /status, /metrics and /breakers say of breakers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from gwcore.config.units import parse_duration

if TYPE_CHECKING:
    from gwcore.supervisor import Supervisor

BRIEF = (
    "state",
    "why",
    "since_s",
    "forced",
    "calls",
    "failure_ratio",
    "evidence",
    "evidence_needed",
    "in_flight",
    "opens",
    "open_remaining_s",
)
STATES = {"closed": 0, "open": 1, "half_open": 2}
GAUGES = {
    "score": "How ill an upstream is, 0 to 1",
    "level": "Level of degradation, 0 to 2",
    "failure_ratio": "Failures among the calls of the window",
    "pressure_ratio": "Timeouts and overload among the calls of the window",
    "threshold": "Pressure that is tolerated",
    "shed_probability": "Share of P1 that is shed",
    "saturation": "Requests out, of what the upstream can take",
    "in_flight": "Requests out",
}


def status(s: Supervisor, name: str) -> dict[str, Any]:
    """The breaker of an upstream and those of its endpoints."""
    out: dict[str, Any] = {"breaker": s.breakers.snapshot(name)}
    upstream = s.config.upstreams.get(name)
    known = {e.address for e in upstream.endpoints} if upstream else set()
    ejection = {}
    for endpoint in s.breakers.endpoints(name):
        figures = s.breakers.snapshot(name, endpoint) if endpoint.split("|")[0] in known else None
        if figures:
            ejection[endpoint] = {k: figures[k] for k in BRIEF}
    return {**out, "ejection": ejection}


def metrics(s: Supervisor, names: Iterable[str]) -> Iterable[Any]:
    s.take_events()
    found = {name: figures for name in names if (figures := s.breakers.snapshot(name))}
    state = GaugeMetricFamily("gwcore_breaker_state", "0 closed, 1 open, 2 half open", labels=["upstream"])
    refused = CounterMetricFamily(
        "gwcore_breaker_refused_total", "Requests that a breaker refused", labels=["upstream", "reason"]
    )
    opens = CounterMetricFamily("gwcore_breaker_opens_total", "Times that a breaker opened", labels=["upstream"])
    for name, b in found.items():
        state.add_metric([name], STATES[b["state"]])
        opens.add_metric([name], b["opens"])
        for why in ("open", "probe_limit", "shed", "ramp"):
            refused.add_metric([name, why], b[f"refused_{why}"])
    yield from (state, refused, opens)
    for key, text in GAUGES.items():
        gauge = GaugeMetricFamily(f"gwcore_breaker_{key}", text, labels=["upstream"])
        for name, b in found.items():
            gauge.add_metric([name], b[key])
        yield gauge
    moves = CounterMetricFamily(
        "gwcore_transitions_total", "State changes of breakers and endpoints", labels=["upstream", "endpoint", "to", "reason"]
    )
    for labels, n in s.events.counts.items():
        moves.add_metric(list(labels), n)
    yield moves


def force(s: Supervisor, query: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """POST /breakers?upstream=…&endpoint=…&state=open|closed|auto&for=30s: the answer and its status."""
    unknown = set(query) - {"upstream", "endpoint", "state", "for"}
    if unknown or "upstream" not in query or "state" not in query:
        return {"error": "give upstream=, state=open|closed|auto, and perhaps endpoint= and for= (30s, 5m)"}, 422
    upstream, endpoint, state = query["upstream"], query.get("endpoint", ""), query["state"]
    try:
        for_s = parse_duration(query["for"]) if "for" in query else 0.0
        done = s.breakers.force(state, upstream, endpoint, for_s)
    except ValueError as why:
        return {"error": str(why)}, 422
    if not done:
        what = f"endpoint {endpoint} of upstream {upstream}" if endpoint else f"upstream {upstream}"
        return {"error": f"{what} has no breaker; /status lists them"}, 404
    s.take_events()
    s.events.note(
        {
            "at": round(time.time(), 3),
            "event": "breaker_forced",
            "upstream": upstream,
            "endpoint": endpoint,
            "to": state,
            "reason": "operator",
            "for_s": for_s,
        }
    )
    return {"ok": True, "breaker": s.breakers.snapshot(upstream, endpoint)}, 200
