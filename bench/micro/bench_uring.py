"""What could a reactor on io_uring win? CPU per request of a relay that parses nothing, by epoll and by io_uring (relay.c), beside the gateway;
interleaved, medians of the ratios of each round. `python -m bench.micro.bench_uring`
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.load.common import BODY, Server, free_port, measure, need


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--seconds", type=int, default=2)
    ap.add_argument("--connections", type=int, nargs="*", default=[64, 256, 1000])
    a = ap.parse_args()
    need("wrk", "nginx", "cc")
    with tempfile.TemporaryDirectory() as d:
        tmp, upstream = Path(d), free_port()
        (tmp / "nginx.conf").write_text(
            f"user root; daemon off; pid {tmp}/pid; error_log {tmp}/error; events {{ worker_connections 4096; }}\n"
            f"http {{ access_log off; keepalive_requests 100000000; server {{ listen 127.0.0.1:{upstream} backlog=4096;"
            f" location / {{ default_type application/json; return 200 '{BODY}'; }} }} }}\n"
        )
        (tmp / "gateway.yaml").write_text(
            f"workers: 1\nlisteners: [{{address: '127.0.0.1:PORT'}}]\naccess_log: {{path: 'off'}}\nroutes: [{{upstream: be}}]\n"
            f"upstreams: {{be: {{endpoints: ['127.0.0.1:{upstream}'], pool: {{max_connections: 4096, max_idle: 4096}}}}}}\n"
        )
        subprocess.run(["cc", "-O2", "-o", tmp / "relay", Path(__file__).with_name("relay.c")], check=True)
        backend = Server(["nginx", "-c", str(tmp / "nginx.conf")], upstream, 1)
        try:
            for n in a.connections:
                cost: dict[str, list[float]] = {"epoll": [], "uring": [], "gwcore": []}
                for _ in range(a.rounds):
                    for kind, costs in cost.items():
                        costs.append(once(kind, tmp, upstream, n, a.seconds))
                show(n, cost)
        finally:
            backend.stop()


def once(kind: str, tmp: Path, upstream: int, connections: int, seconds: int) -> float:
    port = free_port()
    if kind == "gwcore":
        file = tmp / "now.yaml"
        file.write_text((tmp / "gateway.yaml").read_text().replace("PORT", str(port)))
        command = [sys.executable, "-m", "gwcore", "run", "-c", str(file)]
    else:
        command = [str(tmp / "relay"), str(port), str(upstream), kind]
    server = Server(command, port, 0)
    try:
        return float(measure(server, f"http://127.0.0.1:{port}/", connections, seconds)["cpu_us"])
    finally:
        server.stop()


def show(connections: int, cost: dict[str, list[float]]) -> None:
    for kind, costs in cost.items():
        ratio = statistics.median(x / y for x, y in zip(costs, cost["epoll"], strict=True))
        print(
            f"{connections:5} connections  {kind:7} {statistics.median(costs):6.1f} us  {ratio:.2f} of the epoll relay",
            flush=True,
        )


if __name__ == "__main__":
    main()
