"""/status: what runs, and how it fares, as plain data."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import gwcore
from gwcore._speedups.plane import sizes
from gwcore.admin import cache, degrade, resilience
from gwcore.admin.endpoints import endpoints
from gwcore.admin.figures import connection_figures, memory_by_kind

if TYPE_CHECKING:
    from gwcore.supervisor import Supervisor


def build(s: Supervisor) -> dict[str, Any]:
    """The whole status. No secret is in it."""
    snapshot = s.segment.snapshot()
    opens = s.opens.per_second()
    for name, upstream in snapshot["upstreams"].items():
        upstream.update(connection_figures(upstream, opens.get(name, 0.0)))
        upstream.update(resilience.status(s, name))
        waits = upstream["queue_seconds"]
        upstream["queue_mean_seconds"] = round(waits["sum"] / waits["count"], 6) if waits["count"] else 0.0
    workers = [
        {"number": slot.number, "pid": slot.pid, "plan": slot.version, "restarts": slot.restarts, "up": slot.up, **figures}
        for slot, figures in zip(s.crew.slots, snapshot["workers"], strict=True)
    ]
    return {
        "version": gwcore.__version__,
        "pid": os.getpid(),
        "uptime_s": round(time.time() - s.started, 1),
        "upgrades": s.upgrades,
        "state": s.state,
        "ready": s.state == "serving",
        "draining": s.state == "draining",
        "config": s.config_path,
        "plan": s.crew.plan.version,
        "listeners": [x.address for x in s.config.listeners],
        "warnings": [str(w) for w in s.loaded.warnings],
        "last_reload": s.last_reload,
        "workers": workers,
        "memory": {
            **memory_by_kind(snapshot["workers"]),
            "held": sum(w["held_bytes"] for w in snapshot["workers"]),
            "struct_each": sizes()["conn"],
        },
        "workers_draining": len(s.crew.elders),
        "names": s.discovery.status(),
        "tls": {**s.segment.tls_figures(), "tickets": s.tickets.status(), "certificates": s.certs.status()},
        "cache": cache.figures(s),
        "reasons": snapshot["reasons"],
        "routes": snapshot["routes"],
        "tiers": snapshot["tiers"],
        "sla": degrade.status(s),
        "degrade": degrade.switches(s),
        "compensation": s.compensation.figures(),
        "upstreams": snapshot["upstreams"],
        "endpoints": endpoints(s),
    }
