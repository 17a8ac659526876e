"""Idle connections: as many as the machine lets a gateway of several workers hold; memory against connections, a line through it, and what a
million would take. The kernel's part (both ends of each connection live here) stands apart. Goal: 400 bytes of ours each.

Each connection had one request and its answer before it fell idle. One process has at most so many descriptors as the hard limit says, so there
are several workers and several clients, who connect from many loopback addresses.

python -m bench.load.idle [--workers 8] [--connections 140000] [--steps 7] [--out bench/results]
python -m bench.load.idle --tls [--connections 6000] [--rounds 3]      over TLS 1.3, beside nginx and HAProxy
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.load.common import Server, far_socket, free_port, gwcore, memory, raise_descriptors, status
from bench.tls.idle import compare

RESERVE = 200  # descriptors of a process that are no clients'
PER_ADDRESS = 5000
REQUEST = b"GET /proxy HTTP/1.1\r\nHost: a\r\n\r\n"


def hold(port: int, first: int) -> None:
    """Reads a number from stdin, opens so many connections more, says how many it holds; until stdin ends."""
    raise_descriptors()
    held: list[socket.socket] = []
    ep = select.epoll()
    for line in sys.stdin:
        fresh: dict[int, socket.socket] = {}
        for _ in range(int(line)):
            s = far_socket(first + len(held) // PER_ADDRESS)
            s.connect(("127.0.0.1", port))
            s.send(REQUEST)
            held.append(s)
            fresh[s.fileno()] = s
            ep.register(s.fileno(), select.EPOLLIN)
        while fresh:  # every one has had its answer
            for fd, _ in ep.poll(20):
                ep.unregister(fd)
                if not fresh.pop(fd).recv(4096):
                    sys.exit("idle: the gateway closed a connection; give it more --workers")
        print(len(held), flush=True)


def kernel() -> dict[str, int]:
    """Bytes that the kernel says it uses for its own objects, and for the queues of TCP."""
    info = {x.split(":")[0]: int(x.split()[1]) * 1024 for x in Path("/proc/meminfo").read_text().splitlines()}
    tcp = next(x for x in Path("/proc/net/sockstat").read_text().splitlines() if x.startswith("TCP:")).split()
    return {"slab": info["Slab"], "available": info["MemAvailable"], "tcp": int(tcp[tcp.index("mem") + 1]) * 4096}


def line(points: list[dict], what: str) -> tuple[float, float]:
    """Least squares: (bytes for each connection, bytes of none)."""
    fit = statistics.linear_regression([p["connections"] for p in points], [p[what] for p in points])
    return fit.slope, fit.intercept


def draw(points: list[dict], fits: dict[str, tuple[float, float]], out: Path) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for axis, what, title, colour in (
        (axes[0], "ours", "gwcore, all processes", "#1b6ca8"),
        (axes[1], "slab", "kernel objects, both ends", "#9aa5b1"),
    ):
        slope, base = fits[what]
        x = [p["connections"] for p in points]
        axis.plot([n / 1000 for n in x], [p[what] / 1e6 for p in points], "o", color=colour)
        axis.plot([0, x[-1] / 1000], [base / 1e6, (base + slope * x[-1]) / 1e6], "-", color=colour, linewidth=1)
        axis.set_title(f"{title}: {slope:.0f} bytes a connection", fontsize=10)
        axis.set_xlabel("idle connections, thousands")
        axis.set_ylabel("MB")
        axis.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(out / "idle.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--connections", type=int, help="all that the workers have descriptors for when not given")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hold", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    each = raise_descriptors() - RESERVE
    if args.tls:
        return compare(args.connections or 6000, args.rounds)
    if args.hold:
        return hold(*args.hold)
    # the kernel spreads by a hash: the fullest worker is some standard deviations above the mean
    total = args.connections or int(args.workers * (each - 4 * each**0.5))
    clients = -(-total // each)
    points: list[dict] = []
    with tempfile.TemporaryDirectory() as d:
        port = free_port()
        limits = "timeouts: {keepalive: 1h}\nlimits: {connection_age: 2h}\n"
        command = gwcore(Path(d), port, "127.0.0.1:9", workers=args.workers, extra=limits, pool="max_connections: 1")
        server = Server(command, port)
        holders = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.load.idle", "--hold", str(port), str(i * 100)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(clients)
        ]
        time.sleep(1)
        begun = time.monotonic()
        before = kernel()
        for step in range(args.steps + 1):
            for p in holders if step else []:
                assert p.stdin
                p.stdin.write(f"{total // clients // args.steps}\n")
                p.stdin.flush()
            for p in holders if step else []:
                assert p.stdout
                if not p.stdout.readline():
                    sys.exit("idle: a client ended")
            time.sleep(1)
            k, workers = kernel(), status(command)["workers"]
            points.append(
                {
                    "connections": sum(w["connections"] for w in workers), "ours": memory(server.p.pid), "slab": k["slab"] - before["slab"],
                    "tcp": k["tcp"] - before["tcp"], "all": before["available"] - k["available"],
                    "fullest": max(w["connections"] for w in workers), "buffers": sum(w["buffer_bytes"] for w in workers),
                }
            )  # fmt: skip
            p_ = points[-1]
            print(
                f"{time.monotonic() - begun:5.0f}s {p_['connections']:8} connections: ours {p_['ours'] / 1e6:.1f} MB, kernel objects {p_['slab'] / 1e6:.0f} MB, "
                f"TCP queues {p_['tcp'] / 1e6:.1f} MB, machine {p_['all'] / 1e6:.0f} MB; fullest worker {p_['fullest']}, buffers {p_['buffers']}",
                flush=True,
            )
        closed = {k: n for k, n in status(command)["reasons"].items() if n}
        for p in holders:
            p.kill()
            p.wait()
        server.stop()
    fits = {what: line(points, what) for what in ("ours", "slab")}
    for what, title in (("ours", "gwcore"), ("slab", "kernel objects, both ends")):
        slope, base = fits[what]
        print(
            f"{title}: {slope:.0f} bytes a connection and {base / 1e6:.1f} MB; a million connections: {(base + slope * 1e6) / 1e6:.0f} MB"
        )
    print(f"goal 400 bytes of ours: {'met' if fits['ours'][0] <= 400 else 'missed'}; reasons: {closed or 'none'}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "idle.json").write_text(json.dumps({"workers": args.workers, "points": points, "fits": fits}, indent=1) + "\n")
    draw(points, fits, args.out)


if __name__ == "__main__":
    main()
