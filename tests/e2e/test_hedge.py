"""Hedging on real sockets: a slow answer gets company, the first one wins, the other leaves no trace, and the budget pays."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Conversation, PlaneThread, Upstream, get, ok, plane, proxy_config, read_reply, wait_until

Make = Callable[[Callable[[Conversation], None]], Upstream]
LONG = 300_000  # bytes of an answer that does not come in one read


class Endpoint:
    """An upstream whose answers wait for `go`; `step` says what they are. It notes what was asked, and connections that the gateway closed."""

    def __init__(self, make: Make, step: bytes | str = "ok", waits: bool = False):
        self.go, self.step = threading.Event(), step
        self.asked: list[bytes] = []
        self.gone = 0
        if not waits:
            self.go.set()
        self.address = make(self.handle).address

    def handle(self, c: Conversation) -> None:
        try:
            while True:
                head, body = c.request()
                self.asked.append(head)
                while not self.go.wait(0.01):
                    c.s.setblocking(False)
                    try:
                        if c.s.recv(1, socket.MSG_PEEK) == b"":
                            raise EOFError
                    except BlockingIOError:
                        pass
                    finally:
                        c.s.setblocking(True)
                if self.step == "reset":
                    c.reset()
                    return
                c.send(self.step if isinstance(self.step, bytes) else ok(body or b"hello"))
        except (EOFError, OSError):
            self.gone += 1


def config(*endpoints: Endpoint, hedge: str = "30ms", retry: str = "", upstream: str = "", route: str = "") -> str:
    text = proxy_config(
        *(e.address for e in endpoints), upstream=f"balance: round_robin, retry: {{hedge: {hedge}{retry}}}{upstream}"
    )
    return text.replace("upstream: be}]", f"upstream: be{route}}}]")


def be(p: PlaneThread) -> dict:
    d: dict = p.segment.snapshot()["upstreams"]["be"]
    return d


def ask(p: PlaneThread, data: bytes = b""):
    with p.connect() as s:
        s.sendall(data or get())
        return read_reply(s)


def put(body: bytes) -> bytes:
    return b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def test_a_slow_answer_gets_company_and_the_first_one_wins(upstream: Make, tmp_path: Path):
    slow, quick = Endpoint(upstream, waits=True), Endpoint(upstream, ok(b"q" * LONG))
    log = tmp_path / "log"
    with plane(config(slow, quick), log=str(log)) as p, p.connect() as s:
        for n in range(1, 4):
            s.sendall(get())
            r = read_reply(s)
            assert (r.status, r.body) == (200, b"q" * LONG)
            wait_until(lambda n=n: slow.gone == (n + 1) // 2)  # every second one begins there
        assert be(p)["retried"]["hedge"] == be(p)["hedges_won"] == 2
        assert be(p)["in_use"] == 0 and be(p)["limit_in_flight"] == 0
        assert b"X-Gwcore-Attempt: 2" in quick.asked[0] and b"X-Gwcore-Attempt" not in slow.asked[0]
        counts = p.counts()
        assert counts["permits"] == 0
    lines = [json.loads(x) for x in log.read_text().splitlines()]
    assert [x["status"] for x in lines] == [200] * 3 and [x["attempts"] for x in lines] == [2, 1, 2]
    assert not any("detached" in x for x in lines)


def test_the_first_try_may_still_win(upstream: Make):
    first, second = Endpoint(upstream, waits=True), Endpoint(upstream, waits=True)
    with plane(config(first, second)) as p, p.connect() as s:
        s.sendall(get())
        wait_until(lambda: second.asked)
        first.go.set()
        assert read_reply(s).status == 200
        wait_until(lambda: second.gone == 1)
        assert be(p)["retried"]["hedge"] == 1 and be(p)["hedges_won"] == 0
        assert be(p)["idle"] == 1 and be(p)["in_use"] == 0
        second.go.set()


@pytest.mark.parametrize("body", [b"", b"x" * 100, b"x" * 30_000])
def test_a_body_that_is_kept_whole_goes_with_it(upstream: Make, body: bytes):
    slow, quick = Endpoint(upstream, waits=True), Endpoint(upstream)
    with plane(config(slow, quick)) as p:
        assert ask(p, put(body)).body == (body or b"hello")
        assert be(p)["hedges_won"] == 1


@pytest.mark.parametrize(
    ("data", "retry"),
    [
        (b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", ""),
        (put(b"x" * 200_000), ""),
        (get(), ", budget: {ratio: 0, min: 0}"),
        (get(), "off"),
    ],
    ids=["not idempotent", "body not kept", "no budget", "off"],
)
def test_none_is_made_where_it_may_not(upstream: Make, data: bytes, retry: str):
    slow, other = Endpoint(upstream, waits=True), Endpoint(upstream)
    text = config(slow, other, hedge="off") if retry == "off" else config(slow, other, retry=retry)
    with plane(text) as p, p.connect() as s:
        s.sendall(data)
        wait_until(lambda: slow.asked)
        time.sleep(0.1)
        assert not other.asked and be(p)["retried"]["hedge"] == 0
        assert be(p)["retry_denied"] == ("budget" in retry)
        slow.go.set()
        assert read_reply(s).status == 200


def test_not_at_the_same_endpoint(upstream: Make):
    only = Endpoint(upstream, waits=True)
    with plane(config(only)) as p, p.connect() as s:
        s.sendall(get())
        wait_until(lambda: only.asked)
        time.sleep(0.1)
        only.go.set()
        assert read_reply(s).status == 200 and len(only.asked) == 1


def test_not_when_the_limit_is_full(upstream: Make):
    slow, other = Endpoint(upstream, waits=True), Endpoint(upstream)
    with plane(config(slow, other, upstream=", concurrency: 1")) as p, p.connect() as s:
        s.sendall(get())
        wait_until(lambda: slow.asked)
        before = be(p)["retry_budget"]
        time.sleep(0.1)
        assert not other.asked and be(p)["retried"]["hedge"] == 0 and be(p)["limit_in_flight"] == 1
        assert be(p)["retry_budget"] > before - 0.5  # what was not made is not paid for
        slow.go.set()
        assert read_reply(s).status == 200


@pytest.mark.parametrize("step", ["reset", b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"])
@pytest.mark.parametrize("fails", ["first", "second"])
def test_the_other_try_goes_on_when_one_fails(upstream: Make, step, fails: str):
    first, second = Endpoint(upstream, waits=True), Endpoint(upstream, waits=True)
    bad, good = (first, second) if fails == "first" else (second, first)
    bad.step = step
    with plane(config(first, second, retry=", on: [connect, stale, reset], statuses: [503]")) as p, p.connect() as s:
        s.sendall(get())
        wait_until(lambda: second.asked)
        bad.go.set()
        wait_until(lambda: be(p)["in_use"] == 1)
        good.go.set()
        assert read_reply(s).status == 200
        assert p.counts()["permits"] == 0 and len(first.asked) == len(second.asked) == 1


def test_when_both_fail_the_client_hears_of_one(upstream: Make):
    first, second = Endpoint(upstream, "reset", waits=True), Endpoint(upstream, "reset", waits=True)
    with plane(config(first, second)) as p, p.connect() as s:
        s.sendall(get())
        wait_until(lambda: second.asked)
        first.go.set()
        wait_until(lambda: be(p)["in_use"] == 1)
        second.go.set()
        r = read_reply(s)
        assert r.status == 502 and json.loads(r.body)["reason"] == "upstream_reset"
        assert be(p)["retries"] == 1


def test_the_second_try_may_not_come_about(upstream: Make):
    slow = Endpoint(upstream, waits=True)
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))  # nobody listens
    with closed:
        text = config(slow).replace("]", f", '127.0.0.1:{closed.getsockname()[1]}']", 1)
        with plane(text) as p, p.connect() as s:
            s.sendall(get())
            wait_until(lambda: be(p)["retried"]["hedge"] == 1)
            slow.go.set()
            assert read_reply(s).status == 200


def test_the_deadline_covers_both(upstream: Make):
    a, b = Endpoint(upstream, waits=True), Endpoint(upstream, waits=True)
    with plane(config(a, b, route=", deadline: 200ms")) as p:
        r = ask(p)
        assert r.status == 504 and json.loads(r.body)["reason"] == "deadline"
        assert len(a.asked) == len(b.asked) == 1
        wait_until(lambda: a.gone == b.gone == 1)
        assert p.counts()["permits"] == 0


@pytest.mark.parametrize("phase", ["before", "connecting", "both", "answering"])
def test_a_client_that_leaves_ends_both(upstream: Make, phase: str):
    a = Endpoint(upstream, waits=True)
    with contextlib.ExitStack() as stack:
        if phase == "connecting":  # a backlog that is full: the second connection does not come about
            full = stack.enter_context(socket.socket())
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            held = [stack.enter_context(socket.socket()) for _ in range(3)]
            for h in held:
                h.setblocking(False)
                h.connect_ex(full.getsockname())
            text = config(a).replace("]", f", '127.0.0.1:{full.getsockname()[1]}']", 1)
            b = None
        else:
            b = Endpoint(upstream, ok(b"x" * 50_000_000) if phase == "answering" else "ok", waits=phase != "answering")
            text = config(a, b)
        p = stack.enter_context(plane(text))
        for _ in range(1 if phase == "connecting" else 4):  # else every second one would begin there
            a.asked.clear()
            with p.connect() as s:
                s.sendall(get())
                if phase == "before":
                    wait_until(lambda: a.asked or b.asked)
                elif phase == "answering":
                    s.recv(100)
                elif phase == "both":
                    wait_until(lambda: be(p)["in_use"] == 2)
                else:
                    wait_until(lambda: be(p)["in_use"] + be(p)["connecting"] == 2)
            wait_until(lambda: p.counts()["exchanges"] == 0 and p.counts()["upstream_connections"] == be(p)["idle"])
            assert p.counts()["permits"] == 0


def test_two_tries_of_a_client_that_is_answered_otherwise(upstream: Make):
    a, b = Endpoint(upstream, waits=True), Endpoint(upstream, waits=True)
    with plane(config(a, b)) as p, p.connect() as s:
        s.sendall(get())
        wait_until(lambda: a.asked and b.asked)
        assert p.call(lambda: p.plane.leave_waiting()) == 1
        assert read_reply(s).status == 504
        b.go.set()
        wait_until(lambda: p.counts()["exchanges"] == 0)
        assert be(p)["hedges_won"] == 1
        a.go.set()


@pytest.mark.parametrize("hedge", ["20ms", "p95"])
def test_an_upstream_that_is_slow_for_good_sees_little_more(upstream: Make, hedge: str):
    """At 100 % slow the budget allows a fifth more, and what a quiet time had saved up: here nothing."""

    def handler(c: Conversation) -> None:
        while True:
            c.request()
            asked.append(1)
            time.sleep(0.05)
            c.send(ok(b""))

    asked: list[int] = []
    ups = [upstream(handler) for _ in range(2)]
    text = proxy_config(
        *(u.address for u in ups), upstream=f"retry: {{hedge: {hedge}, budget: {{ratio: 0.2, min: 0}}}}, concurrency: off"
    )
    with plane(text) as p:

        def client() -> None:
            with p.connect() as s:
                for _ in range(40):
                    s.sendall(get())
                    assert read_reply(s).status == 200

        threads = [threading.Thread(target=client) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        figures = be(p)
        assert len(asked) - 320 <= figures["retried"]["hedge"] <= 0.2 * 320
        if hedge == "20ms":
            assert figures["retry_denied"] > 0 and figures["retried"]["hedge"] >= 0.1 * 320


def test_p95_is_measured(upstream: Make):
    a, b = Endpoint(upstream), Endpoint(upstream)
    with plane(config(a, b, hedge="p95")) as p, p.connect() as s:
        for _ in range(150):
            s.sendall(get())
            assert read_reply(s).status == 200
        time.sleep(1.1)
        before = be(p)["retried"]["hedge"]
        a.go.clear()
        for _ in range(2):  # one of the two begins at a
            s.sendall(get())
            assert read_reply(s).status == 200
        assert be(p)["retried"]["hedge"] == before + 1
        a.go.set()
