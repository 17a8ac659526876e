"""Models to the plan: one relocatable blob that every worker maps. Where the time goes that requests then do not spend."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gwcore._speedups.fields import METHOD_NAMES
from gwcore._speedups.plan import PlanBuilder, key_hash
from gwcore._speedups.retry import ON as RETRY_ON
from gwcore._speedups.retry import P95 as HEDGE_P95
from gwcore.config.base import interleaved
from gwcore.config.cache import RouteCache
from gwcore.config.compile_degrade import LadderWriter
from gwcore.config.compile_tls import TlsWriter
from gwcore.config.places import Addresses, Place, places
from gwcore.config.resilience import rules
from gwcore.config.retry import Retry
from gwcore.config.routes import Route, Target
from gwcore.config.schema import Config
from gwcore.config.tables import NO_ARRAY, NO_STR, Writer, open_table
from gwcore.config.tiers import NAMES
from gwcore.config.upstreams import Upstream

METHOD_BIT = {name: 1 << i for i, name in enumerate(METHOD_NAMES)}
EXACT, PREFIX, REGEX = 0, 1, 2
BALANCE = {"round_robin": 0, "least_request": 1, "ewma": 2, "hash": 3, "random": 4}
HASH_BY = {"client": 0, "header": 1, "cookie": 2}
VIA = {"off": 0, "request": 1, "response": 2, "both": 3}
PHRASES = {
    200: "OK",
    201: "Created",
    202: "Accepted",
    204: "No Content",
    301: "Moved Permanently",
    302: "Found",
    303: "See Other",
    304: "Not Modified",
    307: "Temporary Redirect",
    308: "Permanent Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    410: "Gone",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class Slots(Protocol):
    """Where identities get their cells: the shared segment, or a stand-in."""

    def slot(self, kind: str, name: str) -> int: ...


class _Counting:
    """Slots for a plan that no worker will run (check, tests)."""

    def slot(self, kind: str, name: str) -> int:
        return 0


def usable_cpus() -> int:
    """CPUs of the affinity mask, or the cgroup quota rounded up when that is less."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, max(1, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        pass
    return cpus


def memory_limit() -> int:
    """Bytes that this process may use: the cgroup's limit, else the machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return total if text == "max" else min(total, int(text))
    except (OSError, ValueError):
        return total


def worker_count(config: Config) -> int:
    return usable_cpus() if config.workers == "auto" else int(config.workers)


def via_name(config: Config, config_path: str = "") -> str:
    """The pseudonym of this gateway in Via: chains of gateways stay legal, loops are seen."""
    seed = f"{socket.gethostname()}\0{os.path.abspath(config_path) if config_path else ''}"
    return config.via.name or "gwcore-" + hashlib.sha256(seed.encode()).hexdigest()[:12]


def _ms(seconds: float) -> int:
    return min(int(seconds * 1000 + 0.5), 0xFFFFFFFF)


def system_addresses(host: str) -> Sequence[str]:
    """What the system's resolver says; nothing when it fails. For plans that no supervisor makes."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    return interleaved({str(f[4][0]) for f in found})


def _sockaddr(ip: str, port: int) -> bytes:
    """struct sockaddr_in or sockaddr_in6 of an address."""
    ip, _, scope = ip.partition("%")
    if ":" not in ip:
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(ip) + bytes(8)
    return (
        struct.pack("=H", socket.AF_INET6)
        + struct.pack("!HI", port, 0)
        + socket.inet_pton(socket.AF_INET6, ip)
        + struct.pack("=I", int(scope or 0))
    )


def retry_fields(r: Retry) -> dict[str, int]:
    """What the plan's UpstreamSpec holds of retries."""
    return {
        "retry_on": sum(RETRY_ON[x] for x in {*r.on, *r.statuses}),
        "retry_extra": r.attempts,
        "retry_methods": sum(METHOD_BIT[x] for x in set(r.methods)),
        "hedge_ms": HEDGE_P95 if isinstance(r.hedge, str) else _ms(r.hedge),
        "per_try_ms": _ms(r.per_try),
        "backoff_ms": _ms(r.backoff.base),
        "backoff_most_ms": _ms(r.backoff.max),
        "budget_milli": round(r.budget.ratio * 1000),
        "budget_per_s": r.budget.min,
    }


class _Compiler(Writer):
    def __init__(self, config: Config, slots: Slots, config_path: str, addresses: Addresses, workers: int):
        super().__init__(PlanBuilder())
        self.config, self.slots, self.addresses, self.workers = config, slots, addresses, workers
        self.secure = TlsWriter(self.b, config.tls)
        self.ladders = LadderWriter(self, config)
        self.upstream_index = {name: i for i, name in enumerate(config.upstreams)}
        self.via = via_name(config, config_path)

    def edits(self, edits: Any) -> Any:
        rows = (
            [(n, "", 0) for n in edits.remove]
            + [(n, v, 1) for n, v in edits.set.items()]
            + [(n, v, 2) for n, v in edits.add.items()]
        )
        return self.b.array(
            "edit",
            [
                {"name": self.text(n.lower()), "line": self.b.text(f"{n}: {v}\r\n".encode("latin-1")) if op else NO_STR, "op": op}
                for n, v, op in rows
            ],
        )

    def endpoint(self, p: Place, u: Upstream, identity: bytes) -> dict[str, Any]:
        raw = _sockaddr(p.ip, p.port) if p.ip else b""
        other = _sockaddr(p.other, p.port) if p.other else b""
        return {
            "name": self.text(p.name),
            "sockaddr_bytes": raw,
            "path": self.text(p.path),
            "sockaddr_len": len(raw),
            "other_bytes": other,
            "other_len": len(other),
            "group": p.number + 1 if p.named else 0,
            "weight": p.endpoint.weight,
            **self.secure.endpoint(u.tls, identity, p.host),
            "slot": self.slots.slot("endpoint", p.cell),
        }

    def upstreams(self) -> Any:
        rows = []
        for name, u in self.config.upstreams.items():
            tls, identity = self.secure.upstream(u)
            endpoints = [self.endpoint(p, u, identity) for p in places(name, u, self.addresses)]
            rows.append(
                {
                    "name": self.text(name),
                    "endpoints": self.b.array("endpoint", endpoints),
                    "host": NO_STR if u.host == "preserve" else self.text(u.host),
                    "hash_name": self.text(u.hash.name.lower() if u.hash.by == "header" else u.hash.name),
                    "slot": self.slots.slot("upstream", name),
                    "balance": BALANCE[u.balance],
                    "hash_by": HASH_BY[u.hash.by],
                    "hash_bound_pct": int(u.hash.bound * 100),
                    "max_connections": u.pool.max_connections,
                    "max_idle": u.pool.max_idle,
                    "min_idle": u.pool.min_idle,
                    "max_requests": u.pool.max_requests,
                    "idle_ms": _ms(u.pool.idle_timeout),
                    "max_age_ms": _ms(u.pool.max_age),
                    "queue_size": -(-u.pool.queue.size // self.workers),
                    "queue_ms": _ms(u.pool.queue.timeout),
                    "queue_plain": int(u.pool.queue.order == "fifo"),
                    **dict(zip(("limit_start", "limit_min", "limit_max"), u.concurrency.bounds, strict=True)),
                    "connect_ms": _ms(u.timeouts.connect),
                    "tls": tls,
                    "tls_ms": _ms(u.timeouts.tls),
                    "write_ms": _ms(u.timeouts.write),
                    "response_ms": _ms(u.timeouts.response),
                    "body_idle_ms": _ms(u.timeouts.idle),
                    "proxy_protocol": {"off": 0, "v1": 1, "v2": 2}[u.proxy_protocol],
                    "slow_start_ms": _ms(u.slow_start),
                    "panic_pct": round(100 * (u.health.panic if u.health else 0.5)),
                    "template_": int(u.pool.granularity == "template"),
                    **rules(u, len(endpoints)),
                    "principal": self.text(u.pool.principal.lower()),
                    **retry_fields(u.retry),
                }
            )
        return self.b.array("upstream", rows)

    def respond_head(self, r: Route) -> tuple[bytes, bytes]:
        assert r.respond is not None
        a = r.respond
        body = a.body.encode()
        names = {n.lower() for n in a.headers}
        lines = [f"HTTP/1.1 {a.status} {PHRASES.get(a.status, '')}"] + [f"{n}: {v}" for n, v in a.headers.items()]
        if body and "content-type" not in names:
            lines.append("Content-Type: text/plain; charset=utf-8")
        if "server" not in names:
            lines.append("Server: gwcore")
        if a.status not in (204, 304):
            lines.append(f"Content-Length: {len(body)}")
        return ("\r\n".join(lines) + "\r\n").encode("latin-1"), body

    def cache(self, r: Route) -> dict[str, int]:
        c = r.cache or RouteCache()
        return {
            "cache_on": int(r.cache is not None),
            "cache_flags": (c.requests == "ignore") | (c.set_cookie == "store") << 1,
            "cache_ttl_s": int(c.ttl),
            "cache_revalidate_s": int(c.stale_while_revalidate),
            "cache_error_s": int(c.stale_if_error),
            "cache_usable_s": int(c.usable),
            "cache_object": c.object,
            "cache_variants": c.variants,
        }

    def route(self, r: Route, nexts: int, regex: int) -> dict[str, Any]:
        c, m = self.config, r.match
        targets = r.targets or ([] if r.upstream is None else [Target(upstream=r.upstream)])
        up = c.upstreams[targets[0].upstream] if targets else None
        head, body = self.respond_head(r) if r.respond else (b"", b"")
        path = (m.path if m.path is not None else m.regex if m.regex is not None else (m.prefix or "/").rstrip("/")) or ""
        conds = [(0, n.lower(), v) for n, v in m.headers.items()] + [(1, n, v) for n, v in m.query.items()]
        matched = m.path if m.path is not None else (m.prefix or "").rstrip("/")
        strip = r.rewrite.strip_prefix.rstrip("/") if r.rewrite.strip_prefix else matched if r.rewrite.replace_prefix else ""

        def pick(own: float | None, usual: float) -> int:
            return _ms(usual if own is None else own)

        return {
            "name": self.text(r.name),
            "path": self.text(path),
            "methods": sum(METHOD_BIT[x] for x in set(m.methods)),
            "conds": self.b.array(
                "cond",
                [
                    {"name": self.text(n), "value": NO_STR if v == "*" else self.text(v), "kind": k, "any_value": int(v == "*")}
                    for k, n, v in conds
                ],
            ),
            "targets": self.b.array(
                "target", [{"upstream": self.upstream_index[t.upstream], "weight": t.weight} for t in targets]
            ),
            "request_edits": self.edits(r.request_headers),
            "response_edits": self.edits(r.response_headers),
            "head": self.text(head),
            "body": self.text(body),
            "replace": self.text(r.rewrite.replace_prefix),
            "strip": len(strip),
            "slot": self.slots.slot("route", r.name),
            "next": nexts,
            "regex": regex,
            "weight_sum": sum(t.weight for t in targets),
            "status": r.respond.status if r.respond else 0,
            "rewrites": int(bool(r.rewrite.strip_prefix or r.rewrite.replace_prefix)),
            "kind": 1 if r.respond else 0,
            "match": EXACT if m.path is not None else REGEX if m.regex is not None else PREFIX,
            "upgrades": self.b.array("str", [self.text(t) for t in r.upgrade]),
            "trailers": int(r.trailers),
            "tier": int(r.tier[1]),
            "ladder": [0, 0, 0] if r.respond else self.ladders.of(r.degrade, r.tier),
            "host_kind": 0,
            "body_idle_ms": pick(r.timeouts.body_idle, c.timeouts.body_idle),
            "client_write_ms": pick(r.timeouts.client_write, c.timeouts.client_write),
            "response_ms": pick(r.timeouts.response, up.timeouts.response if up else 0),
            "idle_ms": pick(r.timeouts.idle, up.timeouts.idle if up else 0),
            "deadline_ms": _ms(r.deadline),
            "tunnel_idle_ms": pick(r.timeouts.tunnel_idle, c.timeouts.tunnel_idle),
            "body_min_rate": c.limits.body_min_rate if r.limits.body_min_rate is None else r.limits.body_min_rate,
            "buffer_high": c.buffers.high,
            "buffer_low": c.buffers.low,
            "replay_bytes": c.buffers.replay,
            **self.cache(r),
            "body_bytes": c.limits.body_bytes if r.limits.body_bytes is None else r.limits.body_bytes,
        }

    def routing(self) -> dict[str, Any]:
        """Routes, and the tables by which the router finds them."""
        hosts: dict[str, int] = {}
        for r in self.config.routes:
            for name in r.match.host:
                hosts.setdefault(name, len(hosts) + 1)
        infos: list[dict[str, Any]] = [
            {"regexes": NO_ARRAY, "has_exact": 0, "depth": 0, "has_prefix": 0, "unused": 0} for _ in range(len(hosts) + 1)
        ]
        regex_lists: list[list[int]] = [[] for _ in infos]
        rows: list[dict[str, Any]] = []
        regexes: list[int] = []
        chains: dict[tuple[int, int, str], list[int]] = {}
        for r in self.config.routes:
            m = r.match
            regex = 0
            for n, host in enumerate(m.host or [""]):
                i = len(rows)  # one row per host: chains are per host
                if m.regex is not None and n == 0:
                    regexes.append(i)
                    regex = len(regexes)
                rows.append(self.route(r, 0, regex))
                h = hosts.get(host, 0)
                if m.regex is not None:
                    regex_lists[h].append(i + 1)
                elif m.path is not None:
                    infos[h]["has_exact"] = 1
                    chains.setdefault((h, EXACT, m.path), []).append(i)
                else:
                    prefix = (m.prefix or "/").rstrip("/")
                    infos[h]["has_prefix"] = 1
                    infos[h]["depth"] = max(infos[h]["depth"], prefix.count("/"))
                    chains.setdefault((h, PREFIX, prefix), []).append(i)
        for chain in chains.values():
            for a, b in zip(chain, chain[1:], strict=False):
                rows[a]["next"] = b + 1
        for info, ids in zip(infos, regex_lists, strict=True):
            info["regexes"] = self.b.array("u32", ids)
        keys = [
            {"hash": key_hash(path.encode(), h, kind), "host": h, "kind": kind, "path": self.text(path), "route": chain[0] + 1}
            for (h, kind, path), chain in chains.items()
        ]
        empty_key = {"hash": 0, "host": 0, "kind": 0, "path": NO_STR, "route": 0}
        return {
            "routes": self.b.array("route", rows),
            "keys": self.b.array("key", open_table(keys, empty_key)),
            "hosts": self.names(hosts),
            "host_infos": self.b.array("host_info", infos),
            "regexes": self.b.array("u32", regexes),
            "has_wildcards": int(any(h.startswith("*.") for h in hosts)),
        }

    def trusted(self) -> Any:
        rows = []
        for text in self.config.trusted_proxies:
            net = ipaddress.ip_network(text, strict=False)
            raw = bytes(10) + b"\xff\xff" + net.network_address.packed if net.version == 4 else net.network_address.packed
            rows.append({"net": list(raw), "bits": net.prefixlen + (96 if net.version == 4 else 0)})
        return self.b.array("cidr", rows)

    def blob(self) -> bytes:
        c = self.config
        lim, t = c.limits, c.timeouts
        total = memory_limit() // 4 // self.workers if c.buffers.total == "auto" else int(c.buffers.total)
        deadline = "" if c.deadline.header == "off" else c.deadline.header
        id_header = "" if c.request_id.header == "off" else c.request_id.header
        shed = c.overload.shed
        return self.b.finish(
            {
                "version": 0,
                "upstreams": self.upstreams(),
                **self.routing(),
                "ladders": self.ladders.array(),
                "latency_ms": [_ms(c.tiers.of(t).latency) for t in NAMES],
                "tier_name": NO_STR if c.tier_header == "off" else self.text(c.tier_header.lower()),
                "trusted": self.trusted(),
                "listeners": self.b.array(
                    "listener",
                    [
                        {"address": self.text(x.address), "proxy_protocol": int(x.proxy_protocol), "tls": self.secure.listener(x)}
                        for x in c.listeners
                    ],
                ),
                **self.secure.rows(),
                "via_line": self.text(f"Via: 1.1 {self.via}\r\n"),
                "via_name": self.text(self.via),
                "id_header": self.text(id_header.lower()),
                "id_line": self.text(f"{id_header}: ") if id_header else NO_STR,
                "server_line": self.text("Server: gwcore\r\n"),
                "deadline_name": self.text(deadline.lower()),
                "deadline_line": self.text(f"{deadline}: ") if deadline else NO_STR,
                "via": VIA[c.via.on],
                "header_ms": _ms(t.header),
                "tls_handshake_ms": _ms(t.tls_handshake),
                "handshake_threads": c.tls.handshake_threads,
                "handshake_queue": c.tls.handshake_queue,
                "fault_fail": int(c.tls.faults.fail * 65536),
                "fault_stall": int(c.tls.faults.stall * 65536),
                "fault_cut": int(c.tls.faults.cut * 65536),
                "keepalive_ms": _ms(t.keepalive),
                "linger_ms": _ms(t.linger),
                "linger_bytes": lim.linger_bytes,
                "drain_ms": _ms(t.drain),
                "url_bytes": lim.url_bytes,
                "head_bytes": lim.header_bytes,
                "fields": lim.header_count,
                "trailer_bytes": lim.trailer_bytes,
                "chunk_ext_bytes": lim.chunk_ext_bytes,
                "response_head_bytes": lim.response_header_bytes,
                "response_fields": lim.response_header_count,
                "connections": 0 if lim.connections == "auto" else int(lim.connections),
                "connections_per_client": lim.connections_per_client,
                "requests_per_connection": lim.requests_per_connection,
                "connection_age_ms": _ms(lim.connection_age),
                "underscore_drop": int(c.headers.underscore == "drop"),
                "body_rate_grace_ms": max(1, _ms(lim.body_rate_grace)),
                "workers": self.workers,
                "log_block": int(c.access_log.full == "block"),
                "log_buffer": c.access_log.buffer,
                "log_flush_ms": max(1, _ms(c.access_log.flush)),
                "client_write_ms": _ms(t.client_write),
                "shed_from": [int(x * 1000) for x in (shed.P0, shed.P1, shed.P2)] if shed else [0, 0, 0],
                "lag_ms": max(1, _ms(c.overload.lag)),
                "wait_ms": max(1, _ms(c.overload.wait)),
                "memory_bytes": memory_limit() // self.workers,
                "buffers_total": total,
                "splice_bytes": c.buffers.splice,
            }
        )


def compile_plan(
    config: Config,
    segment: Slots | None = None,
    config_path: str = "",
    addresses: Addresses = system_addresses,
    workers: int | None = None,
) -> bytes:
    """The plan of a configuration. `segment` gives the slots of routes, upstreams and endpoints, `addresses` those of a host name.
    What is shared by the workers is divided by `workers`: those that run, whatever the file says by now."""
    return _Compiler(config, segment or _Counting(), config_path, addresses, workers or worker_count(config)).blob()
