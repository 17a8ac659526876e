"""A real Redis for the tests, on a free port, gone afterwards."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator

from tests.support import SLACK, free_port, wait_until


class RedisServer:
    """`stop` and `start` are what happens to servers; the port stays."""

    def __init__(self, cluster: bool = False) -> None:
        self.port = free_port()
        self.directory = tempfile.mkdtemp(prefix="gwcore-redis-")
        self.cluster = cluster  # of one node
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        more = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())] if self.cluster else []
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self.directory, *more],
            stdout=subprocess.DEVNULL,
        )

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as s:
                s.sendall(b"PING\r\n")
                return s.recv(100).startswith(b"+PONG")
            return False

        wait_until(answers, 10, "redis")
        if self.cluster:
            self.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            wait_until(lambda: b"cluster_state:ok" in self.command("CLUSTER", "INFO"), 10, "the cluster")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(10 * SLACK)
            self.process = None

    def command(self, *words: str) -> bytes:
        """One command, its raw answer."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as s:
            s.sendall(f"*{len(words)}\r\n".encode() + b"".join(f"${len(w)}\r\n{w}\r\n".encode() for w in words))
            return s.recv(1 << 20)


@contextlib.contextmanager
def redis_server(cluster: bool = False) -> Iterator[RedisServer]:
    r = RedisServer(cluster)
    try:
        r.start()
        yield r
    finally:
        r.stop()
        shutil.rmtree(r.directory, ignore_errors=True)
