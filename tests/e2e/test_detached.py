"""Exchanges whose client was answered otherwise meanwhile: they go on, hold what they need, and give all of it back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Conversation, PlaneThread, Upstream, get, ok, plane, proxy_config, read_reply, wait_until

Make = Callable[[Callable[[Conversation], None]], Upstream]


def leave(p: PlaneThread) -> int:
    n: int = p.call(lambda: p.plane.leave_waiting())
    return n


@pytest.fixture
def held(upstream: Make) -> tuple[Upstream, threading.Event, list[bytes]]:
    """An upstream that answers when the event is set; and the paths that it was asked for."""
    go, asked = threading.Event(), []

    def handler(c: Conversation) -> None:
        while True:
            asked.append(c.request()[0].split(b" ")[1])
            go.wait(20)
            c.send(ok(b"x" * 200_000))

    return upstream(handler), go, asked


def test_the_client_is_answered_and_the_request_goes_on(held, tmp_path: Path):
    be, go, asked = held
    log = tmp_path / "log"
    with plane(proxy_config(be.address), log=str(log)) as p:
        with p.connect() as s:
            s.sendall(get("/a"))
            wait_until(lambda: asked == [b"/a"])
            assert leave(p) == 1
            r = read_reply(s)
            assert r.status == 504
            assert p.counts()["exchanges"] == 1  # for nobody
            s.sendall(get("/b"))  # the connection goes on
            wait_until(lambda: asked == [b"/a", b"/b"])
            go.set()
            assert read_reply(s).status == 200
        wait_until(lambda: p.counts()["exchanges"] == 0)
        wait_until(lambda: log.read_text().count("\n") == 3 if log.exists() else False)
        lines = [json.loads(x) for x in log.read_text().splitlines()]
        assert {(x["path"], x["status"], x.get("detached", "")) for x in lines} == {
            ("/a", 504, ""),
            ("/a", 200, "left"),
            ("/b", 200, ""),
        }
        worker = p.segment.snapshot()["workers"][0]
        assert worker["requests"] == 2 and worker["detached"] == 1


def test_the_client_may_leave_and_the_upstream_may_fail(upstream: Make):
    gone = threading.Event()

    def handler(c: Conversation) -> None:
        c.request()
        gone.wait(20)
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")  # cut

    with plane(proxy_config(upstream(handler).address)) as p:
        for _ in range(3):
            with p.connect() as s:
                s.sendall(get("/"))
                wait_until(lambda: p.counts()["upstream_connections"] == 1)
                assert leave(p) == 1
                assert read_reply(s).status == 504
            gone.set()
            wait_until(lambda: p.counts()["upstream_connections"] == 0)
            gone.clear()


def test_one_that_waits_in_a_queue_leaves_its_client_and_keeps_its_place(held):
    be, go, asked = held
    text = proxy_config(be.address, upstream="pool: {max_connections: 1}")
    with plane(text) as p:
        with p.connect() as first, p.connect() as second:
            first.sendall(get("/1"))
            wait_until(lambda: asked == [b"/1"])
            second.sendall(get("/2"))
            wait_until(lambda: p.counts()["waiting"] == 1)
            assert leave(p) == 2
            assert read_reply(first).status == read_reply(second).status == 504
            assert p.counts()["waiting"] == 1
            go.set()
            wait_until(lambda: asked == [b"/1", b"/2"])
        wait_until(lambda: p.counts()["exchanges"] == 0)


def test_a_body_that_still_comes_keeps_its_client(held):
    be, go, asked = held
    with plane(proxy_config(be.address)) as p, p.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        wait_until(lambda: p.counts()["upstream_connections"] == 1)
        assert leave(p) == 0
        s.sendall(b"defghij")
        go.set()
        assert read_reply(s).status == 200


def test_a_drain_waits_for_it(held):
    be, go, asked = held
    with plane(proxy_config(be.address)) as p:
        with p.connect() as s:
            s.sendall(get("/"))
            wait_until(lambda: len(asked) == 1)
            leave(p)
            assert read_reply(s).status == 504
        assert p.call(lambda: p.plane.busy()) == 1
        go.set()
        wait_until(lambda: p.call(lambda: p.plane.busy()) == 0)
