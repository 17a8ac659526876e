"""/metrics: the shared segment as Prometheus metrics, read when asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

import gwcore
from gwcore.admin import cache, degrade, drill, resilience
from gwcore.admin.endpoints import endpoints
from gwcore.admin.figures import connection_figures, memory_by_kind

if TYPE_CHECKING:
    from gwcore.supervisor import Supervisor

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"
WORKER_COUNTERS = {
    "accepted": ("gwcore_connections_accepted_total", "Client connections accepted"),
    "bytes_in": ("gwcore_received_bytes_total", "Bytes of requests read"),
    "bytes_out": ("gwcore_sent_bytes_total", "Bytes of answers written"),
    "log_dropped": ("gwcore_log_lines_dropped_total", "Access log lines dropped because the ring was full"),
    "detached": ("gwcore_detached_requests_total", "Requests to upstreams that no client waited for any more, or yet"),
    "tunnels_opened": ("gwcore_tunnels_total", "Connections upgraded to another protocol"),
    "accept_paused": ("gwcore_accept_pauses_total", "Times that accepting stopped for want of descriptors"),
    "shed_idle": ("gwcore_idle_connections_shed_total", "Idle client connections closed to make room"),
    "illegal_moves": ("gwcore_illegal_moves_total", "State changes that should not be possible; any is a bug"),
}
WORKER_GAUGES = {
    "connections": ("gwcore_connections", "Client connections open"),
    "exchanges": ("gwcore_requests_in_flight", "Requests under way"),
    "upstream_connections": ("gwcore_upstream_connections", "Upstream connections open"),
    "tunnels": ("gwcore_tunnels", "Upgraded connections open"),
    "permits": ("gwcore_permits", "Permits of breakers that are out"),
    "buffer_bytes": ("gwcore_buffer_bytes", "Bytes of buffers in use"),
    "held_bytes": ("gwcore_memory_held_bytes", "Bytes that structs and buffers have from the system, used or not"),
}
ROUTE_BYTES = {
    "bytes_in": ("gwcore_route_received_bytes_total", "Bytes of requests read"),
    "bytes_out": ("gwcore_route_sent_bytes_total", "Bytes of answers written"),
}
UPSTREAM_COUNTERS = {
    "opens": ("gwcore_upstream_opens_total", "Connections opened"),
    "warmed": ("gwcore_upstream_warmed_total", "Connections opened ahead of need (pool.min_idle)"),
    "raced": ("gwcore_upstream_raced_total", "Connections opened beside a slow or failed one to the same name"),
    "reuses": ("gwcore_upstream_reuses_total", "Requests on a reused connection"),
    "queue_full": ("gwcore_upstream_queue_full_total", "Requests refused by a full queue"),
    "queue_timeout": ("gwcore_upstream_queue_timeouts_total", "Requests that waited too long"),
    "retries": ("gwcore_upstream_retries_total", "Requests sent again"),
    "hedges_won": ("gwcore_upstream_hedges_won_total", "Second tries that were answered before the first"),
    "retry_denied": ("gwcore_upstream_retries_denied_total", "Requests not sent again because the budget of retries was empty"),
}
UPSTREAM_RATIOS = {
    "reuse_ratio": ("gwcore_upstream_reuse_ratio", "Share of requests that found a connection ready"),
    "requests_per_connection": ("gwcore_upstream_requests_per_connection", "Requests for each connection opened, on average"),
    "opens_per_second": ("gwcore_upstream_opens_per_second", "Connections opened a second, over the last ten"),
    "rtt_deviation_seconds": ("gwcore_upstream_rtt_deviation_seconds", "Standard deviation of round-trip times to the upstream"),
}
UPSTREAM_GAUGES = {
    "waiting": "Requests waiting for a connection",
    "in_use": "Connections that serve a request",
    "idle": "Connections waiting for a request",
    "connecting": "Connections being made",
    "retry_budget": "Retries that the budget would pay for now",
    "limit": "Concurrency limit as measured last; 0 where none was",
    "limit_in_flight": "Requests that hold a place of the concurrency limit",
}


class SegmentCollector(Collector):
    """Collects from a supervisor's segment."""

    def __init__(self, supervisor: Supervisor):
        self.supervisor = supervisor

    def collect(self) -> Iterable[Any]:
        s = self.supervisor
        snap = s.segment.snapshot()
        build = GaugeMetricFamily("gwcore_build_info", "Always 1; the version is in the label", labels=["version"])
        build.add_metric([gwcore.__version__], 1)
        yield build
        yield GaugeMetricFamily("gwcore_start_time_seconds", "When the gateway was started, unix time", value=s.started)
        yield GaugeMetricFamily("gwcore_ready", "1 while /readyz says ready", value=s.state == "serving")
        yield GaugeMetricFamily("gwcore_workers", "Workers that serve", value=sum(x.up for x in s.crew.slots))
        yield CounterMetricFamily(
            "gwcore_worker_restarts_total", "Workers replaced after a crash", value=sum(x.restarts for x in s.crew.slots)
        )
        yield GaugeMetricFamily("gwcore_plan_version", "Number of the configuration plan in use", value=s.crew.plan.version)
        yield _family("gwcore_reloads_total", "Reloads asked for, by result", "result", s.reloads)
        for key, (name, text) in WORKER_COUNTERS.items():
            yield CounterMetricFamily(name, text, value=sum(w[key] for w in snap["workers"]))
        for key, (name, text) in WORKER_GAUGES.items():
            yield GaugeMetricFamily(name, text, value=sum(w[key] for w in snap["workers"]))
        memory = GaugeMetricFamily(
            "gwcore_memory_bytes", "Memory of connections and requests, by kind; the kernel's is not in it", labels=["kind"]
        )
        for kind, n in memory_by_kind(snap["workers"]).items():
            memory.add_metric([kind], n)
        yield memory
        yield _family("gwcore_failures_total", "Requests and connections that failed, by reason", "reason", snap["reasons"])
        yield from _tls(s.segment.tls_figures())
        yield from cache.metrics(s)
        ends = GaugeMetricFamily(
            "gwcore_certificate_expiry_timestamp_seconds",
            "When a certificate ends, unix time",
            labels=["listener", "file", "name"],
        )
        for c in s.certs.status():
            ends.add_metric([c["listener"], c["file"], (c["names"] or [c["subject"]])[0]], c["not_after"])
        yield ends
        load = GaugeMetricFamily(
            "gwcore_load_ratio", "Load of a worker, from which on tiers are shed (overload.shed)", labels=["worker"]
        )
        for number, w in enumerate(snap["workers"]):
            load.add_metric([str(number)], w["load"])
        yield load
        yield from _tiers(snap["tiers"])
        yield from degrade.metrics(s)
        yield from drill.metrics(s)
        owed = s.compensation.figures()
        yield _family(
            "gwcore_compensations_total",
            "Requests answered statically, by what became of their compensation",
            "outcome",
            {k: v for k, v in owed.items() if k not in ("waiting", "dead")},
        )
        waiting = GaugeMetricFamily("gwcore_compensations_waiting", "Requests that wait to be sent to their upstream")
        waiting.add_metric([], owed["waiting"])
        yield waiting
        most = s.config.metrics.max_series // 2  # routes and upstreams share it by halves
        yield from _routes(fold(snap["routes"], most))
        upstreams = fold(snap["upstreams"], most)
        yield from _upstreams(upstreams, s.opens.per_second())
        yield from resilience.metrics(s, upstreams)
        yield from _endpoints(endpoints(s), most)


def _family(name: str, text: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, n in values.items():
        family.add_metric([value], n)
    return family


def _tls(t: dict[str, Any]) -> Iterable[Any]:
    yield _family("gwcore_tls_handshakes_total", "Full TLS handshakes, by version", "version", t["handshakes"])
    yield _family("gwcore_tls_resumptions_total", "Resumed TLS handshakes, by where the session came from", "kind", t["resumed"])
    yield _family("gwcore_tls_groups_total", "TLS handshakes, by key exchange", "group", t["groups"])
    yield _family("gwcore_tls_ciphers_total", "TLS handshakes, by cipher", "cipher", t["ciphers"])
    yield CounterMetricFamily("gwcore_tls_handshakes_failed_total", "TLS handshakes that failed", value=t["failed"])
    yield CounterMetricFamily("gwcore_tls_tickets_issued_total", "Session tickets issued", value=t["tickets_issued"])
    yield CounterMetricFamily(
        "gwcore_tls_tickets_unknown_total", "Session tickets whose key is gone or not ours", value=t["tickets_unknown"]
    )
    yield _family(
        "gwcore_tls_early_data_total", "Connections that offered early data, by what became of it", "result", t["early_data"]
    )
    yield GaugeMetricFamily("gwcore_tls_connections", "TLS connections open", value=t["sessions"])
    store, redis = t["store"], t["redis"]
    yield GaugeMetricFamily("gwcore_tls_store_sessions", "Sessions in the machine's store", value=store["entries"])
    events = {k: store[k] for k in ("hits", "misses", "kept", "evicted", "refused")}
    yield _family("gwcore_tls_store_total", "What became of look-ups and sessions in the machine's store", "event", events)
    events = {k: n for k, n in redis.items() if k != "seconds"}
    yield _family("gwcore_tls_redis_total", "What became of look-ups and sessions in Redis", "event", events)
    for name, what, h in (
        ("gwcore_tls_handshake_seconds", "Time of whole TLS handshakes", t["seconds"]),
        ("gwcore_tls_redis_seconds", "Time of look-ups of sessions in Redis", redis["seconds"]),
    ):
        seconds = HistogramMetricFamily(name, what, labels=[])
        seconds.add_metric([], [(f"{le:g}", float(n)) for le, n in h["buckets"]] + [("+Inf", float(h["count"]))], h["sum"])
        yield seconds


def _tiers(tiers: dict[str, Any]) -> Iterable[Any]:
    admitted = CounterMetricFamily("gwcore_tier_admitted_total", "Requests tried at an upstream, by tier", labels=["tier"])
    queued = CounterMetricFamily("gwcore_tier_queued_total", "Requests that had to wait for a place, by tier", labels=["tier"])
    shed = CounterMetricFamily("gwcore_tier_shed_total", "Requests refused under load, by tier", labels=["tier", "reason"])
    seconds = HistogramMetricFamily(
        "gwcore_tier_seconds", "Time of whole requests that were tried at an upstream", labels=["tier"]
    )
    for tier, t in tiers.items():
        admitted.add_metric([tier], t["admitted"])
        queued.add_metric([tier], t["queued"])
        for reason, n in t["shed"].items():
            shed.add_metric([tier, reason], n)
        _histogram(seconds, tier, t["seconds"])
    yield admitted
    yield queued
    yield shed
    yield seconds


def _routes(routes: dict[str, Any]) -> Iterable[Any]:
    requests = CounterMetricFamily("gwcore_requests_total", "Requests answered, by class of status", labels=["route", "status"])
    cache = CounterMetricFamily(
        "gwcore_cache_requests_total",
        "Requests of routes with a cache, by what it had to do with them",
        labels=["route", "result"],
    )
    seconds = HistogramMetricFamily("gwcore_request_seconds", "Time of whole requests", labels=["route"])
    for name, r in routes.items():
        for status, n in r["requests"].items():
            requests.add_metric([name, status], n)
        for result, n in r["cache"].items():
            if n:
                cache.add_metric([name, result], n)
        _histogram(seconds, name, r["seconds"])
    outcomes = CounterMetricFamily(
        "gwcore_sla_requests_total", "Requests by what became of their tier's promise", labels=["route", "tier", "outcome"]
    )
    for name, r in routes.items():
        for tier, row in r["sla"].items():
            if any(row.values()):
                for outcome, n in row.items():
                    outcomes.add_metric([name, tier, outcome], n)
    yield requests
    yield outcomes
    yield cache
    yield seconds
    for key, (metric, text) in ROUTE_BYTES.items():
        yield _family(metric, text, "route", {name: r[key] for name, r in routes.items()})


def _upstreams(upstreams: dict[str, Any], opens: dict[str, float]) -> Iterable[Any]:
    for key, (name, text) in UPSTREAM_COUNTERS.items():
        yield _family(name, text, "upstream", {upstream: u[key] for upstream, u in upstreams.items()})
    for key, text in UPSTREAM_GAUGES.items():
        gauge = GaugeMetricFamily(f"gwcore_upstream_{key}", text, labels=["upstream"])
        for upstream, u in upstreams.items():
            gauge.add_metric([upstream], u[key])
        yield gauge
    ratios = {upstream: connection_figures(u, opens.get(upstream, 0.0)) for upstream, u in upstreams.items()}
    for key, (name, text) in UPSTREAM_RATIOS.items():
        gauge = GaugeMetricFamily(name, text, labels=["upstream"])
        for upstream, figures in ratios.items():
            gauge.add_metric([upstream], figures[key])
        yield gauge
    rtt = SummaryMetricFamily(
        "gwcore_upstream_rtt_seconds",
        "Round-trip times measured by the kernel, when connections open and close",
        labels=["upstream"],
    )
    waits = HistogramMetricFamily(
        "gwcore_upstream_queue_seconds", "Time in the queue, of requests that waited", labels=["upstream"]
    )
    for upstream, u in upstreams.items():
        rtt.add_metric([upstream], u["rtt"]["count"], u["rtt"]["sum"])
        _histogram(waits, upstream, u["queue_seconds"])
    yield rtt
    yield waits
    retried = CounterMetricFamily(
        "gwcore_upstream_retries_by_kind_total", "Requests sent again, by what had failed", labels=["upstream", "kind"]
    )
    closed = CounterMetricFamily("gwcore_upstream_closed_total", "Connections closed, by reason", labels=["upstream", "reason"])
    seconds = HistogramMetricFamily("gwcore_upstream_seconds", "Time to the response head", labels=["upstream"])
    for upstream, u in upstreams.items():
        for kind, n in u["retried"].items():
            retried.add_metric([upstream, kind], n)
        for reason, n in u["closed"].items():
            closed.add_metric([upstream, reason], n)
        _histogram(seconds, upstream, u["seconds"])
    yield retried
    yield closed
    yield seconds


def _endpoints(upstreams: dict[str, Any], max_series: int) -> Iterable[Any]:
    labels = ["upstream", "endpoint"]
    up = GaugeMetricFamily("gwcore_endpoint_up", "1 while the endpoint may get requests; why not is in /status", labels=labels)
    checks = CounterMetricFamily(
        "gwcore_endpoint_checks_total", "Active checks of the endpoint, by result", labels=[*labels, "result"]
    )
    rows = [(upstream, name, e) for upstream, found in upstreams.items() for name, e in found.items()]
    for upstream, name, e in rows[: max_series // 3]:
        up.add_metric([upstream, name], e["state"] == "up")
        checks.add_metric([upstream, name, "passed"], e["checks"] - e["failures"])
        checks.add_metric([upstream, name, "failed"], e["failures"])
    yield up
    yield checks


def _histogram(family: HistogramMetricFamily, label: str, h: dict[str, Any]) -> None:
    buckets = [(f"{le:g}", float(n)) for le, n in h["buckets"]] + [("+Inf", float(h["count"]))]
    family.add_metric([label], buckets, h["sum"])


def fold(entries: dict[str, Any], max_series: int) -> dict[str, Any]:
    """The first entries as they are, as many as fit into max_series; the sum of the others as "other".

    The segment gives its names in order of their first appearance, so that an entry never moves and no counter goes back.
    """
    if not entries:
        return entries
    fit = max(1, max_series // _numbers(next(iter(entries.values()))) - 1)
    names = [name for name in entries if name != OTHER]
    if len(names) <= fit:
        return entries
    out = {name: entries[name] for name in names[:fit]}
    rest = [entries[name] for name in entries if name not in out]
    out[OTHER] = rest[0]
    for entry in rest[1:]:
        out[OTHER] = _sum(out[OTHER], entry)
    return out


def _numbers(value: Any) -> int:
    """How many series an entry makes."""
    if isinstance(value, dict):
        return sum(map(_numbers, value.values()))
    return len(value) + 1 if isinstance(value, list) else 1


def _sum(a: Any, b: Any) -> Any:
    """Two entries of one shape added up; [edge, count] pairs keep their edge."""
    if isinstance(a, dict):
        return {key: _sum(a[key], b[key]) for key in a}
    if isinstance(a, list):
        return [[edge, n + m] for (edge, n), (_, m) in zip(a, b, strict=True)]
    return a + b


def render(supervisor: Supervisor) -> bytes:
    """The text of /metrics."""
    registry = CollectorRegistry()
    registry.register(SegmentCollector(supervisor))
    return generate_latest(registry)
