"""/metrics: the shared segment as Prometheus metrics, read when asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from gwcore.supervisor import Supervisor

WORKER_COUNTERS = {
    "accepted": ("gwcore_connections_accepted_total", "Client connections accepted"),
    "bytes_in": ("gwcore_received_bytes_total", "Bytes of requests read"),
    "bytes_out": ("gwcore_sent_bytes_total", "Bytes of answers written"),
    "log_dropped": ("gwcore_log_lines_dropped_total", "Access log lines dropped because the ring was full"),
    "accept_paused": ("gwcore_accept_pauses_total", "Times that accepting stopped for want of descriptors"),
    "shed_idle": ("gwcore_idle_connections_shed_total", "Idle client connections closed to make room"),
}
WORKER_GAUGES = {
    "connections": ("gwcore_connections", "Client connections open"),
    "exchanges": ("gwcore_requests_in_flight", "Requests under way"),
    "upstream_connections": ("gwcore_upstream_connections", "Upstream connections open"),
    "buffer_bytes": ("gwcore_buffer_bytes", "Bytes of buffers in use"),
}
UPSTREAM_COUNTERS = {
    "opens": ("gwcore_upstream_opens_total", "Connections opened"),
    "reuses": ("gwcore_upstream_reuses_total", "Requests on a reused connection"),
    "queue_full": ("gwcore_upstream_queue_full_total", "Requests refused by a full queue"),
    "queue_timeout": ("gwcore_upstream_queue_timeouts_total", "Requests that waited too long"),
    "retries": ("gwcore_upstream_retries_total", "Requests sent again"),
}


class SegmentCollector(Collector):
    """Collects from a supervisor's segment."""

    def __init__(self, supervisor: Supervisor):
        self.supervisor = supervisor

    def collect(self) -> Iterable[Any]:
        s = self.supervisor
        snap = s.segment.snapshot()
        for key, (name, text) in WORKER_COUNTERS.items():
            yield CounterMetricFamily(name, text, value=sum(w[key] for w in snap["workers"]))
        for key, (name, text) in WORKER_GAUGES.items():
            yield GaugeMetricFamily(name, text, value=sum(w[key] for w in snap["workers"]))
        yield GaugeMetricFamily(
            "gwcore_workers", "Workers that serve", value=sum(bool(x.listening and x.channel) for x in s.slots)
        )
        yield CounterMetricFamily(
            "gwcore_worker_restarts_total", "Workers replaced after a crash", value=sum(x.restarts for x in s.slots)
        )
        yield GaugeMetricFamily("gwcore_plan_version", "Number of the configuration plan in use", value=s.version)
        reasons = CounterMetricFamily(
            "gwcore_failures_total", "Requests and connections that failed, by reason", labels=["reason"]
        )
        for word, n in snap["reasons"].items():
            reasons.add_metric([word], n)
        yield reasons
        yield from self._routes(snap["routes"])
        yield from self._upstreams(snap["upstreams"])

    def _routes(self, routes: dict[str, Any]) -> Iterable[Any]:
        requests = CounterMetricFamily(
            "gwcore_requests_total", "Requests answered, by class of status", labels=["route", "status"]
        )
        seconds = HistogramMetricFamily("gwcore_request_seconds", "Time of whole requests", labels=["route"])
        for name, r in routes.items():
            for status, n in r["requests"].items():
                if n:
                    requests.add_metric([name, status], n)
            _histogram(seconds, name, r["seconds"])
        yield requests
        yield seconds

    def _upstreams(self, upstreams: dict[str, Any]) -> Iterable[Any]:
        for key, (name, text) in UPSTREAM_COUNTERS.items():
            family = CounterMetricFamily(name, text, labels=["upstream"])
            for upstream, u in upstreams.items():
                family.add_metric([upstream], u[key])
            yield family
        for key in ("waiting", "in_use", "idle", "connecting"):
            gauge = GaugeMetricFamily(f"gwcore_upstream_{key}", f"Now {key.replace('_', ' ')}", labels=["upstream"])
            for upstream, u in upstreams.items():
                gauge.add_metric([upstream], u[key])
            yield gauge
        closed = CounterMetricFamily(
            "gwcore_upstream_closed_total", "Connections closed, by reason", labels=["upstream", "reason"]
        )
        seconds = HistogramMetricFamily("gwcore_upstream_seconds", "Time to the response head", labels=["upstream"])
        for upstream, u in upstreams.items():
            for reason, n in u["closed"].items():
                closed.add_metric([upstream, reason], n)
            _histogram(seconds, upstream, u["seconds"])
        yield closed
        yield seconds


def _histogram(family: HistogramMetricFamily, label: str, h: dict[str, Any]) -> None:
    buckets = [(f"{le:g}", float(n)) for le, n in h["buckets"]] + [("+Inf", float(h["count"]))]
    family.add_metric([label], buckets, h["sum"])


def render(supervisor: Supervisor) -> bytes:
    registry = CollectorRegistry()
    registry.register(SegmentCollector(supervisor))
    return generate_latest(registry)
