"""The tail at a fixed rate: p99 of gwcore beside nginx and HAProxy, at 70 % of each peer's own saturation rate, open loop.

For each peer that is installed: its saturation by wrk (closed loop, the same number of connections), then peer and gwcore in turns at 0.7 of it.
The floor is the client straight at the backend at that rate, before each round: when that is disturbed the machine is busy with something else,
and the round is done again (at most as often as there are rounds). Goal: gwcore no worse than the better peer.

python -m bench.load.tail [--rounds 3] [--seconds 6] [--connections 256] [--peers nginx haproxy]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from bench.load.common import Server, free_port, gwcore, need, wrk
from bench.load.openloop import HEAD, openloop, row
from bench.load.peers import backend_of, haproxy, nginx

FLOOR_MS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--peers", nargs="+", default=["nginx", "haproxy"], choices=["nginx", "haproxy"])
    parser.add_argument("--part", type=float, default=0.7)
    args = parser.parse_args()
    need("wrk", "taskset", "nginx")
    print(HEAD)
    verdicts = []
    with tempfile.TemporaryDirectory() as d:
        tmp = Path(d)
        upstream = free_port()
        backend = Server(backend_of(tmp, upstream), upstream, 1)
        for peer, make in (("nginx", nginx), ("haproxy", haproxy)):
            if peer not in args.peers or not shutil.which(peer):
                continue
            makers = {
                "gwcore": lambda port: gwcore(tmp, port, f"127.0.0.1:{upstream}"),
                peer: lambda port, make=make: make(tmp, port, upstream),
            }
            port = free_port()
            server = Server(makers[peer](port), port, 0)
            wrk(f"http://127.0.0.1:{port}/json", args.connections, 1)
            rate = wrk(f"http://127.0.0.1:{port}/json", args.connections, 4)["rps"] * args.part
            server.stop()
            rows: dict[str, list[dict]] = {"floor": [], **{name: [] for name in makers}}
            spare = args.rounds
            while len(rows[peer]) < args.rounds:
                for name in (peer, "gwcore") if len(rows[peer]) % 2 else ("gwcore", peer):
                    url = f"http://127.0.0.1:{upstream}/json"
                    floor = openloop(url, rate, args.connections, 2, servers={"backend": backend})
                    while floor["p99"] > FLOOR_MS and spare:
                        spare -= 1
                        floor = openloop(url, rate, args.connections, 2, servers={"backend": backend})
                    rows["floor"].append(floor)
                    port = free_port()
                    server = Server(makers[name](port), port, 0)
                    rows[name].append(
                        openloop(
                            f"http://127.0.0.1:{port}/json",
                            rate,
                            args.connections,
                            args.seconds,
                            servers={"gateway": server, "backend": backend},
                        )
                    )
                    server.stop()
            for name, found in rows.items():
                print(row(f"{rate:.0f} ({args.part:g} of {peer})", name, found), flush=True)
            ratio = statistics.median(a["p99"] / b["p99"] for a, b in zip(rows["gwcore"], rows[peer], strict=True))
            verdicts.append(f"p99 of gwcore at {args.part:g} of {peer}'s saturation: {ratio:.2f} of {peer}")
        backend.stop()
    print("\n".join(verdicts))


if __name__ == "__main__":
    main()
