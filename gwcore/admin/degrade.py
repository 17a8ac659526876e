"""The operator's switch of the ladder, and what /status and /metrics say of promises."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client.core import GaugeMetricFamily

from gwcore.config.units import format_duration, parse_duration

if TYPE_CHECKING:
    from gwcore.supervisor import Supervisor

KINDS = ("route", "tier", "upstream")
LONGEST_S = 7 * 86400.0
HELP = "give one of route=, tier= and upstream=, and for= (10m, 2h; 7d at most), or state=off"


def switch(s: Supervisor, query: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """POST /degrade?route=…|tier=…|upstream=…&for=10m, or …&state=off: the answer and its status."""
    given = [k for k in KINDS if k in query]
    state = query.get("state", "on")
    if (
        set(query) - {*KINDS, "state", "for"}
        or len(given) != 1
        or state not in ("on", "off")
        or (state == "on") != ("for" in query)
    ):
        return {"error": HELP}, 422
    kind, name = given[0], query[given[0]]
    why = refusal(s, kind, name)
    if why:
        return {"error": why}, 404
    try:
        for_s = parse_duration(query["for"]) if state == "on" else 0.0
    except ValueError as bad:
        return {"error": str(bad)}, 422
    if state == "on" and not 0 < for_s <= LONGEST_S:
        return {"error": HELP}, 422
    if not s.segment.switch(kind, name, now_ms() + int(for_s * 1000) if for_s else 0):
        return {"error": "so many switches are on that there is no room for another; take one back with state=off"}, 409
    s.events.note(
        {
            "at": round(time.time(), 3),
            "event": "degrade_switched",
            "upstream": name if kind == "upstream" else "",
            "endpoint": "",
            "kind": kind,
            "name": name,
            "to": state,
            "reason": "operator",
            "for_s": for_s,
        }
    )
    return {"ok": True, "switches": switches(s)}, 200


def refusal(s: Supervisor, kind: str, name: str) -> str:
    """Why there is nothing to switch, or nothing."""
    c = s.config
    if kind == "tier":
        return (
            ""
            if name in ("P1", "P2")
            else "P0 is never degraded"
            if name == "P0"
            else f"there is no tier {name}; tiers are P0, P1 and P2"
        )
    if kind == "upstream":
        return "" if name in c.upstreams else f"there is no upstream {name}; /status lists them"
    route = next((r for r in c.routes if r.name == name), None)
    if route is None:
        return f"there is no route {name}; /status lists them"
    if len((route.degrade or c.degrade.of(route.tier)).steps) == 1:
        return f"route {name} has no step besides live (degrade.{route.tier}, or its own degrade): nothing would change"
    return ""


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def switches(s: Supervisor) -> list[dict[str, Any]]:
    """Those that are on: {kind, name, remaining_s}."""
    now = now_ms()
    return [
        {"kind": kind, "name": name, "remaining_s": round((until - now) / 1000, 1)}
        for kind, name, until in s.segment.switches()
        if until > now
    ]


def status(s: Supervisor) -> dict[str, Any]:
    """The report of promises as it is now."""
    s.attainment.take(time.time(), s.segment.sla())
    return s.attainment.report(s.config.tiers)


def metrics(s: Supervisor) -> Iterable[Any]:
    """By tier; by route there are counters, from which windows are worked out."""
    on = GaugeMetricFamily("gwcore_degrade_switched", "1 while an operator has switched to the ladder", labels=["kind", "name"])
    for row in switches(s):
        on.add_metric([row["kind"], row["name"]], 1)
    yield on
    objective = GaugeMetricFamily("gwcore_sla_objective_ratio", "Share of requests that a tier promises", labels=["tier"])
    latency = GaugeMetricFamily("gwcore_sla_latency_seconds", "Latency that a tier promises", labels=["tier"])
    labels = ["tier", "window"]
    attained = GaugeMetricFamily("gwcore_sla_attainment_ratio", "Share of requests that got what was promised", labels=labels)
    burn = GaugeMetricFamily("gwcore_sla_burn_rate", "How fast the error budget is used; at 1 it lasts exactly", labels=labels)
    left = GaugeMetricFamily("gwcore_sla_budget_left_ratio", "Share of the error budget that is left", labels=labels)
    for tier, found in status(s)["tiers"].items():
        objective.add_metric([tier], found["availability"])
        latency.add_metric([tier], found["latency_s"])
        for window, f in found["windows"].items():
            if f["requests"]:
                attained.add_metric([tier, window], f["attainment"])
                burn.add_metric([tier, window], f["burn_rate"])
                left.add_metric([tier, window], f["budget_left"])
    yield from (objective, latency, attained, burn, left)


def describe(rows: list[dict[str, Any]]) -> str:
    """Switches for people."""
    return (
        "\n".join(f"{r['kind']} {r['name']}: for {format_duration(round(r['remaining_s']))}" for r in rows)
        or "nothing is switched"
    )
