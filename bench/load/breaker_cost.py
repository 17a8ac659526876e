"""What breakers cost: CPU of a proxied request with them and without, in short rounds one after the other on two gateways that both run all
the time. With two endpoints each request pays for its endpoint's breaker, too.

python -m bench.load.breaker_cost [--endpoints 1] [--connections 64] [--rounds 12] [--seconds 2]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from bench.load.common import Server, cpu_seconds, free_port, gwcore, need, wrk

POLICIES = {"off": "breaker: off, outlier: off", "on": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, default=1)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=2)
    args = parser.parse_args()
    need("wrk", "taskset")
    with tempfile.TemporaryDirectory() as d:
        backends = []
        for _ in range(args.endpoints):
            port = free_port()
            backends.append((port, Server([sys.executable, "-m", "bench.load.backend", str(port)], port, 1)))
        upstream = '", "'.join(f"127.0.0.1:{port}" for port, _ in backends)
        servers: dict[str, tuple[int, Server]] = {}
        for name, policy in POLICIES.items():
            port = free_port()
            servers[name] = port, Server(gwcore(Path(d), port, upstream, policy=policy), port, 0)
        rows: dict[str, list[float]] = {name: [] for name in POLICIES}
        for k in range(args.rounds + 1):
            for name, (port, server) in servers.items():
                before = cpu_seconds(server.p.pid)
                r = wrk(f"http://127.0.0.1:{port}/json", args.connections, args.seconds)
                if r["errors"]:
                    sys.exit(f"bench: {name}: {r['errors']}")
                if k:  # the first warms up
                    rows[name].append((cpu_seconds(server.p.pid) - before) / r["n"] * 1e6)
        for _, server in [*servers.values(), *backends]:
            server.stop()
    ratios = sorted(a / b for a, b in zip(rows["on"], rows["off"], strict=True))
    print(f"{args.endpoints} endpoints, {args.connections} clients, {args.rounds} rounds of {args.seconds} s")
    for name, found in rows.items():
        print(f"breakers {name}: {statistics.median(found):.2f} us of CPU per request")
    middle = ratios[len(ratios) // 4 : -(len(ratios) // 4) or None]
    print(f"on / off: {statistics.median(ratios):.3f} (middle half {middle[0]:.3f} to {middle[-1]:.3f})")


if __name__ == "__main__":
    main()
