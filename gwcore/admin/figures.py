"""Figures that are worked out from those in the segment, for /status and /metrics alike."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

SPAN_S = 10.0


class Opens:
    """Connections opened a second, by upstream. `note` is to be called now and then with the counts so far."""

    def __init__(self) -> None:
        self.seen: deque[tuple[float, dict[str, int]]] = deque()

    def note(self, now_s: float, opens: dict[str, int]) -> None:
        self.seen.append((now_s, opens))
        while len(self.seen) > 2 and self.seen[1][0] <= now_s - SPAN_S:
            self.seen.popleft()

    def per_second(self) -> dict[str, float]:
        """Over the last ten seconds, or as many as are known."""
        if len(self.seen) < 2:
            return {}
        (before_s, before), (now_s, now) = self.seen[0], self.seen[-1]
        return {name: round((n - before.get(name, 0)) / (now_s - before_s), 3) for name, n in now.items() if now_s > before_s}


def connection_figures(upstream: dict[str, Any], opens_per_second: float = 0.0) -> dict[str, float]:
    """How the connections of an upstream are used. One that was opened ahead of need, or beside another, carried no request when it opened."""
    opens = upstream["opens"]
    requests = opens - upstream["warmed"] - upstream["raced"] + upstream["reuses"]
    rtt = upstream["rtt"]
    n = rtt["count"]
    mean = rtt["sum"] / n if n else 0.0
    return {
        "reuse_ratio": round(upstream["reuses"] / requests, 4) if requests > 0 else 0.0,
        "requests_per_connection": round(requests / opens, 2) if opens else 0.0,
        "opens_per_second": opens_per_second,
        "rtt_mean_seconds": round(mean, 6),
        "rtt_deviation_seconds": round(math.sqrt(max(0.0, rtt["squares"] / n - mean * mean)), 6) if n else 0.0,
        "rtt_variation_seconds": round(rtt["variation"] / n, 6) if n else 0.0,
    }


def memory_by_kind(workers: list[dict[str, int]]) -> dict[str, int]:
    """Bytes in use: structs of connections (of both sides) and of requests, buffers, TLS sessions. What the kernel keeps of a socket is not
    in it."""
    from gwcore._speedups.plane import sizes

    size = sizes()

    def total(key: str) -> int:
        return sum(w[key] for w in workers)

    return {
        "struct": (total("connections") + total("upstream_connections")) * size["conn"],
        "request": total("exchanges") * size["exchange"],
        "buffers": total("buffer_bytes"),
        "tls": total("tls_bytes"),
    }
