"""What the tests share: a data plane in a thread, upstreams that say what they are told, raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvloop
from gwcore._speedups.copystore import CopyStore
from gwcore._speedups.plane import Plane
from gwcore._speedups.shm import Segment

from gwcore import copies_redis
from gwcore.config.compile import compile_plan, system_addresses
from gwcore.config.load import load_text
from gwcore.copies_redis import SharedCopies
from gwcore.sessions import SharedSessions, settings

SLACK = 5.0 if os.environ.get("GWCORE_SANITIZED") else 1.0  # one factor for slow machines and builds


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(good: Callable[[], Any], timeout: float = 5.0, what: str = "the condition") -> Any:
    deadline = time.monotonic() + timeout * SLACK
    while True:
        value = good()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about within {timeout:g}s: {value!r}")
        time.sleep(0.005)


class PlaneThread:
    """A data plane on its own loop in a thread of this process. `text` is YAML without listeners."""

    def __init__(
        self,
        text: str,
        log: str | None = None,
        workers: int = 1,
        listener: str = "",
        addresses: Callable[[str], list[str]] | None = None,
        number: int = 0,
        address: str = "",
        segment: Segment | None = None,
        copies: CopyStore | None = None,
    ):
        self.listener = listener and f", {listener}"
        self.addresses, self.number = addresses or system_addresses, number
        self.port = free_port()
        self.sock = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.segment = segment or Segment.create(workers)
        self.copies = copies  # the machine's store of copies
        self.address = address or f"127.0.0.1:{self.port}"  # as the configuration has it
        self.copies = copies or (CopyStore.create(4 << 20, workers) if "cache:" in text else None)
        self.version = 0
        self.ready = threading.Event()
        self.log = log
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(text,), daemon=True)
        self.thread.start()
        assert self.ready.wait(10 * SLACK)
        if self.error:
            raise self.error
        self.start_counts = self.counts()

    def _run(self, text: str) -> None:
        async def amain() -> None:
            self.loop = asyncio.get_running_loop()
            self.stop = asyncio.Event()
            try:
                self.plane = Plane(self.number, self.segment.fd)
                if self.copies:
                    self.plane.use_copies(self.copies.fd)
                self.sessions = SharedSessions(self.plane)
                if self.copies is not None:
                    self.plane.use_copies(self.copies.fd)
                self.shared_copies = SharedCopies(self.plane)
                self._use(text)
                if self.log:
                    fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                    self.plane.set_log(fd)
                    os.close(fd)
                self.plane.listen(self.address, self.sock.fileno())
                self.loop.add_reader(self.plane.fileno(), self.plane.drain)
            except BaseException as why:
                self.error = why
                self.ready.set()
                return
            self.ready.set()
            await self.stop.wait()
            self.loop.remove_reader(self.plane.fileno())
            self.sessions.stop()
            self.shared_copies.stop()
            self.plane.close()

        uvloop.run(amain())

    def _use(self, text: str) -> None:
        # it shares the interpreter's lock with its clients, so its loop is late for reasons that are not its own
        quiet = "" if "overload:" in text else "overload: off\n"
        config = load_text(f"workers: 1\nlisteners: [{{address: '{self.address}'{self.listener}}}]\n" + quiet + text).config
        self.version += 1
        fd = os.memfd_create("plan")
        os.write(fd, compile_plan(config, self.segment, addresses=self.addresses))
        self.plane.prepare(self.version, fd)
        os.close(fd)
        self.plane.commit(self.version)
        self.sessions.use(settings(config))
        self.shared_copies.use(copies_redis.settings(config))

    def call(self, f: Callable[[], Any]) -> Any:
        """Run f in the plane's loop."""

        async def run() -> Any:
            return f()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10 * SLACK)

    def reload(self, text: str) -> None:
        self.call(lambda: self._use(text))

    def counts(self) -> dict[str, int]:
        return self.call(lambda: self.plane.counts())

    def reasons(self) -> dict[str, int]:
        return self.segment.snapshot()["reasons"]

    def at_rest(self) -> None:
        """Everything that was taken has been given back (idle pooled connections may stay)."""

        def quiet() -> bool:
            c = self.counts()
            return (
                c["connections"] == c["exchanges"] == c["buffers"] == c["waiting"] == c["permits"] == 0
                and c["upstream_connections"] == c["pooled"]
                and c["timers"] <= c["pooled"] + 1
            )

        try:
            wait_until(quiet, 4)
        except AssertionError:
            raise AssertionError(f"not at rest: {self.counts()}") from None
        c = self.counts()
        assert c["illegal_moves"] == 0
        assert c["fds"] == c["upstream_connections"]
        worker = self.segment.snapshot()["workers"][self.number]
        assert worker["connections"] == worker["exchanges"] == 0
        for name, u in self.segment.snapshot()["upstreams"].items():
            assert u["waiting"] == u["in_use"] == u["connecting"] == 0, (name, u)
            assert u["opens"] == sum(u["closed"].values()) + u["idle"], (name, u)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(10 * SLACK)
        self.sock.close()

    def connect(self) -> socket.socket:
        s = socket.create_connection(("127.0.0.1", self.port), 5 * SLACK)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s


@contextlib.contextmanager
def plane(text: str, **kw: Any) -> Iterator[PlaneThread]:
    """A plane that must be at rest when the test leaves it."""
    p = PlaneThread(text, **kw)
    try:
        yield p
        p.at_rest()
    finally:
        p.close()


class Upstream:
    """A server whose handler gets each connection as (socket, recorder). `seen` has the bytes of every connection."""

    def __init__(self, handler: Callable[[Conversation], None], port: int = 0):
        self.handler = handler
        self.seen: list[bytearray] = []
        self.server = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port = self.server.getsockname()[1]
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                s, _ = self.server.accept()
            except OSError:
                return
            record = bytearray()
            self.seen.append(record)
            self.open.append(s)
            threading.Thread(target=self._serve, args=(s, record), daemon=True).start()

    def _serve(self, s: socket.socket, record: bytearray) -> None:
        with contextlib.suppress(OSError, EOFError):
            self.handler(Conversation(s, record))
        with contextlib.suppress(OSError):
            s.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for s in self.open:
            with contextlib.suppress(OSError):
                s.close()


class Conversation:
    """One connection at an upstream: read requests, send bytes."""

    def __init__(self, s: socket.socket, record: bytearray):
        self.s, self.record, self.buffer = s, record, b""

    def more(self) -> None:
        data = self.s.recv(65536)
        if not data:
            raise EOFError
        self.record += data
        self.buffer += data

    def head(self) -> bytes:
        while b"\r\n\r\n" not in self.buffer:
            self.more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return head

    def body(self, n: int) -> bytes:
        while len(self.buffer) < n:
            self.more()
        out, self.buffer = self.buffer[:n], self.buffer[n:]
        return out

    def chunked(self) -> bytes:
        out = b""
        while True:
            while b"\r\n" not in self.buffer:
                self.more()
            line, _, self.buffer = self.buffer.partition(b"\r\n")
            size = int(line, 16)
            out += self.body(size)
            self.body(2)
            if not size:
                return out

    def request(self) -> tuple[bytes, bytes]:
        """A whole request: (head, body)."""
        head = self.head()
        low = head.lower()
        if b"\r\ntransfer-encoding: chunked" in low:
            return head, self.chunked()
        length = next((int(x[15:]) for x in low.split(b"\r\n") if x.startswith(b"content-length:")), 0)
        return head, self.body(length)

    def send(self, data: bytes) -> None:
        self.s.sendall(data)

    def reset(self) -> None:
        self.s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.s.close()


def ok(body: bytes = b"hello", extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


def echo_handler(c: Conversation) -> None:
    """Answers every request with its own head and body."""
    while True:
        head, body = c.request()
        c.send(ok(head + b"\r\n\r\n" + body) if not head.startswith(b"HEAD") else b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")


def read_all(s: socket.socket, timeout: float = 5.0) -> bytes:
    """Until the other side closes. A reset ends it too."""
    s.settimeout(timeout * SLACK)
    out = b""
    while True:
        try:
            data = s.recv(65536)
        except ConnectionResetError:
            return out
        if not data:
            return out
        out += data


class Reply:
    """One response read from a socket."""

    def __init__(self, head: bytes, body: bytes, rest: bytes):
        lines = head.decode("latin-1").split("\r\n")
        self.line = lines[0]
        self.status = int(lines[0].split(" ")[1])
        self.fields = [tuple(x.split(": ", 1)) for x in lines[1:] if ": " in x]
        self.head, self.body, self.rest = head, body, rest

    def get(self, name: str) -> str | None:
        return next((v for n, v in self.fields if n.lower() == name.lower()), None)


def read_reply(s: socket.socket, *, to_head: bool = False, buffer: bytes = b"", timeout: float = 5.0) -> Reply:
    """The next response; bytes behind it are in .rest."""
    s.settimeout(timeout * SLACK)

    def more() -> None:
        nonlocal buffer
        data = s.recv(65536)
        if not data:
            raise EOFError(f"closed after {buffer!r}")
        buffer += data

    while b"\r\n\r\n" not in buffer:
        more()
    head, _, buffer = buffer.partition(b"\r\n\r\n")
    reply = Reply(head, b"", buffer)
    if to_head or reply.status in (204, 304) or reply.status < 200:
        return reply
    if (length := reply.get("Content-Length")) is not None:
        while len(buffer) < int(length):
            more()
        reply.body, reply.rest = buffer[: int(length)], buffer[int(length) :]
    elif reply.get("Transfer-Encoding") == "chunked":
        while True:
            while b"\r\n" not in buffer:
                more()
            line, _, buffer = buffer.partition(b"\r\n")
            size = int(line, 16)
            while len(buffer) < size + 2:
                more()
            reply.body += buffer[:size]
            buffer = buffer[size + 2 :]
            if not size:
                break
        reply.rest = buffer
    else:
        try:
            while True:
                more()
        except EOFError:
            reply.body, reply.rest = buffer, b""
    return reply


def get(path: str = "/", **fields: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: a\r\n" + "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in fields.items()) + "\r\n"
    ).encode("latin-1")


def proxy_config(*endpoints: str, extra: str = "", upstream: str = "") -> str:
    return (
        f"upstreams: {{be: {{endpoints: [{', '.join(repr(e) for e in endpoints)}]{', ' + upstream if upstream else ''}}}}}\n"
        f"routes: [{{name: all, upstream: be}}]\n{extra}"
    )
