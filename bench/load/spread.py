"""How SO_REUSEPORT spreads connections over workers, and what connections that keep one worker busy do to the short requests of all.

1. 10,000 connections from many addresses to 4 workers: each worker's count, and the largest deviation from the mean.
2. Short requests at a fixed rate over all workers, on kept connections and on a new one each: alone; with heavy connections (pipelines of requests
   without a pause) spread evenly over the workers; with as many, all on one worker. The last against the second is what the imbalance costs.

python -m bench.load.spread [--workers 4] [--connections 10000] [--rate 1500] [--seconds 5] [--rounds 2]
"""

from __future__ import annotations

import argparse
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.load.common import Server, far_socket, free_port, gwcore, raise_descriptors, status
from bench.load.openloop import openloop

HEAVY = 8  # connections
DEPTH = 32  # requests of each under way
HEAVY_RATE = 4000  # pipelines a second over all of them: one worker's share of a CPU, not the machine's whole
REQUEST = b"GET /proxy HTTP/1.1\r\nHost: a\r\n\r\n"


def counts(command: list[str], what: str = "connections") -> list[int]:
    return [w[what] for w in status(command)["workers"]]


def spread(command: list[str], port: int, n: int) -> list[int]:
    """Connections at each worker when n of them are open."""
    held = []
    for k in range(n):
        s = far_socket(k // 50)
        s.connect(("127.0.0.1", port))
        held.append(s)
    deadline = time.monotonic() + 10
    while sum(counts(command)) < n and time.monotonic() < deadline:
        time.sleep(0.1)
    found = counts(command)
    for s in held:
        s.close()
    time.sleep(1)
    return found


def at_worker(command: list[str], port: int, want: list[int]) -> list[socket.socket]:
    """One connection at each of these workers: which one took it shows in its count."""
    got: list[socket.socket] = []
    for number in want:
        while True:
            before = counts(command, "accepted")
            s = socket.create_connection(("127.0.0.1", port))
            while (after := counts(command, "accepted")) == before:
                time.sleep(0.002)
            if after[number] > before[number]:
                got.append(s)
                break
            s.close()
    return got


def heavy(fds: list[int]) -> None:
    """Pipelines of DEPTH requests, one after the other on each connection, HEAVY_RATE a second in all while the gateway keeps up."""
    ep = select.epoll()
    sockets = {fd: socket.socket(fileno=fd) for fd in fds}
    sockets[fds[0]].sendall(REQUEST)
    size = len(sockets[fds[0]].recv(65536)) * DEPTH
    left = dict.fromkeys(sockets, 0)
    for s in sockets.values():
        s.setblocking(False)
        ep.register(s.fileno(), select.EPOLLIN)
    begun, sent = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - begun) * HEAVY_RATE)
        while sent < due and not left[fds[sent % len(fds)]]:
            fd = fds[sent % len(fds)]
            sockets[fd].sendall(REQUEST * DEPTH)
            left[fd] = size
            sent += 1
        for fd, _ in ep.poll(0.001):
            data = sockets[fd].recv(1 << 20)
            if not data:
                sys.exit("spread: a heavy connection ended")
            left[fd] = max(left[fd] - len(data), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=1500)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--heavy", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    raise_descriptors()
    if args.heavy:
        return heavy(args.heavy)
    with tempfile.TemporaryDirectory() as d:
        port = free_port()
        limits = "limits: {requests_per_connection: 100000000}\n"
        command = gwcore(Path(d), port, "127.0.0.1:9", workers=args.workers, extra=limits)
        server = Server(command, port)
        for _ in range(args.rounds):
            found = spread(command, port, args.connections)
            mean = sum(found) / len(found)
            worst = max(abs(n - mean) for n in found) / mean
            print(
                f"{sum(found)} connections over {args.workers} workers: {found}, largest deviation from the mean {worst:.1%}",
                flush=True,
            )
        kinds = {
            "alone": [],
            "heavy, evenly": [i % args.workers for i in range(HEAVY)],
            "heavy, on one worker": [0] * HEAVY,
        }
        rows: dict[tuple[str, str], list[dict]] = {}
        shares: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            for kind, where in kinds.items():
                held = at_worker(command, port, where)
                driver = None
                if held:
                    fds = [s.fileno() for s in held]
                    driver = subprocess.Popen(
                        [sys.executable, "-m", "bench.load.spread", "--heavy", *map(str, fds)], pass_fds=fds
                    )
                    time.sleep(1.5)  # long-lived: the gateway has seen what they do before others come
                before = counts(command, "requests")
                for how, extra in (("kept", ()), ("new", ("--close",))):
                    r = openloop(
                        f"http://127.0.0.1:{port}/proxy",
                        args.rate,
                        200,
                        args.seconds,
                        *extra,
                        cpu=None,
                        servers={"gateway": server},
                    )
                    rows.setdefault((how, kind), []).append(r)
                done = [b - a for a, b in zip(before, counts(command, "requests"), strict=True)]
                shares[kind] = [n / sum(done) for n in done]
                if driver:
                    driver.kill()
                    driver.wait()
                for s in held:
                    s.close()
                time.sleep(0.5)
        server.stop()
    print(f"\nshort requests at {args.rate:.0f}/s, {HEAVY} heavy connections, pipelines of {DEPTH}")
    print(
        "| connections | state | p50 ms | p99 ms | p99.9 ms | CPU of gateway | errors | requests of each worker |\n|---|---|---|---|---|---|---|---|"
    )
    for (how, kind), found_ in sorted(rows.items()):
        m = {k: statistics.median(r[k] for r in found_) for k in ("p50", "p99", "p999", "cpu_gateway")}
        errors = sum(r["errors"] + r["unanswered"] for r in found_)
        share = ", ".join(f"{x:.0%}" for x in shares[kind])
        print(
            f"| {how} | {kind} | {m['p50']:.2f} | {m['p99']:.2f} | {m['p999']:.2f} | {m['cpu_gateway']:.0%} | {errors or 'none'} | {share} |"
        )
    for how in ("kept", "new"):
        one, even = rows[how, "heavy, on one worker"], rows[how, "heavy, evenly"]
        ratios = [statistics.median(a[k] / b[k] for a, b in zip(one, even, strict=True)) for k in ("p50", "p99")]
        print(f"{how} connections, heavy on one worker against evenly: p50 {ratios[0]:.2f}, p99 {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
