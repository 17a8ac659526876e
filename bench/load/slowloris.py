"""10,000 slow-loris connections, a byte of a head each second on each, and what they do to the latency of good clients at a fixed rate.

The gateway answers 408 after `timeouts.header` (10 s) and the attacker comes back at once, so there is a thousand new connections a second too.
Quiet and attacked, interleaved, and each time the same clients straight at the backend too: they share a CPU with the attacker, who gives way to
them, and what he takes from them all the same shows there. Goal: attacked at most 1.2 of normal.

python -m bench.load.slowloris [--connections 10000] [--rate 4000] [--seconds 8] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.load.common import Server, far_socket, free_port, gwcore, need, pin, raise_descriptors, status
from bench.load.openloop import openloop

PER_ADDRESS = 500
HEADER_S = 10.0  # timeouts.header: opened evenly over it, so many are refused, and come again, in each second
SLICES = 200  # of the second in which each connection gets its byte
BEGIN = b"GET /json HTTP/1.1\r\nHost: a\r\n"
REST = b"X-Slow: 1\r\n"


def step_aside() -> None:
    """Give way at once to whoever else wants this CPU: the attacker shall load the gateway, not the clients it shares a CPU with."""
    raise_descriptors()
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def attack(port: int, n: int) -> None:
    """Until stdin ends. Says a line when all are connected."""
    step_aside()
    ep = select.epoll()
    sockets: dict[int, socket.socket] = {}
    slices: list[dict[int, int]] = [{} for _ in range(SLICES)]  # descriptor -> bytes sent so far
    slice_of: dict[int, int] = {}

    def open_(k: int, which: int) -> None:
        s = far_socket(k // PER_ADDRESS)
        s.connect(("127.0.0.1", port))
        s.setblocking(False)
        with contextlib.suppress(OSError):
            s.send(BEGIN)
        fd = s.fileno()
        sockets[fd], slices[which][fd], slice_of[fd] = s, 0, which
        ep.register(fd, select.EPOLLIN | select.EPOLLRDHUP)

    ep.register(0, select.EPOLLIN)
    start = time.monotonic()
    for k in range(n):
        open_(k, k % SLICES)
        if k % 20 == 0:
            time.sleep(max(start + HEADER_S * k / n - time.monotonic(), 0))
    print("connected", flush=True)
    begin, turn, opened = time.monotonic(), 0, n
    while True:
        for fd, _ in ep.poll(max(begin + turn / SLICES - time.monotonic(), 0)):
            if fd == 0:
                os._exit(0)  # the kernel closes faster than we do
            which = slice_of.pop(fd)
            del slices[which][fd]
            ep.unregister(fd)
            sockets.pop(fd).close()
            open_(opened % n, which)
            opened += 1
        if time.monotonic() >= begin + turn / SLICES:
            now = slices[turn % SLICES]
            for fd, sent in now.items():
                at = sent % len(REST)
                with contextlib.suppress(OSError):
                    os.write(fd, REST[at : at + 1])
                now[fd] = sent + 1
            turn += 1


class Attack:
    def __init__(self, port: int, n: int):
        self.p = subprocess.Popen(
            [*pin(0), sys.executable, "-m", "bench.load.slowloris", "--attack", str(port), "--connections", str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.p.stdout
        self.p.stdout.readline()

    def stop(self) -> None:
        assert self.p.stdin
        self.p.stdin.close()
        self.p.wait(20)
        time.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=4000)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--attack", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.attack:
        return attack(args.attack, args.connections)
    need("taskset")
    rows: dict[str, list[dict]] = {x: [] for x in ("quiet", "attacked", "quiet, past the gateway", "attacked, past the gateway")}
    with tempfile.TemporaryDirectory() as d:
        upstream, port = free_port(), free_port()
        backend = Server([sys.executable, "-m", "bench.load.backend", str(upstream)], upstream, 1)
        command = gwcore(Path(d), port, f"127.0.0.1:{upstream}")
        server = Server(command, port, 0)
        for _ in range(args.rounds):
            for kind in ("quiet", "attacked"):
                attacker = Attack(port, args.connections) if kind == "attacked" else None
                if attacker:
                    time.sleep(1)  # the first are refused
                for past, to in (("", port), (", past the gateway", upstream)):
                    r = openloop(f"http://127.0.0.1:{to}/json", args.rate, 64, args.seconds)
                    r["held"] = status(command)["workers"][0]["connections"]
                    rows[kind + past].append(r)
                if attacker:
                    attacker.stop()
        reasons = status(command)["reasons"]
        server.stop()
        backend.stop()
    print(
        f"{args.connections} slow connections, good clients at {args.rate:.0f} requests/s over 64 connections, {args.rounds} rounds"
    )
    print(
        "| state | connections | p50 ms | p99 ms | p99.9 ms | client's lag p99 | p50, p99 of quiet | errors |\n|---|---|---|---|---|---|---|---|"
    )
    for kind, found in rows.items():
        m = {k: statistics.median(r[k] for r in found) for k in ("held", "p50", "p99", "p999", "lag_p99")}
        ratio = [
            statistics.median(a[k] / b[k] for a, b in zip(found, rows[kind.replace("attacked", "quiet")], strict=True))
            for k in ("p50", "p99")
        ]
        errors = sum(r["errors"] + r["unanswered"] for r in found)
        print(
            f"| {kind} | {m['held']:.0f} | {m['p50']:.2f} | {m['p99']:.2f} | {m['p999']:.2f} | {m['lag_p99']:.2f} "
            f"| {ratio[0]:.2f}, {ratio[1]:.2f} | {errors or 'none'} |"
        )
    print(f"refused slow heads: {reasons.get('header_timeout', 0)}")


if __name__ == "__main__":
    main()
