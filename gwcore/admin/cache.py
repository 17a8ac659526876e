"""Copies of answers: figures, and purges by address, prefix and tag."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.datastructures import QueryParams

from gwcore.config.cache import shared

if TYPE_CHECKING:
    from gwcore.supervisor import Supervisor

KINDS = ("url", "prefix", "tag")
HELP = "say what to purge: ?url=… or ?prefix=… (both with scheme and host), or ?tag=…; each may be given often, and ?prefix= purges everything\n"
EVENTS = {  # what became of copies, besides those that were not kept
    "stored": "results.stored", "replaced": "replaced", "promoted": "promoted", "second_round": "kept", "evicted": "evicted",
    "evicted_unused": "evicted_small", "expired": "expired", "index_full": "crowded", "dropped": "dropped",
}  # fmt: skip


def figures(s: Supervisor) -> dict[str, Any]:
    """What the store of copies holds and did; empty when there is none."""
    return s.crew.copies.figures() if s.crew.copies is not None else {}


def address(text: str) -> str:
    """An address as copies have it: scheme and host in lower case, a path, no fragment. ValueError when it is none."""
    parts = urlsplit(text)
    if parts.scheme.lower() not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{text!r} is not an address: begin with http:// or https:// and the host")
    rest = text[len(parts.scheme) + 3 + len(parts.netloc) :].partition("#")[0]
    return f"{parts.scheme.lower()}://{parts.netloc.lower()}{rest if rest[:1] == '/' else '/' + rest}"


async def purge(s: Supervisor, query: QueryParams) -> tuple[dict[str, Any] | str, int]:
    """Forget copies in this machine's store; result and status."""
    wanted = [(kind, text) for kind, text in query.multi_items() if kind in KINDS]
    if not wanted or len(wanted) != len(query.multi_items()):
        return HELP, 400
    if s.crew.copies is None:
        return "no copies are kept: no route has `cache`\n", 404
    try:
        wanted = [(kind, address(text) if kind == "url" else text) for kind, text in wanted]
    except ValueError as why:
        return f"{why}\n", 400
    purged = 0
    try:
        for kind, text in wanted:
            purged += await asyncio.to_thread(s.crew.copies.purge, kind, text.encode())
    except TimeoutError as why:
        return f"{why}; {purged} copies are purged, try again\n", 503
    result = {"ok": True, "purged": purged}
    if shared(s.config):
        from gwcore import copies_redis

        try:
            result["redis"] = await copies_redis.purge(s.config, wanted)
        except Exception as why:  # whatever a server or a network may do
            return f"{purged} copies are purged here, but Redis does not do its part: {type(why).__name__}; try again\n", 502
    return result, 200


def metrics(s: Supervisor) -> Iterable[Any]:
    f = figures(s)
    if not f:
        return
    yield GaugeMetricFamily("gwcore_cache_copies", "Answers in the store of copies", value=f["copies"])
    yield GaugeMetricFamily(
        "gwcore_cache_bytes",
        "Bytes of copies, with their heads and what was replaced or dropped and not yet passed by",
        value=f["bytes"],
    )
    yield GaugeMetricFamily("gwcore_cache_size_bytes", "Bytes that the store may take", value=f["size"])
    events = CounterMetricFamily("gwcore_cache_copies_total", "What became of copies", labels=["event"])
    for event, key in EVENTS.items():
        events.add_metric([event], f["results"]["stored"] if key == "results.stored" else f[key])
    yield events
    refused = CounterMetricFamily(
        "gwcore_cache_not_stored_total", "Answers that were to be kept and were not, by why", labels=["why"]
    )
    for why, n in f["results"].items():
        if why != "stored":
            refused.add_metric([why], n)
    yield refused
    redis = CounterMetricFamily("gwcore_cache_redis_total", "What became of look-ups and copies in Redis", labels=["event"])
    for event, n in f["redis"].items():
        if event != "us":
            redis.add_metric([event], n)
    yield redis
    yield CounterMetricFamily(
        "gwcore_cache_redis_seconds_total", "Time of look-ups of copies in Redis", value=f["redis"]["us"] / 1e6
    )
