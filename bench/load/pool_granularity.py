"""One pool for each backend against one for each connection template: 64 clients send the requests of N users; the backend authenticates
connections, so that with templates each user has connections of its own. Both sides interleaved.

python -m bench.load.pool_granularity [--users 16] [--rounds 3] [--seconds 4]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from bench.load.common import Server, free_port, gwcore, measure, need, status

POOLS = {
    "backend": "max_connections: 512, max_idle: 512",
    "template": "max_connections: 512, max_idle: 512, granularity: template, principal: Authorization",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    args = parser.parse_args()
    need("wrk", "taskset")
    with tempfile.TemporaryDirectory() as d:
        tmp = Path(d)
        script = tmp / "users.lua"
        script.write_text(
            f'local n = 0\nrequest = function()\n  n = n + 1\n  wrk.headers["Authorization"] = "user-" .. n % {args.users}\n  return wrk.format()\nend\n'
        )
        upstream = free_port()
        backend = Server([sys.executable, "-m", "bench.load.backend", str(upstream)], upstream, 1)
        rows: dict[str, list[dict]] = {k: [] for k in POOLS}
        for _ in range(args.rounds):
            for kind, pool in POOLS.items():
                port = free_port()
                command = gwcore(tmp, port, f"127.0.0.1:{upstream}", pool=pool)
                server = Server(command, port, 0)
                row = measure(server, f"http://127.0.0.1:{port}/json", 64, args.seconds, "-s", str(script))
                stats = status(command)["upstreams"]["be"]
                row["setup"] = stats["opens"] / (stats["opens"] + stats["reuses"])
                row["opens"] = stats["opens"]
                rows[kind].append(row)
                server.stop()
        backend.stop()
    print(f"{args.users} users, 64 clients, {args.rounds} rounds of {args.seconds} s")
    print(
        "| pool for each | requests/s | p99 ms | CPU us | connections opened | share of requests that opened one | errors |\n|---|---|---|---|---|---|---|"
    )
    for kind, found in rows.items():
        m = {k: statistics.median(r[k] for r in found) for k in ("rps", "p99", "cpu_us", "opens", "setup")}
        errors = " ".join(r["errors"] for r in found).strip() or "none"
        print(
            f"| {kind} | {m['rps']:.0f} | {m['p99']:.2f} | {m['cpu_us']:.1f} | {m['opens']:.0f} | {m['setup']:.5f} | {errors} |"
        )
    ratio = statistics.median(t["rps"] / b["rps"] for b, t in zip(rows["backend"], rows["template"], strict=True))
    print(f"throughput of template against backend: {ratio:.3f}")


if __name__ == "__main__":
    main()
