"""Who is compared: gwcore in several settings, and the peers that are installed, each with what it has against sick endpoints.

gwcore, Envoy, HAProxy and nginx run with two workers or threads, and with their defaults but for what the table below says.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.load import common
from bench.load.common import free_port


@dataclass(frozen=True)
class Setting:
    """One gateway in one setting: `command(directory, port, endpoints, timeout_s)`."""

    name: str
    text: str
    command: Callable[[Path, int, list[str], float], list[str]]
    program: str = ""  # must be installed


def gwcore(upstream: str) -> Callable[[Path, int, list[str], float], list[str]]:
    def command(tmp: Path, port: int, endpoints: list[str], timeout_s: float) -> list[str]:
        file = tmp / f"gwcore-{port}.yaml"
        file.write_text(
            f'workers: 2\nlisteners: [{{address: "127.0.0.1:{port}"}}]\nadmin: {{address: "127.0.0.1:{free_port()}"}}\naccess_log: {{path: "off"}}\n'
            f"upstreams: {{be: {{endpoints: [{', '.join(endpoints)}], timeouts: {{response: {timeout_s:g}s}}{upstream}}}}}\nroutes: [{{upstream: be}}]\n"
        )
        return [sys.executable, "-m", "gwcore", "run", "-c", str(file)]

    return command


def nginx(tmp: Path, port: int, endpoints: list[str], timeout_s: float) -> list[str]:
    """Passive checks as they come: one failure in ten seconds takes a server out for ten. A status counts only when the request may be tried again, so it is,
    once."""
    servers = " ".join(f"server {e};" for e in endpoints)
    return common.nginx(
        tmp,
        f"nginx-{port}",
        f"upstream be {{ zone be 256k; {servers} keepalive 64; }}\n"
        f'server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://be; proxy_http_version 1.1; proxy_set_header Connection "";\n'
        f"proxy_read_timeout {timeout_s:g}s; proxy_next_upstream error timeout http_500 http_502 http_503 http_504; proxy_next_upstream_tries 2; }} }}",
        workers=2,
    )


def haproxy(tmp: Path, port: int, endpoints: list[str], timeout_s: float) -> list[str]:
    """Passive checks of answers: ten errors in a row mark a server down, active checks (without which there are no passive ones) bring it back."""
    file = tmp / f"haproxy-{port}.cfg"
    servers = "".join(f"  server s{i} {e}\n" for i, e in enumerate(endpoints))
    file.write_text(
        f"global\n  nbthread 2\ndefaults\n  mode http\n  timeout client 60s\n  timeout connect 2s\n  timeout server {timeout_s:g}s\n"
        f"frontend f\n  bind 127.0.0.1:{port}\n  default_backend b\nbackend b\n  option httpchk GET /healthz\n"
        f"  default-server check inter 2s fall 3 rise 2 observe layer7 error-limit 10 on-error mark-down\n{servers}"
    )
    return ["haproxy", "-f", str(file)]


def envoy(tmp: Path, port: int, endpoints: list[str], timeout_s: float) -> list[str]:
    """Outlier detection and circuit breakers with their defaults: five 5xx in a row, at most 10 % out, 30 s and more."""
    file = tmp / f"envoy-{port}.yaml"
    where = "{{socket_address: {{address: {}, port_value: {}}}}}"
    hosts = ", ".join(f"{{endpoint: {{address: {where.format(*e.split(':'))}}}}}" for e in endpoints)
    file.write_text(f"""static_resources:
  listeners:
  - address: {where.format("127.0.0.1", port)}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: i
          route_config: {{virtual_hosts: [{{name: a, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: be, timeout: {timeout_s:g}s}}}}]}}]}}
          http_filters: [{{name: envoy.filters.http.router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
  clusters:
  - name: be
    outlier_detection: {{}}
    circuit_breakers: {{thresholds: [{{}}]}}
    load_assignment: {{cluster_name: be, endpoints: [{{lb_endpoints: [{hosts}]}}]}}
""")
    return ["envoy", "-c", str(file), "--concurrency", "2", "-l", "error", "--disable-hot-restart"]


RETRY = ", retry: {on: [connect, stale, reset, timeout], statuses: [500, 502, 503, 504]}"
SETTINGS = {
    s.name: s
    for s in (
        Setting("none", "gwcore with breaker and outlier off", gwcore(", breaker: off, outlier: off")),
        Setting(
            "classic", "gwcore with breaker.score: classic, outlier off", gwcore(", breaker: {score: classic}, outlier: off")
        ),
        Setting("gwcore", "gwcore as it comes", gwcore("")),
        Setting("checks", "gwcore with health.path", gwcore(", health: {path: /healthz}")),
        Setting("limit", "gwcore with concurrency: adaptive", gwcore(", concurrency: adaptive")),
        Setting("retry", "gwcore that tries resets, timeouts, 500, 502, 503 and 504 again, once", gwcore(RETRY)),
        Setting("nginx", "max_fails and fail_timeout; tries those again, once", nginx, "nginx"),
        Setting("haproxy", "observe layer7, on-error mark-down; active checks", haproxy, "haproxy"),
        Setting("envoy", "outlier detection, circuit breakers", envoy, "envoy"),
    )
}


def installed(names: list[str]) -> list[Setting]:
    """Those of the names whose program is there."""
    return [s for name, s in SETTINGS.items() if name in names and (not s.program or shutil.which(s.program))]
