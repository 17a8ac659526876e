"""A fleet of gateways behind a balancer that picks one at random, and clients who come back (Zipf), each with the session it got last: how many are
resumed with no sharing, with sessions in Redis, in Redis behind a local cache, and with shared ticket keys.

Real gateways (a process tree each, so each is a machine to the others), real OpenSSL clients, a real Redis. "of the possible" leaves out first visits,
which nobody can resume. The look-up is what a resumed handshake takes longer (median, as the client sees it) than one whose ticket is opened
by the gateway alone; clients come one after the other, so nothing waits but for the look-up. CPU is that of all gateways for each connection with one request.

python -m bench.tls.resumption [--gateways 4] [--clients 1500] [--visits 5000] [--zipf 1.0] [--cache 50000]
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import random
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path

from bench.load.common import Server, cpu_seconds, free_port, status
from bench.tls.client import REQUEST
from bench.tls.common import certificate, client_context, gwcore

SECRET = "0123456789abcdef" * 4
STORE = f"sessions: {{redis: on, secret: {SECRET}"
# (name, of the listener's tls, of tls)
ROWS = [
    ("no sharing", "", ""),
    ("shared ticket keys (secret)", "", f"tickets: {{share: secret, secret: {SECRET}}}"),
    ("shared ticket keys (Redis)", "", f"tickets: {{share: redis, secret: {SECRET}}}"),
    ("store: Redis only", "sessions: store", f"{STORE}, cache: 8}}"),
    ("store: local cache and Redis", "sessions: store", f"{STORE}, cache: CACHE}}"),
]


def visit(
    host: str, port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[bool, float, ssl.SSLSession | None]:
    """(resumed, seconds of the handshake, the session to come back with)."""
    raw = socket.create_connection((host, port), 10)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    begun = time.perf_counter()
    with context.wrap_socket(raw, server_hostname="localhost", session=session) as s:
        took = time.perf_counter() - begun
        s.sendall(REQUEST)
        while s.recv(4096):
            pass
        return bool(s.session_reused), took, s.session


def accepted(command: list[str]) -> bool:
    return subprocess.run([*command[:3], "check", *command[4:]], capture_output=True, check=False).returncode == 0


def run(directory: Path, listener: str, tls: str, redis: int, args: argparse.Namespace) -> dict | None:
    """One row; None when this build does not know its configuration."""
    pair = certificate(directory)
    port = free_port()
    hosts = [f"127.0.0.{10 + i}" for i in range(args.gateways)]
    extra = f'redis: {{url: "redis://127.0.0.1:{redis}/0"}}\n' if "redis" in tls else ""
    tls = tls.replace("CACHE", str(args.cache))
    commands = [gwcore(directory, port, pair, listener=listener, tls=tls, extra=extra, host=h) for h in hosts]
    if not accepted(commands[0]):
        return None
    servers = [Server(c, port, 0, host=h) for c, h in zip(commands, hosts, strict=True)]
    time.sleep(1)  # rings of keys are there
    rng = random.Random(1)
    weights = list(itertools.accumulate(1 / (k + 1) ** args.zipf for k in range(args.clients)))
    context = client_context()
    sessions: dict[int, ssl.SSLSession | None] = {}
    hits, possible, took, before = 0, 0, [], 0.0
    for h in hosts * 4:
        visit(h, port, context, None)
    before = sum(cpu_seconds(s.p.pid) for s in servers)
    for _ in range(args.visits):
        who = bisect.bisect(weights, rng.random() * weights[-1])
        session = sessions.get(who)
        resumed, seconds, sessions[who] = visit(rng.choice(hosts), port, context, session)
        possible += session is not None
        hits += resumed
        if resumed:
            took.append(seconds * 1000)
    cpu = (sum(cpu_seconds(s.p.pid) for s in servers) - before) / args.visits * 1e6
    kinds: dict[str, int] = {}
    for c in commands:
        for k, n in status(c)["tls"]["resumed"].items():
            kinds[k] = kinds.get(k, 0) + n
    for s in servers:
        s.stop()
    took.sort()
    return {
        "all": hits / args.visits, "possible": hits / max(possible, 1), "p50": took[len(took) // 2] if took else 0.0,
        "p99": took[int(len(took) * 0.99)] if took else 0.0, "cpu": cpu, "kinds": {k: n for k, n in kinds.items() if n},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateways", type=int, default=4)
    parser.add_argument("--clients", type=int, default=1500)
    parser.add_argument("--visits", type=int, default=5000)
    parser.add_argument("--zipf", type=float, default=1.0)
    parser.add_argument("--cache", type=int, default=50_000, help="sessions in each machine's local cache")
    args = parser.parse_args()
    redis = free_port()
    with tempfile.TemporaryDirectory() as d:
        server = None
        if shutil.which("redis-server"):
            server = Server(["redis-server", "--port", str(redis), "--bind", "127.0.0.1", "--save", "", "--dir", d], redis, 1)
        base = 0.0
        print(
            "| sessions | resumed | of the possible | handshake p50, p99 ms | look-up ms | CPU us a connection | by kind |\n|---|---|---|---|---|---|---|"
        )
        for name, listener, tls in ROWS:
            if "redis" in tls and server is None:
                print(f"| {name} | no redis-server here |")
                continue
            r = run(Path(d), listener, tls, redis, args)
            if r is None:
                print(f"| {name} | not in this build |", flush=True)
                continue
            base = base or r["p50"]
            kinds = ", ".join(f"{k} {n}" for k, n in r["kinds"].items())
            print(
                f"| {name} | {r['all']:.1%} | {r['possible']:.1%} | {r['p50']:.2f}, {r['p99']:.2f} | {r['p50'] - base:.2f} | {r['cpu']:.0f} | {kinds or 'none'} |",
                flush=True,
            )  # fmt: skip
        if server:
            server.stop()


if __name__ == "__main__":
    main()
