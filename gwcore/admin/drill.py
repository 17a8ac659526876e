"""POST, GET and DELETE /drill: requests of one route are made to fail for a bounded time, and what they got is told."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client.core import GaugeMetricFamily

from gwcore._speedups.drills import Drills
from gwcore.config.units import parse_duration

if TYPE_CHECKING:
    from gwcore.supervisor import Supervisor

FAULTS = ("503", "timeout", "slow")
LONGEST_S = 600.0
DELAY_MOST_S = 60.0
HELP = "give route=, fail=503|timeout|slow, and perhaps share= (10%), for= (30s; 10m at most) and, with fail=slow, delay= (1s; 60s at most)"


def parse_percent(text: str) -> float:
    """A share above 0, at most 1, from `10%`; ValueError otherwise."""
    m = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*%", text.strip())
    share = float(m[1]) / 100 if m else 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{text!r} is not a share of requests; write it with a percent sign, at most 100%: 10%")
    return share


def start(s: Supervisor, query: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """POST /drill?route=…&fail=…: the answer and its status."""
    fail = query.get("fail", "")
    if set(query) - {"route", "fail", "share", "for", "delay"} or "route" not in query or fail not in FAULTS:
        return {"error": HELP}, 422
    if "delay" in query and fail != "slow":
        return {"error": f"delay= is for fail=slow; {HELP}"}, 422
    try:
        share = parse_percent(query.get("share", "10%"))
        for_s, delay_s = parse_duration(query.get("for", "30s")), parse_duration(query.get("delay", "1s"))
    except ValueError as bad:
        return {"error": str(bad)}, 422
    if not 0 < for_s <= LONGEST_S or not 0 < delay_s <= DELAY_MOST_S:
        return {"error": HELP}, 422
    name = query["route"]
    route = next((r for r in s.config.routes if r.name == name), None)
    if route is None:
        return {"error": f"there is no route {name}; /status lists them"}, 404
    if route.respond is not None:
        return {"error": f"route {name} answers by itself, so nothing can fail"}, 422
    delay_ms = max(1, round(delay_s * 1000)) if fail == "slow" else 0
    try:
        number = Drills(s.segment).start(name, fail, share, max(1, round(for_s * 1000)), delay_ms)
    except ValueError as why:
        return {"error": str(why)}, 409
    note(s, name, "on", {"fail": fail, "share": share, "for_s": for_s})
    asyncio.get_running_loop().call_later(for_s, end, s, number)
    return {"ok": True, "drill": found(s, number)}, 200


def end(s: Supervisor, number: int) -> bool:
    """End a drill and tell so. False: it was ended before."""
    if not Drills(s.segment).stop(number):
        return False
    row = found(s, number)
    note(s, row["route"], "off", {k: row[k] for k in ("drawn", "live", "copy", "static", "refused", "left", "late", "unkept")})
    return True


def stop(s: Supervisor, query: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """DELETE /drill?route=…: draws no more of the route's requests."""
    if set(query) != {"route"}:
        return {"error": "give route="}, 422
    running = [row for row in rows(s) if row["route"] == query["route"] and row["remaining_s"]]
    if not running or not end(s, running[-1]["number"]):
        return {"error": f"no drill of route {query['route']} is under way"}, 404
    return {"ok": True, "drill": found(s, running[-1]["number"])}, 200


def note(s: Supervisor, route: str, to: str, figures: dict[str, Any]) -> None:
    event = {"at": round(time.time(), 3), "event": "drill", "upstream": "", "endpoint": "", "kind": "route", "name": route}
    s.events.note({**event, "to": to, "reason": "operator", **figures})


def rows(s: Supervisor) -> list[dict[str, Any]]:
    """The drills under way and the last ones before, with what the route's tier promises."""
    out = []
    for row in Drills(s.segment).list():
        route = next((r for r in s.config.routes if r.name == row["route"]), None)
        promise: dict[str, Any] = {"tier": "", "promise_s": 0.0, "steps": []}  # of a route that a reload has removed
        if route is not None:
            ladder = route.degrade or s.config.degrade.of(route.tier)
            promise = {
                "tier": route.tier,
                "promise_s": s.config.tiers.of(route.tier).latency,
                "steps": [x.kind for x in ladder.steps],
            }
        out.append({**row, **promise})
    return out


def found(s: Supervisor, number: int) -> dict[str, Any]:
    return next(row for row in rows(s) if row["number"] == number)


def metrics(s: Supervisor) -> Iterable[Any]:
    on = GaugeMetricFamily("gwcore_drill", "Share of a route's requests that a drill makes fail", labels=["route", "fail"])
    for row in rows(s):
        if row["remaining_s"]:
            on.add_metric([row["route"], row["fail"]], row["share"])
    yield on
