"""A hundred thousand cancelled requests, mixed with faults of the upstream: clients that leave at a random byte and moment, by FIN or by RST. Ends
with every count at zero (connections, exchanges, permits, places, waiters, buffers) and no socket more than before, or fails.

python -m bench.load.cancels [--requests 100000] [--clients 200]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path

from bench.load.common import Server, free_port, gwcore, raise_descriptors, status, tree
from bench.load.hostile import REQUESTS

RESET = struct.pack("ii", 1, 0)
LONGEST_S = 0.03  # that a client stays after its last byte
REST_S = 20.0  # by then all that was under way has met its time limit
POLICY = (
    "concurrency: adaptive, timeouts: {response: 2s, connect: 1s}, "
    "retry: {on: [connect, stale, reset, timeout], statuses: [503]}, breaker: {open: 100ms, open_max: 500ms}"
)


async def cancel(port: int) -> None:
    request = random.choice(REQUESTS)
    s = socket.socket()
    s.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(s, ("127.0.0.1", port))
        with contextlib.suppress(BlockingIOError):
            s.send(request[: random.randint(0, len(request))])
        await asyncio.sleep(random.random() * LONGEST_S)
        if random.random() < 0.5:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    except OSError:
        pass  # refused under load: as good an end as any
    finally:
        s.close()


async def storm(port: int, requests: int, clients: int) -> None:
    async def one(n: int) -> None:
        for _ in range(n):
            await cancel(port)

    await asyncio.gather(*(one(requests // clients) for _ in range(clients)))


def sockets(pid: int) -> int:
    """Open sockets of a process tree. The pipes of splice are kept, up to a limit, and do not count."""
    n = 0
    for p in tree(pid):
        for fd in Path(f"/proc/{p}/fd").iterdir():
            with contextlib.suppress(OSError):
                n += str(fd.readlink()).startswith("socket:")
    return n


def at_rest(found: dict) -> dict[str, int]:
    """What is not zero and should be."""
    counts = {
        k: sum(w[k] for w in found["workers"])
        for k in ("connections", "exchanges", "buffer_bytes", "tunnels", "illegal_moves", "permits")
    }
    for u in found["upstreams"].values():
        counts |= {k: counts.get(k, 0) + u[k] for k in ("waiting", "in_use", "connecting", "limit_in_flight")}
    return {k: n for k, n in counts.items() if n}


def rest(command: list[str], before: int, pid: int) -> bool:
    """Wait until all counts are zero, and there are no more descriptors than before (0: however many). Is something left after REST_S?"""
    end, left = time.monotonic() + REST_S, True
    while left and time.monotonic() < end:
        time.sleep(2)
        left = bool(at_rest(status(command))) or 0 < before < sockets(pid)
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=200)
    args = parser.parse_args()
    raise_descriptors()
    with tempfile.TemporaryDirectory() as d:
        first, second, port = free_port(), free_port(), free_port()
        backends = [Server([sys.executable, "-m", "bench.load.hostile", "upstream", str(p)], p) for p in (first, second)]
        command = gwcore(
            Path(d), port, f'127.0.0.1:{first}", "127.0.0.1:{second}', workers=2, policy=POLICY, pool="idle_timeout: 1s"
        )
        server = Server(command, port)
        asyncio.run(storm(port, args.requests // 10, args.clients))  # what is made once is there
        rest(command, 0, server.p.pid)
        before = sockets(server.p.pid)
        begun = time.monotonic()
        asyncio.run(storm(port, args.requests, args.clients))
        took = time.monotonic() - begun
        left = rest(command, before, server.p.pid)
        found = status(command)
        print(f"{args.requests} requests cancelled in {took:.0f} s; reasons {found['reasons']}")
        print(f"sockets {before} before, {sockets(server.p.pid)} after; not at rest: {at_rest(found) or 'nothing'}")
        server.stop()
        for b in backends:
            b.stop()
        if left:
            sys.exit("cancels: something was left")


if __name__ == "__main__":
    main()
