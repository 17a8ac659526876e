"""Three times the capacity: requests of three tiers, in the open loop, at an upstream that serves so many at once and queues the others. Before, during
and after: how much of the capacity becomes good answers, who is refused, what becomes of P0's latency, of the workers' memory, and how soon all is well
again. The same with no limit, with a fixed one and with the adaptive one.

python -m bench.load.overload [--servers 10] [--ms 10] [--factor 3] [--seconds 10] [--only adaptive] [--workers 2]

Held to: goodput at least 95 % of the capacity, P0's median within 1.5 of its normal (fixed limit), no memory growth, recovery within 5 s.
The upstream alone is another process; its capacity is measured first, straight, in the closed loop.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from bench.load.common import Server, free_port, memory, status

MIX = (0.1, 0.3, 0.6)  # of P0, P1, P2
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
REASON = re.compile(rb'"reason":"(\w+)"')
BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


# ---- the upstream -------------------------------------------------------------------------------------------------


class Backend:
    """Serves `servers` requests at once, `seconds` each; the others wait in the order in which they came."""

    def __init__(self, servers: int, seconds: float):
        self.free, self.seconds, self.waiting = servers, seconds, deque[asyncio.Transport]()
        self.loop = asyncio.get_running_loop()

    def take(self, t: asyncio.Transport) -> None:
        if self.free:
            self.free -= 1
            self.loop.call_later(self.seconds, self.give, t)
        else:
            self.waiting.append(t)

    def give(self, t: asyncio.Transport) -> None:
        if not t.is_closing():
            t.write(BODY)
        while self.waiting:
            t = self.waiting.popleft()
            if not t.is_closing():
                self.loop.call_later(self.seconds, self.give, t)
                return
        self.free += 1


class Served(asyncio.Protocol):
    def __init__(self, backend: Backend):
        self.backend, self.part = backend, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.part += data
        while b"\r\n\r\n" in self.part:
            self.part = self.part.partition(b"\r\n\r\n")[2]
            self.backend.take(self.transport)


async def backend(port: int, servers: int, seconds: float) -> None:
    b = Backend(servers, seconds)
    server = await asyncio.get_running_loop().create_server(lambda: Served(b), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


# ---- the clients --------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    began: float
    tier: int
    seconds: float
    status: int
    reason: str


@dataclass
class Load:
    """Open-loop clients of three tiers over as many kept connections as it takes. `answers` has what came."""

    port: int
    path: str = "/p%d"
    answers: list[Answer] = field(default_factory=list)
    idle: list[Client] = field(default_factory=list)
    out: int = 0
    failed: int = 0

    async def run(self, rate: float, seconds: float, seed: int = 1) -> tuple[float, float]:
        """Requests at a rate, at random moments; returns when it began and ended."""
        r = random.Random(seed)
        began = at = time.monotonic()
        while at < began + seconds:
            at += r.expovariate(rate)
            late = at - time.monotonic()
            if late > 0.0005:
                await asyncio.sleep(late)
            u = r.random()
            self.ask(0 if u < MIX[0] else 1 if u < MIX[0] + MIX[1] else 2)
        return began, began + seconds

    def ask(self, tier: int) -> None:
        self.out += 1
        if self.idle:
            self.idle.pop().send(tier)
        else:
            task = asyncio.ensure_future(self.connect(tier))
            task.add_done_callback(lambda t: t.exception())

    async def connect(self, tier: int) -> None:
        began = time.monotonic()
        try:
            _, client = await asyncio.get_running_loop().create_connection(lambda: Client(self), "127.0.0.1", self.port)
        except OSError:
            self.out -= 1
            self.failed += 1
            return
        client.send(tier, began)

    async def rest(self, most: float = 5.0) -> None:
        """Until every request has its answer."""
        end = time.monotonic() + most
        while self.out and time.monotonic() < end:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        for c in self.idle:
            c.transport.abort()


class Client(asyncio.Protocol):
    def __init__(self, load: Load):
        self.load, self.part, self.busy = load, b"", False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, tier: int, began: float = 0.0) -> None:
        self.began, self.tier, self.busy = began or time.monotonic(), tier, True
        path = self.load.path % tier if "%d" in self.load.path else self.load.path
        self.transport.write(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())

    def data_received(self, data: bytes) -> None:
        self.part += data
        head, end, body = self.part.partition(b"\r\n\r\n")
        if not end or len(body) < int(LENGTH.search(head)[1]):
            return
        reason = REASON.search(body)
        self.load.answers.append(
            Answer(self.began, self.tier, time.monotonic() - self.began, int(head[9:12]), reason[1].decode() if reason else "")
        )
        self.part, self.busy = b"", False
        self.load.out -= 1
        if b"\r\nConnection: close" in head:
            self.transport.close()
        else:
            self.load.idle.append(self)

    def connection_lost(self, _: Exception | None) -> None:
        if self.busy:
            self.load.out -= 1
            self.load.failed += 1
        elif self in self.load.idle:
            self.load.idle.remove(self)


async def capacity(port: int, servers: int, seconds: float = 2.0) -> float:
    """Answers a second, by twice as many closed-loop clients as are served at once."""
    load = Load(port, "/")
    for _ in range(2 * servers):
        load.ask(1)
    await asyncio.sleep(0.3)
    n, began = len(load.answers), time.monotonic()
    while time.monotonic() < began + seconds:
        while load.idle:
            load.ask(1)
        await asyncio.sleep(0.0005)
    rate = (len(load.answers) - n) / (time.monotonic() - began)
    await load.rest()
    load.close()
    return rate


# ---- a run --------------------------------------------------------------------------------------------------------


def config(port: int, admin: int, upstream: int, workers: int, concurrency: str, extra: str = "") -> str:
    routes = "".join(f"  - {{name: p{i}, match: {{prefix: /p{i}}}, upstream: be, tier: P{i}}}\n" for i in range(3))
    return (
        f'workers: {workers}\nlisteners: [{{address: "127.0.0.1:{port}"}}]\nadmin: {{address: "127.0.0.1:{admin}"}}\n'
        f'access_log: {{path: "off"}}\nupstreams:\n  be: {{endpoints: ["127.0.0.1:{upstream}"], concurrency: {concurrency},\n'
        f"       pool: {{max_connections: 4096, max_idle: 4096}}}}\nroutes:\n{routes}{extra}"
    )


@dataclass
class Phase:
    """What became of the requests sent in a span of time, and of the answers that came in it."""

    good_per_s: float
    refused: list[float]  # share, by tier
    p50: list[float]
    p99: list[float]
    reasons: Counter[str]


def phase(answers: list[Answer], began: float, ended: float) -> Phase:
    sent = [[a for a in answers if a.tier == t and began <= a.began < ended] for t in range(3)]
    good = [sorted(a.seconds for a in x if a.status == 200) or [0.0] for x in sent]
    return Phase(
        sum(a.status == 200 and began <= a.began + a.seconds < ended for a in answers) / (ended - began),
        [sum(a.status != 200 for a in x) / max(1, len(x)) for x in sent],
        [statistics.median(g) for g in good],
        [g[len(g) * 99 // 100] for g in good],
        Counter(f"P{a.tier} {a.reason}" for x in sent for a in x if a.status != 200),
    )


def last_refusal(answers: list[Answer], ended: float) -> float:
    """Seconds from the end of the load until the last request was sent that was refused."""
    return max([a.began - ended for a in answers if a.began >= ended and a.status != 200], default=0.0)


def recovery(answers: list[Answer], ended: float, normal: float) -> float:
    """Seconds from the end of the load until nobody was refused any more and P0 had its normal latency again (by quarters of a second)."""
    last = last_refusal(answers, ended)
    for k in range(24):
        quarter = [a.seconds for a in answers if a.tier == 0 and ended + k / 4 <= a.began < ended + (k + 1) / 4]
        if quarter and statistics.median(quarter) > 1.5 * normal:
            last = max(last, (k + 1) / 4)
    return last


async def three_phases(port: int, rate: float, factor: float, seconds: float) -> tuple[Load, Phase, Phase, float]:
    """Half of the rate, then `factor` times it, then half again: (load, calm, overloaded, when the overload ended)."""
    load = Load(port)
    await load.run(rate / 2, 2)
    calm = await load.run(rate / 2, seconds / 2, 2)
    over = await load.run(rate * factor, seconds, 3)
    await load.run(rate / 2, 6, 4)
    await load.rest()
    return load, phase(load.answers, *calm), phase(load.answers, over[0] + 1, over[1]), over[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=10)
    parser.add_argument("--ms", type=float, default=10.0)
    parser.add_argument("--factor", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=["off", "fixed", "adaptive"])
    parser.add_argument("--backend", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    import uvloop

    if args.backend:
        uvloop.run(backend(args.backend, args.servers, args.ms / 1000))
        return
    upstream = free_port()
    served = Server(
        [
            sys.executable,
            "-m",
            "bench.load.overload",
            "--backend",
            str(upstream),
            "--servers",
            str(args.servers),
            "--ms",
            str(args.ms),
        ],
        upstream,
    )
    rate = uvloop.run(capacity(upstream, args.servers))
    print(
        f"capacity {rate:.0f}/s ({args.servers} at once, {args.ms:g} ms each); offered {args.factor:g} times that, P0 {MIX[0]:.0%}, P1 {MIX[1]:.0%}, P2 {MIX[2]:.0%}\n"
    )
    print(
        "| limit | goodput, of capacity | refused P0, P1, P2 | P0 p50 ms: normal, load | ratio | P0 p99 ratio | memory MB: before, after | recovered in s | held |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    failed = False
    for name, value in (("off", "off"), ("fixed", str(args.servers * 12 // 10)), ("adaptive", "adaptive")):
        if args.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as d:
            port, admin = free_port(), free_port()
            file = Path(d) / "gw.yaml"
            file.write_text(config(port, admin, upstream, args.workers, value))
            command = [sys.executable, "-m", "gwcore", "run", "-c", str(file)]
            gateway = Server(command, port)
            warm = uvloop.run(warmed(port, rate))
            before = memory(gateway.p.pid)
            load, calm, over, ended = uvloop.run(three_phases(port, rate, args.factor, args.seconds))
            time.sleep(0.5)
            after = memory(gateway.p.pid)
            state = status(command)
            gateway.stop()
        be = state["upstreams"]["be"]
        assert be["waiting"] == be["limit_in_flight"] == be["in_use"] == 0, be
        back = recovery(load.answers, ended, calm.p50[0])
        share, ratio = over.good_per_s / rate, over.p50[0] / calm.p50[0]
        held = name == "off" or (
            share >= 0.95 and back <= 5 and after <= before * 1.1 + 2e6 and (name == "adaptive" or ratio <= 1.5)
        )
        failed = failed or not held
        print(
            f"| {name if name != 'fixed' else 'fixed ' + value} | {share:.1%} | {over.refused[0]:.1%}, {over.refused[1]:.1%}, {over.refused[2]:.1%} | "
            f"{calm.p50[0] * 1e3:.1f}, {over.p50[0] * 1e3:.1f} | {ratio:.2f} | {over.p99[0] / calm.p99[0]:.2f} | {before / 1e6:.1f}, {after / 1e6:.1f} | "
            f"{back:.1f} | {'-' if name == 'off' else 'yes' if held else 'NO'} |"
        )
        print(f"  {dict(over.reasons)}, failed {load.failed}, {warm} answers before", file=sys.stderr)
    served.stop()
    sys.exit(failed)


async def warmed(port: int, rate: float) -> int:
    """The most connections and buffers that there will be, so that what grows afterwards is a leak."""
    load = Load(port)
    await load.run(rate * 3, 3)
    await load.rest()
    load.close()
    return len(load.answers)


if __name__ == "__main__":
    main()
