"""Keep-alive traffic at a fixed rate while a storm of full handshakes comes in: its p99 against the quiet one, with handshakes in the worker and
in threads, and what became of the storm. Open loop: each latency counts from the moment the request was due.

The gateway (one worker and its threads) has one CPU, so that threads win nothing but order; clients share the other, the storm at a lower
priority. RSA-2048, the dearest key for a server and the cheapest for a client. A second storm has more clients than places in the queue, so that
handshakes are shed.

python -m bench.tls.storm [--rate 2000] [--connections 64] [--seconds 4] [--rounds 2] [--clients 6] [--tls]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.load.common import Server, free_port, pin, status
from bench.load.openloop import openloop
from bench.tls.common import certificate, gwcore

MODES = {
    "in the worker": "handshake_threads: 0",
    "1 thread": "handshake_threads: 1",
    "2 threads": "handshake_threads: 2",
    "1 thread, queue of 2": "handshake_threads: 1, handshake_queue: 2",
}


def run(directory: Path, mode: str, args: argparse.Namespace, clients: int) -> dict:
    """One run with so many clients in the storm."""
    port, plain = free_port(), free_port()
    command = gwcore(directory, port, certificate(directory, "rsa2048"), tls=MODES[mode], plain=plain)
    server = Server(command, port, 0)
    url = f"https://127.0.0.1:{port}/proxy" if args.tls else f"http://127.0.0.1:{plain}/proxy"
    seconds = args.seconds + 1  # the warm-up
    storm = [
        subprocess.Popen(
            [*pin(1), "nice", "-n", "10", sys.executable, "-m", "bench.tls.client", str(port), "--seconds", str(seconds + 1)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(clients)
    ]
    r = openloop(url, args.rate, args.connections, args.seconds, servers={"gateway": server})
    found = [json.loads(p.communicate()[0]) for p in storm]
    r["done"] = sum(f["done"] for f in found) / (seconds + 1)
    r["failed"] = sum(f["failed"] for f in found) / (seconds + 1)
    r["shed"] = status(command)["reasons"].get("overload", 0) / (seconds + 1)
    server.stop()
    return r


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=2000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--tls", action="store_true", help="the keep-alive traffic is TLS too, not on a listener beside")
    args = parser.parse_args()
    print(
        "| handshakes | traffic | p50 ms | p99 ms | p99.9 ms | p99 of quiet | handshakes/s, shed/s, other failures/s | CPU of gateway | errors |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as d:
        for mode in MODES:
            found: dict[str, list[dict]] = {"quiet": [], "storm": []}
            for _ in range(args.rounds):
                for state, clients in (("quiet", 0), ("storm", args.clients)):
                    found[state].append(run(Path(d), mode, args, clients))
            ratio = statistics.median(s["p99"] / q["p99"] for s, q in zip(found["storm"], found["quiet"], strict=True))
            for state, runs in found.items():
                m = {
                    k: statistics.median(r[k] for r in runs)
                    for k in ("p50", "p99", "p999", "done", "shed", "failed", "cpu_gateway")
                }
                errors = sum(r["errors"] + r["unanswered"] for r in runs)
                print(
                    f"| {mode} | {state} | {m['p50']:.2f} | {m['p99']:.2f} | {m['p999']:.2f} | {ratio if state == 'storm' else 1:.2f} | "
                    f"{m['done']:.0f}, {m['shed']:.0f}, {max(m['failed'] - m['shed'], 0):.0f} | {m['cpu_gateway']:.0%} | {errors or 'none'} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
