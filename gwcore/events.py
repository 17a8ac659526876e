"""What happened to breakers and endpoints, for operators: told once on stderr as a line of JSON, kept in a ring, counted."""

from __future__ import annotations

import json
import sys
from collections import Counter, deque
from typing import Any

KEPT = 256
COUNTED = 1000  # series; what comes beyond is counted as "other"


class Events:
    """The last 256 events, and how many of each kind there were since the start."""

    def __init__(self) -> None:
        self.ring: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.counts: Counter[tuple[str, str, str, str]] = Counter()
        self.serial = 0

    def note(self, event: dict[str, Any]) -> None:
        """Keep, count and tell an event: `at` (unix time), `event` (its kind), `upstream`, `endpoint` (empty = the whole upstream), `from`, `to`,
        `reason`, and figures as they are."""
        self.serial += 1
        event = {"serial": self.serial, **event}
        self.ring.append(event)
        key = tuple(str(event.get(k, "")) for k in ("upstream", "endpoint", "to", "reason"))
        if key not in self.counts and len(self.counts) >= COUNTED:
            key = ("other", "", "", "")
        self.counts[key[0], key[1], key[2], key[3]] += 1
        print(json.dumps({k: v for k, v in event.items() if k != "lost" or v}), file=sys.stderr, flush=True)

    def list(self, since: int = 0) -> list[dict[str, Any]]:
        """Those kept with a serial above `since`, oldest first."""
        return [e for e in self.ring if e["serial"] > since]
