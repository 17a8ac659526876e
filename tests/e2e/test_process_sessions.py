"""Redis behind the sessions falls ill in every way under load, and no client notices (issue's promise: no failed handshake)."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.process import Process
from tests.redis_server import RedisServer, redis_server
from tests.support import Upstream, read_reply, wait_until
from tests.tls import client_context, issue, listener, secure

SECRET = "s" * 40
CLIENTS = 6


class Returning:
    """Clients that come again and again with the session of their last visit, while the machine forgets its sessions five times a second."""

    def __init__(self, g: Process):
        self.g, self.stop = g, threading.Event()
        self.visits = self.resumed = 0
        self.failures: list[str] = []
        self.threads = [threading.Thread(target=self.visit) for _ in range(CLIENTS)] + [threading.Thread(target=self.forget)]

    def __enter__(self) -> Returning:
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for t in self.threads:
            t.join()

    def visit(self) -> None:
        context, session = client_context(), None
        while not self.stop.is_set():
            try:
                with secure(self.g.connect(), "a.test", context, session=session) as s:
                    s.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
                    assert read_reply(s).status == 200
                    session = s.session
                    self.visits += 1
                    self.resumed += bool(s.session_reused)
            except Exception as why:  # whatever it is, it must not be
                self.failures.append(repr(why))

    def forget(self) -> None:
        while not self.stop.wait(0.2):
            with contextlib.suppress(OSError):
                self.g.get("/sessions/forget", "POST")

    def more(self, what: str = "visits", n: int = 60) -> None:
        """Wait for so many more."""
        before = getattr(self, what)
        wait_until(lambda: getattr(self, what) >= before + n or self.failures, 30, f"{n} more {what}")


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as r:
        yield r


def stopped(r: RedisServer) -> None:
    r.stop()


def killed(r: RedisServer) -> None:
    assert r.process
    r.process.send_signal(signal.SIGKILL)
    r.process.wait()
    r.process = None


def stalled(r: RedisServer) -> None:
    assert r.process
    r.process.send_signal(signal.SIGSTOP)


def slow(r: RedisServer) -> None:
    r.command("CLIENT", "PAUSE", "1500", "ALL")


def flushed(r: RedisServer) -> None:
    for _ in range(20):
        r.command("FLUSHALL")
        time.sleep(0.02)


def restarted(r: RedisServer) -> None:
    r.stop()
    r.start()


@pytest.mark.parametrize("ill", [stopped, killed, stalled, slow, flushed, restarted], ids=lambda f: f.__name__)
def test_redis_falls_ill_under_load(tmp_path: Path, redis: RedisServer, backend: Upstream, ill: Callable[[RedisServer], Any]):
    g = Process(tmp_path, backend, extra="# more")
    try:
        tls = listener(issue(tmp_path, "a.test"), more="sessions: store")
        g.replace(f'[{{address: "{g.address}"}}]', f'[{{address: "{g.address}", {tls}}}]')
        g.replace("# more", f"tls: {{sessions: {{redis: on, secret: {SECRET}}}}}\nredis: {{url: '{redis.url}', deadline: 50ms}}")
        assert g.reload()["ok"]
        with Returning(g) as clients:
            wait_until(lambda: g.status()["tls"]["resumed"]["redis"] >= 10, 20, "sessions from Redis")
            for _ in range(2):
                ill(redis)
                clients.more()
                if ill is stalled and redis.process:
                    redis.process.send_signal(signal.SIGCONT)
                if redis.process is None:
                    redis.start()
                served = g.status()["tls"]["resumed"]["redis"]
                wait_until(lambda served=served: g.status()["tls"]["resumed"]["redis"] >= served + 10, 30, "Redis in use again")
        assert clients.failures == []
        status = g.status()
        assert status["tls"]["failed"] == 0 and status["tls"]["redis"]["hits"] >= 30
        assert all(w["restarts"] == 0 for w in status["workers"] if "restarts" in w)
        handshakes = sum(status["tls"]["handshakes"].values()) + sum(status["tls"]["resumed"].values())
        assert handshakes == clients.visits
    finally:
        if redis.process:
            redis.process.send_signal(signal.SIGCONT)
        g.clean_up()
