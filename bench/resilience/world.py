"""Ten scripted endpoints for each gateway, and the open-loop client in front of it, all in one process: so every request's way is known."""

from __future__ import annotations

import asyncio
import random
import re
import socket
from dataclasses import dataclass, field

from bench.resilience.scenarios import ENDPOINTS, HANG, RESET, Scenario

CHECK = b"/healthz"
LUCK = 10007  # a fate times this is another one
PATIENCE_S = 10.0  # an answer that comes later has failed
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass
class Request:
    """One request of the client, and what became of it."""

    due: float  # seconds after the beginning of the fault
    fate: float
    leaves: bool
    status: int = 0  # 0: no answer
    reason: str = ""  # a gateway's
    took: float = 0.0
    reached: list[tuple[float, int]] = field(default_factory=list)  # when and which endpoint

    @property
    def outcome(self) -> str:
        """ok, left, refused (no endpoint ever saw it) or failed (so is an answer that nobody waits for)."""
        if self.leaves:
            return "left"
        if 200 <= self.status < 500 and self.took < PATIENCE_S:
            return "ok"
        return "failed" if self.reached else "refused"


def requests(s: Scenario, before: float, length: float, after: float) -> list[Request]:
    """The same for each gateway: Poisson arrivals, fates and leavers from one seed."""
    rng = random.Random(7)
    out, at = [], -before
    while (at := at + rng.expovariate(s.rate)) < length + after:
        out.append(Request(at, rng.random(), rng.random() < s.leave and 0 <= at < length))
    return out


class Endpoint(asyncio.Protocol):
    """One connection at a scripted endpoint."""

    def __init__(self, world: World, number: int):
        self.world, self.number, self.data = world, number, b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            path = self.data[:end].split(b" ", 2)[1]
            self.data = self.data[end + 4 :]
            status, delay = self.world.asked(path, self.number)
            if status == RESET:
                self.transport.abort()
            elif status != HANG:
                self.world.loop.call_later(delay, self.answer, status)

    def answer(self, status: int) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok" % status)


class World:
    """The endpoints of one gateway and its client."""

    def __init__(self, s: Scenario, length: float, network: int, plan: list[Request]):
        self.scenario, self.length, self.plan = s, length, plan
        self.loop = asyncio.get_running_loop()
        self.zero = float("inf")  # when the fault begins, on the loop's clock
        self.hosts = [f"127.{network}.0.{1 + i}" for i in range(ENDPOINTS)]
        self.port = 0
        self.idle: list[Client] = []
        self.pending: set[asyncio.Task[None]] = set()

    @property
    def now(self) -> float:
        return self.loop.time() - self.zero

    @property
    def addresses(self) -> list[str]:
        return [f"{host}:{self.port}" for host in self.hosts]

    async def listen(self) -> None:
        for i, host in enumerate(self.hosts):
            server = await self.loop.create_server(lambda i=i: Endpoint(self, i), host, self.port)  # type: ignore[misc]
            self.port = server.sockets[0].getsockname()[1]

    def asked(self, path: bytes, endpoint: int) -> tuple[int, float]:
        """A request or a check has come to an endpoint: what it does. Checks have the fate of the unlucky half of the requests."""
        if path == CHECK:
            return self.scenario.does(self.now, self.length, endpoint, 0.5)
        r = self.plan[int(path[1:])]
        fate = r.fate * LUCK ** len(r.reached) % 1  # a second try has luck of its own
        r.reached.append((self.now, endpoint))
        return self.scenario.does(self.now, self.length, endpoint, fate)

    # ---- the client

    async def run(self, port: int, zero: float, end: float) -> None:
        """Send what is planned to the gateway on `port`; the fault begins at `zero`. What has no answer at `end` (after that) never gets one."""
        self.zero = zero
        for i, r in enumerate(self.plan):
            await asyncio.sleep(zero + r.due - self.loop.time())
            task = self.loop.create_task(self.send(port, i, r))
            self.pending.add(task)
            task.add_done_callback(self.pending.discard)
        if self.pending:
            await asyncio.wait(self.pending, timeout=max(0.0, zero + end - self.loop.time()))
        for task in self.pending:
            task.cancel()

    async def send(self, port: int, i: int, r: Request) -> None:
        while self.idle and self.idle[-1].transport.is_closing():
            self.idle.pop()
        client = self.idle.pop() if self.idle else None
        if client is None:
            try:
                _, client = await self.loop.create_connection(Client, "127.0.0.1", port)
            except OSError:
                return
        done = client.ask(i)
        began = self.loop.time()
        try:
            async with asyncio.timeout(self.scenario.leave_s if r.leaves else None):
                r.status, r.reason, again = await done
        except (TimeoutError, asyncio.CancelledError, ConnectionError):
            client.transport.abort()
            return
        r.took = self.loop.time() - began
        if again:
            self.idle.append(client)
        else:
            client.transport.close()


class Client(asyncio.Protocol):
    """One connection to a gateway, with one request on it at a time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.data = b""
        self.done: asyncio.Future[tuple[int, str, bool]] | None = None

    def ask(self, i: int) -> asyncio.Future[tuple[int, str, bool]]:
        """Send request number i; the result is status, the gateway's reason, and whether the connection may be used again."""
        self.data, self.done = b"", asyncio.get_running_loop().create_future()
        self.transport.write(b"GET /%d HTTP/1.1\r\nHost: bench\r\n\r\n" % i)
        return self.done

    def data_received(self, data: bytes) -> None:
        self.data += data
        head = self.data.find(b"\r\n\r\n")
        length = LENGTH.search(self.data, 0, head + 2) if head >= 0 else None
        if length and len(self.data) >= head + 4 + int(length[1]):
            self.finish(b"\r\nconnection: close" not in self.data[:head].lower())

    def connection_lost(self, why: Exception | None) -> None:
        if self.done and not self.done.done():
            if self.data.startswith(b"HTTP/1.1 ") and b"\r\n\r\n" in self.data and not LENGTH.search(self.data):
                self.finish(False)
            else:
                self.done.set_exception(ConnectionResetError("no answer"))

    def finish(self, again: bool) -> None:
        if self.done and not self.done.done():
            reason = re.search(rb'"reason": ?"(\w+)"', self.data)
            self.done.set_result((int(self.data[9:12]), reason[1].decode() if reason else "", again))
