"""Ladders to the plan."""

from __future__ import annotations

import mimetypes
from typing import Any

from gwcore._speedups.plan import PARTS, STEPS
from gwcore.config.degrade import Ladder, Static, template_parts
from gwcore.config.schema import Config
from gwcore.config.tables import NO_ARRAY, NO_STR, Writer
from gwcore.config.tiers import NAMES

EARLIER_S = 0.005  # at least so much before the promise ends
EARLIER_SHARE = 20  # and a twentieth of it: timers and the answer itself take time
PHRASES = {200: "OK", 202: "Accepted", 404: "Not Found", 429: "Too Many Requests", 503: "Service Unavailable"}


def content_type(static: Static) -> str:
    """Of a static answer: as its headers say, or the name of its file."""
    for name, value in static.headers.items():
        if name.lower() == "content-type":
            return value
    guess = mimetypes.guess_type(static.file)[0] if static.file else None
    return guess or "text/plain; charset=utf-8"


def escape_of(kind: str) -> int:
    """How fields are escaped in a body of that Content-Type: 0 plain, 1 JSON, 2 HTML and XML."""
    media = kind.partition(";")[0].strip().lower()
    return 1 if media.endswith("json") else 2 if media.endswith(("html", "xml")) else 0


def budget_s(ladder: Ladder, latency: float) -> float:
    """When the live try ends: so that the next step's answer leaves within the promise."""
    budget = latency if ladder.budget is None else ladder.budget
    return max(0.001, min(budget, latency - max(EARLIER_S, latency / EARLIER_SHARE)))


class LadderWriter:
    """Writes the ladders that differ once each."""

    def __init__(self, writer: Writer, config: Config):
        self.w, self.config = writer, config
        self.rows: list[dict[str, Any]] = []
        self.usual = {tier: self.add(config.degrade.of(tier), tier) for tier in NAMES}

    def add(self, ladder: Ladder, tier: str) -> int:
        static = ladder.static
        kind = content_type(static) if static else ""
        parts = self.parts(static) if static else []
        kinds = [s.kind for s in ladder.steps]
        first = kinds[0] != "live"
        self.rows.append(
            {
                "steps": self.w.b.array(
                    "step", [{"kind": STEPS.index(s.kind), "deadline_ms": round(s.deadline * 1000)} for s in ladder.steps]
                ),
                "parts": self.w.b.array("part", parts) if parts else NO_ARRAY,
                "head": self.w.text(self.head(static, kind)) if static else NO_STR,
                "status": static.status if static else 0,
                "escape": escape_of(kind),
                "keeps": int(any(p["kind"] in (PARTS.index("host"), PARTS.index("query"), PARTS.index("header")) for p in parts)),
                "plain": int(static is not None and not static.template),
                "budget_ms": round(budget_s(ladder, self.config.tiers.of(tier).latency) * 1000),
                "fresh_ms": round(ladder.fresh * 1000),
                "usable_ms": round(ladder.usable * 1000),
                "on_status": sum(1 << (s - 500) for s in set(ladder.on_status)),
                "copies": int(ladder.copies) << first,
                "enforce": int(ladder.enforce),
                "queue": ladder.compensate.queue if ladder.compensate and tier == "P2" else 0,
                "compensate_bytes": ladder.compensate.body if ladder.compensate else 0,
                "compensate_ttl_ms": round(ladder.compensate.ttl * 1000) if ladder.compensate else 0,
            }
        )
        return len(self.rows)

    def head(self, static: Static, kind: str) -> bytes:
        names = {n.lower() for n in static.headers}
        lines = [f"HTTP/1.1 {static.status} {PHRASES.get(static.status, '')}"] + [f"{n}: {v}" for n, v in static.headers.items()]
        if static.content and "content-type" not in names:
            lines.append(f"Content-Type: {kind}")
        if "server" not in names:
            lines.append("Server: gwcore")
        if "cache-control" not in names:
            lines.append("Cache-Control: no-store")
        lines += ["Age: 0", "Cache-Status: gwcore; detail=static", "X-Gwcore-Degraded: static"]
        if static.status not in (204, 304):
            lines.append("Content-Length: ")
        return "\r\n".join(lines).encode("latin-1") + (b"\r\n" if static.status in (204, 304) else b"")

    def parts(self, static: Static) -> list[dict[str, Any]]:
        if not static.template:
            return [{"kind": 0, "unused": 0, "text": self.w.text(static.content)}] if static.content else []
        return [
            {
                "kind": PARTS.index(kind or "text"),
                "unused": 0,
                "text": self.w.text(text.lower() if kind == "header" else text) if text else NO_STR,
            }
            for kind, text in template_parts(static.content.decode())
        ]

    def of(self, own: Ladder | None, tier: str) -> list[int]:
        """By tier, the ladders of a route, as numbers from 1."""
        ladders = dict(self.usual)
        if own is not None:
            ladders[tier] = self.add(own, tier)
        return [ladders[t] for t in NAMES]

    def array(self) -> Any:
        return self.w.b.array("ladder", self.rows)
