"""No reuse of upstream connections against a pool of 200, under many clients: reuses, the peak of descriptors, spread of the latency.

python -m bench.load.reuse [--clients 10000] [--seconds 10]     (needs twice as many descriptors as clients)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench.load.common import Server, Watch, descriptors, free_port, gwcore, need, status, wrk

POOLS = {
    "no reuse": "max_connections: 4096, max_idle: 0, queue: {size: 20000, timeout: 10s}",
    "pool of 200": "max_connections: 200, max_idle: 200, queue: {size: 20000, timeout: 10s}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=10)
    args = parser.parse_args()
    need("wrk", "taskset")
    print(
        "| pool | requests/s | opened | reused | requests per connection | descriptors at most | latency mean, stdev, p99 ms | errors |\n|---|---|---|---|---|---|---|---|"
    )
    for kind, pool in POOLS.items():
        with tempfile.TemporaryDirectory() as d:
            upstream, port = free_port(), free_port()
            backend = Server([sys.executable, "-m", "bench.load.backend", str(upstream)], upstream)
            command = gwcore(Path(d), port, f"127.0.0.1:{upstream}", workers=2, pool=pool)
            server = Server(command, port)
            watch = Watch(lambda server=server: descriptors(server.p.pid))  # type: ignore[misc]
            r = wrk(f"http://127.0.0.1:{port}/json", args.clients, args.seconds, "--timeout", "20s", cpu=None)
            stats = status(command)["upstreams"]["be"]
            print(
                f"| {kind} | {r['rps']:.0f} | {stats['opens']} | {stats['reuses']} | {stats['requests_per_connection']} | {watch.stop():.0f} "
                f"| {r['mean']:.0f}, {r['stdev']:.0f}, {r['p99']:.0f} | {r['errors'] or 'none'} |",
                flush=True,
            )
            server.stop()
            backend.stop()


if __name__ == "__main__":
    main()
