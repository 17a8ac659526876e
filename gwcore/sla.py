"""How promises are kept: outcomes of requests by route and tier over sliding windows.

The segment counts since the start; here the counts are noted now and then, finer for short windows and coarser for long ones, and a window is
the difference between now and the note that is as old as the window is long. Younger gateways have shorter windows, until they are that old."""

from __future__ import annotations

import contextlib
import json
import os
from array import array
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gwcore.config.tiers import Tiers

OUTCOMES = ("met", "late", "degraded", "failed")
WINDOWS = {"5m": (300, 15), "1h": (3600, 120), "24h": (86400, 1800), "30d": (30 * 86400, 43200)}  # seconds: span, between notes
Counts = Mapping[str, Mapping[str, Mapping[str, int]]]  # by route, tier, outcome
SAVED_S = 60.0


def figures(counts: Iterable[int], tier: str, availability: float) -> dict[str, Any]:
    """Attainment of a promise by the counts of OUTCOMES. `burn_rate`: 1 = the error budget lasts exactly as long as the promise's window.
    `attainment` is None without requests. A degraded answer in time attains, but never for P0."""
    met, late, degraded, failed = counts
    requests = met + late + degraded + failed
    good = met + (degraded if tier != "P0" else 0)
    bad = requests - good
    burn = bad / requests / (1 - availability) if requests else 0.0
    return {
        "requests": requests,
        "attainment": round(good / requests, 6) if requests else None,
        "degraded": round(degraded / requests, 6) if requests else 0.0,
        "burn_rate": round(burn, 3),
        "budget_left": round(1 - burn, 4),
    }


class Attainment:
    """Notes and windows. `note` is to be called every second or so with the counts of the segment, which never go back."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, str], int] = {}  # (route, tier) -> place in the arrays
        self.before = array("Q")  # of gateways before this one
        self.now = array("Q")
        self.notes: dict[str, deque[tuple[float, array[int]]]] = {w: deque() for w in WINDOWS}
        self.at = 0.0
        self.saved = 0.0

    def due(self, now_s: float) -> bool:
        """Is it time for a note? Those of the shortest window are the most frequent."""
        notes = self.notes["5m"]
        return not notes or not 0 <= now_s - notes[-1][0] < WINDOWS["5m"][1]

    def note(self, now_s: float, counts: Counts) -> None:
        """Take the counts since this gateway's start, at that unix time."""
        self.take(now_s, counts)
        for name, (span, between) in WINDOWS.items():
            notes = self.notes[name]
            if notes and now_s < notes[-1][0]:  # the clock was set back: what lies in the future is of no use
                notes.clear()
            if not notes or now_s - notes[-1][0] >= between:
                notes.append((now_s, self.now))
            while len(notes) > 1 and notes[1][0] <= now_s - span:
                notes.popleft()

    def take(self, now_s: float, counts: Counts) -> None:
        """The counts as they are now, without a note."""
        for route, tiers in counts.items():
            for tier in tiers:
                self.keys.setdefault((route, tier), len(self.keys))
        fresh = array("Q", bytes(8 * len(OUTCOMES) * len(self.keys)))
        fresh[: len(self.before)] = self.before
        for route, tiers in counts.items():
            for tier, row in tiers.items():
                at = self.keys[route, tier] * len(OUTCOMES)
                for i, outcome in enumerate(OUTCOMES):
                    fresh[at + i] += row.get(outcome, 0)
        self.now, self.at = fresh, now_s

    def window(self, name: str) -> dict[tuple[str, str], list[int]]:
        """Counts of OUTCOMES within a window of WINDOWS, by (route, tier), of those with requests in it."""
        notes = self.notes[name]
        then = notes[0][1] if notes else array("Q")
        n = len(OUTCOMES)
        out = {}
        for key, place in self.keys.items():
            row = [self.now[i] - (then[i] if i < len(then) else 0) for i in range(place * n, place * n + n)]
            if any(row):
                out[key] = row
        return out

    def report(self, tiers: Tiers) -> dict[str, Any]:
        """By tier and by route: what is promised, and the figures of each window."""
        names = ("P0", "P1", "P2")
        by_tier: dict[str, Any] = {
            t: {"availability": tiers.of(t).availability, "latency_s": tiers.of(t).latency, "windows": {}} for t in names
        }
        by_route: dict[str, Any] = {}
        for window in WINDOWS:
            sums = {t: [0] * len(OUTCOMES) for t in names}
            for (route, tier), row in self.window(window).items():
                sums[tier] = [a + b for a, b in zip(sums[tier], row, strict=True)]
                one = figures(row, tier, tiers.of(tier).availability)
                by_route.setdefault(route, {}).setdefault(tier, {})[window] = one
            for tier in names:
                by_tier[tier]["windows"][window] = figures(sums[tier], tier, tiers.of(tier).availability)
        return {"tiers": by_tier, "routes": by_route}

    # ---- over restarts ----

    def dump(self) -> str:
        """All of it as text, for load()."""
        return json.dumps(
            {
                "version": 1,
                "at": self.at,
                "keys": list(self.keys),
                "now": self.now.tolist(),
                "notes": {w: [[at, counts.tolist()] for at, counts in notes] for w, notes in self.notes.items()},
            }
        )

    def load(self, text: str) -> None:
        """Go on from a dump(). ValueError when it is none; nothing has changed then."""
        try:
            data = json.loads(text)
            keys = {(str(route), str(tier)): i for i, (route, tier) in enumerate(data["keys"])}
            now = array("Q", data["now"])
            notes = {w: deque((float(at), array("Q", row)) for at, row in data["notes"].get(w, [])) for w in WINDOWS}
            if data["version"] != 1 or len(now) != len(keys) * len(OUTCOMES):
                raise ValueError("it is of another version")
        except (KeyError, TypeError, AttributeError, OverflowError, ValueError) as why:
            raise ValueError(f"no figures of promises: {why}") from None
        self.keys, self.before, self.now, self.notes, self.at = keys, now, now, notes, float(data["at"])


def read_state(attainment: Attainment, path: str) -> str:
    """Go on from a state file; why that is impossible, or nothing. A file that is not there is no failure."""
    try:
        with open(path, encoding="utf-8") as f:
            attainment.load(f.read())
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as why:
        return f"sla.file {path} is passed over: {why}"
    return ""


def write_state(attainment: Attainment, path: str) -> str:
    """Write the state file, whole or not at all; why that is impossible, or nothing."""
    new = f"{path}.new"
    try:
        with open(new, "w", encoding="utf-8") as f:
            f.write(attainment.dump())
        os.replace(new, path)
    except OSError as why:
        with contextlib.suppress(OSError):
            os.unlink(new)
        return f"sla.file {path} cannot be written: {why.strerror}"
    return ""


def table(report: Mapping[str, Any], window: str = "") -> str:
    """The report for people: a line for each tier and route, for each window or for one."""
    rows = [("tier", "route", "window", "promise", "requests", "attained", "degraded", "budget left", "burn rate")]

    def add(tier: str, route: str, windows: Mapping[str, Any]) -> None:
        promise = report["tiers"][tier]
        for name, f in windows.items():
            if f["requests"] and window in ("", name):
                rows.append(
                    (
                        tier,
                        route,
                        name,
                        f"{promise['availability'] * 100:g}% in {promise['latency_s'] * 1000:g}ms",
                        str(f["requests"]),
                        f"{f['attainment'] * 100:.3f}%",
                        f"{f['degraded'] * 100:.2f}%",
                        f"{f['budget_left'] * 100:.1f}%",
                        f"{f['burn_rate']:.2f}",
                    )
                )

    for tier, found in report["tiers"].items():
        add(tier, "(all)", found["windows"])
        for route, by_tier in report["routes"].items():
            if tier in by_tier:
                add(tier, route, by_tier[tier])
    if len(rows) == 1:
        return "no requests yet"
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:<{n}}" for cell, n in zip(r, widths, strict=True)).rstrip() for r in rows)
