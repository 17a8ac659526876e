"""`gwcore drill`: begin one, watch it, and say whether the route's clients got what its ladder promises."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

Ask = Callable[[str, str], str]
EVERY_S = 2.0
PATIENCE_S = 10.0  # beyond the promise, for requests that still wait when the drill is over
KINDS = (("live", "live"), ("copy", "a copy"), ("static", "the static answer"), ("refused", "an error"))


def seconds(value: float) -> str:
    return f"{value:.2f}s" if value >= 1 else f"{value * 1000:.0f}ms"


def kept(row: dict[str, Any]) -> bool:
    """Was there a request, and did each get what the ladder promises, in time?"""
    answered = sum(row[k] for k, _ in KINDS)
    return bool(answered and not row["unkept"] and not row["waiting"])


def line(row: dict[str, Any]) -> str:
    """How far it is."""
    got = ", ".join(f"{row[k]} {k}" for k in ("live", "copy", "static", "refused", "left") if row[k])
    left = f"{row['remaining_s']:.0f}s left" if row["remaining_s"] else "over"
    return f"{left}: {row['drawn']} drawn, {row['waiting']} waiting" + (f"; {got}" if got else "")


def table(row: dict[str, Any]) -> str:
    """What clients got, within which time, against the promise."""
    answered = sum(row[k] for k, _ in KINDS)
    out = [f"{'clients got':<20}{'requests':>9}{'share':>9}"]
    for key, text in KINDS:
        if row[key] or key != "copy":
            out.append(f"{text:<20}{row[key]:>9}{row[key] / answered if answered else 0:>9.1%}")
    for reason, n in row["reasons"].items():
        out.append(f"{'  ' + (reason if reason != '-' else 'status of the upstream'):<20}{n:>9}")
    if row["left"]:
        out.append(f"{'(left before)':<20}{row['left']:>9}")
    if row["waiting"]:
        out.append(f"{'(still waiting)':<20}{row['waiting']:>9}")
    promise = f"{row['tier']} promises {seconds(row['promise_s'])}"
    if answered:
        out.append(f"time: p50 {seconds(row['p50_s'])}, p99 {seconds(row['p99_s'])}, at most {seconds(row['max_s'])}; {promise}")
    return "\n".join([*out, verdict(row, answered)])


def verdict(row: dict[str, Any], answered: int) -> str:
    if not answered and not row["waiting"]:
        return "NOT TESTED: no request was drawn; send some, or raise --share or --for"
    if kept(row):
        what = "got what its ladder promises, in time"
        return f"KEPT: every drilled request {what}" + (" (its only step is live: an error)" if row["steps"] == ["live"] else "")
    why = []
    if row["lost"]:
        why.append(f"{row['lost']} got an error, though the ladder has {' and '.join(x for x in row['steps'] if x != 'live')}")
    if row["late"]:
        why.append(f"{row['late']} were answered too late")
    if row["waiting"]:
        why.append(f"{row['waiting']} have no answer yet")
    return "NOT KEPT: " + ", ".join(why)


def drill(ask: Ask, say: Callable[[str], None], query: dict[str, str]) -> int:
    """Run one; 0 when every drilled request got what its ladder promises, else 1. An interrupt ends the drill."""
    row = json.loads(ask("/drill?" + urlencode(query), "POST"))["drill"]
    number = row["number"]
    say(
        f"route {row['route']} ({row['tier']}, {' -> '.join(row['steps'])}): {row['share']:.0%} of its requests get {row['fail']}"
    )

    def look() -> dict[str, Any]:
        found: dict[str, Any] = next(x for x in json.loads(ask("/drill", "GET"))["drills"] if x["number"] == number)
        return found

    over = 0.0
    try:
        while True:
            row = look()
            if not row["remaining_s"]:
                over = over or time.monotonic() + row["promise_s"] + PATIENCE_S
                if not row["waiting"] or time.monotonic() > over:
                    break
            say(line(row))
            time.sleep(min(EVERY_S, max(0.1, row["remaining_s"])) if row["remaining_s"] else 0.5)
    except KeyboardInterrupt:
        row = look()
        if row["remaining_s"]:
            ask("/drill?route=" + quote(row["route"], safe=""), "DELETE")
            row = look()
        say("ended")
    say(table(row))
    return 0 if kept(row) else 1
