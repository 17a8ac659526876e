"""The breaker in the data plane, on real sockets: what opens it, what does not, and that every permit comes back."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from gwcore._speedups.breakers import Breakers

from tests.support import (
    Conversation,
    PlaneThread,
    Reply,
    Upstream,
    free_port,
    get,
    ok,
    plane,
    proxy_config,
    read_reply,
    wait_until,
)


def answers(line: str, body: bytes = b"x") -> bytes:
    return f"HTTP/1.1 {line}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Scripted:
    """An upstream that answers with what `say` holds at that moment; None = nothing at all."""

    def __init__(self, upstream: Callable[..., Upstream], say: bytes | None = None):
        self.say, self.asked = say or ok(), 0
        self.server = upstream(self.handle)
        self.address = self.server.address

    def handle(self, c: Conversation) -> None:
        while True:
            c.request()
            self.asked += 1
            if self.say is None:
                c.more()  # until the gateway has enough of it
                raise EOFError
            c.send(self.say)


class Caller:
    """A keep-alive client."""

    def __init__(self, p: PlaneThread):
        self.p, self.s = p, p.connect()

    def ask(self, path: str = "/") -> Reply:
        self.s.sendall(get(path))
        r = read_reply(self.s)
        if r.get("Connection") == "close":
            self.s.close()
            self.s = self.p.connect()
        return r

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.s.close()


def snapshot(p: PlaneThread, endpoint: str = "", upstream: str = "be") -> dict[str, Any]:
    got = Breakers(p.segment).snapshot(upstream, endpoint)
    assert got is not None
    return got


def balanced(s: dict[str, Any]) -> bool:
    return s["admitted"] == s["succeeded"] + s["failed"] + s["cancelled"] + s["expired"] + s["in_flight"]


@contextmanager
def guarded(text: str, **kw: Any) -> Iterator[PlaneThread]:
    """A plane whose breakers are in balance, with nothing out, when the test leaves it."""
    with plane(text, **kw) as p:
        yield p
        wait_until(lambda: p.counts()["permits"] == 0, 5, "every permit's return")
        b = Breakers(p.segment)
        for name in p.segment.snapshot()["upstreams"]:
            s = b.snapshot(name)
            assert s is None or (s["in_flight"] == 0 and balanced(s) and s["illegal"] == 0), s


def until_open(c: Caller) -> Reply:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        r = c.ask()
        if b"breaker_open" in r.body:
            return r
        time.sleep(0.005)
    raise AssertionError("it did not open")


def test_all_503_open_it_and_it_recovers_by_probes(upstream):
    be = Scripted(upstream)
    with guarded(proxy_config(be.address)) as p, Caller(p) as c:
        for _ in range(30):
            assert c.ask().status == 200
        be.say = answers("503 Service Unavailable")
        refused = until_open(c)
        assert refused.status == 503 and int(refused.get("Retry-After") or 0) >= 1
        problem = json.loads(refused.body)
        assert problem["reason"] == "breaker_open" and problem["detail"].startswith(
            "upstream be: open by failures; failure ratio 0."
        )
        assert refused.get("Proxy-Status") == 'gwcore; error=destination_unavailable; details="breaker_open"'
        s = snapshot(p)
        assert s["state"] == "open" and s["opens"] == 1 and s["level"] == 2 and s["refused_open"] >= 1
        asked = be.asked
        for _ in range(20):
            assert b"breaker_open" in c.ask().body
        assert be.asked <= asked + 3  # nobody but probes
        be.say = ok()

        def recovered() -> bool:
            time.sleep(0.02)
            return c.ask().status == 200 and snapshot(p)["state"] == "closed"

        wait_until(recovered, 10)
        events = Breakers(p.segment).events()
        assert [(e["from"], e["to"], e["reason"]) for e in events][:2] == [
            ("closed", "open", "failures"),
            ("open", "half_open", "probe"),
        ]
        assert events[-1]["reason"] == "recovered" and events[0]["evidence"] == events[0]["evidence_needed"] >= 10
        assert all(e["upstream"] == "be" and e["endpoint"] == "" for e in events)
        wait_until(lambda: c.ask().status == 200 and snapshot(p)["admit_ratio"] == 1, 10)


def test_nothing_listening_opens_it_too():
    with guarded(proxy_config(f"127.0.0.1:{free_port()}")) as p, Caller(p) as c:
        assert c.ask().status == 502
        until_open(c)


def test_off_refuses_nothing(upstream):
    be = Scripted(upstream, answers("500 Oops"))
    with guarded(proxy_config(be.address, upstream="breaker: off")) as p, Caller(p) as c:
        assert all(c.ask().status == 500 for _ in range(100))
        assert Breakers(p.segment).snapshot("be") is None


def test_a_few_failures_refuse_nothing(upstream):
    be = Scripted(upstream)
    with guarded(proxy_config(be.address)) as p, Caller(p) as c:
        for i in range(300):
            be.say = answers("500 Oops") if i % 2 else ok()
            assert c.ask().status == (500 if i % 2 else 200)
            time.sleep(0.001)
        s = snapshot(p)
        assert s["state"] == "closed" and s["failed"] == 150 and 0.3 < s["failure_ratio"] < 0.7


@pytest.mark.parametrize("line", ["400 Bad", "404 Gone", "429 Slow Down", "501 No"])
def test_other_statuses_are_successes(upstream, line):
    be = Scripted(upstream, answers(line))
    with guarded(proxy_config(be.address)) as p, Caller(p) as c:
        for _ in range(30):
            c.ask()
        assert snapshot(p)["failed"] == 0


def test_429_counts_where_that_is_asked_for(upstream):
    be = Scripted(upstream, answers("429 Slow Down"))
    with guarded(proxy_config(be.address, upstream="breaker: {count_429: true}")) as p, Caller(p) as c:
        until_open(c)
        assert snapshot(p)["pressure_ratio"] > 0.5


def test_one_of_several_endpoints_is_ejected(upstream):
    servers = [Scripted(upstream) for _ in range(4)]
    with guarded(proxy_config(*[b.address for b in servers], upstream="balance: round_robin")) as p, Caller(p) as c:
        for _ in range(40):
            assert c.ask().status == 200
        servers[1].say = answers("500 Oops")

        def ejected() -> bool:
            for _ in range(10):
                c.ask()
                time.sleep(0.002)
            return snapshot(p, servers[1].address)["state"] == "open"

        wait_until(ejected, 10)
        asked = servers[1].asked
        assert all(c.ask().status == 200 for _ in range(100))
        assert servers[1].asked == asked and snapshot(p)["state"] == "closed"
        events = Breakers(p.segment).events()
        assert events[0]["endpoint"] == servers[1].address and events[0]["reason"] in ("failures", "outlier")


def test_a_limit_that_has_fallen_is_what_saturation_is_measured_by(upstream):
    """The capacity is that of the pools, or the concurrency limit if that is lower: where it stands, not where it may rise to."""
    go = threading.Event()

    def held(c):
        c.request()
        go.wait(20)
        c.send(ok(b""))

    be = upstream(held)
    with guarded(proxy_config(be.address, upstream="concurrency: {min: 4, start: 4, max: 1000}")) as p:
        socks = [p.connect() for _ in range(3)]
        for s in socks:
            s.sendall(get())
            time.sleep(0.06)  # a tick
        wait_until(lambda: len(be.seen) == 3)
        with p.connect() as s:
            s.sendall(get())
            wait_until(lambda: snapshot(p)["saturation"] >= 0.5)
            go.set()
            assert read_reply(s).status == 200
        for s in socks:
            assert read_reply(s).status == 200
            s.close()


def test_at_most_half_of_the_endpoints_are_out(upstream):
    servers = [Scripted(upstream, answers("500 Oops")) for _ in range(4)]
    with guarded(proxy_config(*[b.address for b in servers], upstream="balance: round_robin, breaker: off")) as p, Caller(p) as c:
        for _ in range(400):
            assert c.ask().status == 500
            time.sleep(0.001)
        states = [snapshot(p, b.address)["state"] for b in servers]
        assert states.count("open") == 2 and states.count("closed") == 2


def test_clients_that_cancel_refuse_nothing(upstream):
    be = Scripted(upstream)
    be.say = None
    with guarded(proxy_config(be.address)) as p:
        for _ in range(150):
            with p.connect() as s:
                s.sendall(get())
                wait_until(lambda: p.counts()["exchanges"] == 1)
        wait_until(lambda: p.counts()["exchanges"] == 0)
        s = snapshot(p)
        assert s["cancelled"] == 150 and s["state"] == "closed" and s["refused_open"] == 0 and s["failure_ratio"] == 0


def abandon(s: socket.socket) -> None:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


REQUEST = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\nhello, world"
ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
HEAD = ANSWER.index(b"\r\n\r\n") + 4


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_requests_abandoned_at_every_byte_give_their_permits_back(upstream, how):
    be = Scripted(upstream)
    with guarded(proxy_config(be.address, upstream="breaker: {stall: off}")) as p:
        for n in range(len(REQUEST) + 1):
            s = p.connect()
            s.sendall(REQUEST[:n])
            if n % 3 == 0:
                time.sleep(0.003)  # in some other phase
            abandon(s) if how == "rst" else s.close()
        wait_until(lambda: p.counts()["permits"] == 0)
        assert snapshot(p)["state"] == "closed" and snapshot(p)["failed"] == 0


@pytest.mark.parametrize("how", ["client", "upstream", "upstream_rst"])
def test_answers_cut_at_every_byte_give_their_permits_back(upstream, how):
    cut = 0
    gate = threading.Event()

    def handler(c: Conversation) -> None:
        c.request()
        c.send(ANSWER[:cut])
        gate.wait(5)
        if how == "upstream_rst":
            c.reset()

    be = upstream(handler)
    with guarded(proxy_config(be.address, upstream="breaker: {trip_failures: 1000}, retry: {attempts: 0}")) as p:
        for cut in range(len(ANSWER)):
            gate.clear()
            with p.connect() as s:
                s.sendall(get())
                wait_until(lambda: p.counts()["exchanges"] == 1)
                if how == "client":
                    if cut >= HEAD:
                        wait_until(lambda n=cut - HEAD + 1: snapshot(p)["succeeded"] == n)
                    if cut % 2:
                        abandon(s)
                    else:
                        s.close()
                    wait_until(lambda: p.counts()["exchanges"] == 0)
                gate.set()
                if how != "client":
                    wait_until(lambda: p.counts()["exchanges"] == 0)
            assert p.counts()["permits"] == 0
        s = snapshot(p)
        assert balanced(s) and s["in_flight"] == 0
        if how == "client":
            assert (s["cancelled"], s["succeeded"], s["failed"]) == (HEAD, len(ANSWER) - HEAD, 0)
        else:
            assert (s["cancelled"], s["succeeded"], s["failed"]) == (0, len(ANSWER) - HEAD, HEAD)


def test_abandoned_while_queued_and_while_connecting(upstream):
    be = Scripted(upstream)
    be.say = None
    with guarded(proxy_config(be.address, upstream="pool: {max_connections: 1, queue: {size: 50, timeout: 5s}}")) as p:
        first = p.connect()
        first.sendall(get())
        wait_until(lambda: p.counts()["permits"] == 1)
        for _ in range(20):
            with p.connect() as s:
                s.sendall(get())
                wait_until(lambda: p.counts()["waiting"] == 1)
                assert p.counts()["permits"] == 1  # nobody waits holding one
            wait_until(lambda: p.counts()["waiting"] == 0)
        first.close()


def test_a_cut_answer_counts_for_the_endpoint(upstream):
    good, bad = Scripted(upstream), Scripted(upstream)

    def cutting(c: Conversation) -> None:
        c.request()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    bad = upstream(cutting)
    with guarded(proxy_config(good.address, bad.address, upstream="balance: round_robin")) as p:

        def ejected() -> bool:
            for _ in range(10):
                with p.connect() as s:
                    s.sendall(get())
                    with suppress(EOFError, OSError):
                        read_reply(s)
            return snapshot(p, bad.address)["state"] == "open"

        wait_until(ejected, 10)
        s = snapshot(p, bad.address)
        assert s["blamed"] >= 10 and snapshot(p)["failed"] == 0 and Breakers(p.segment).events()[0]["reason"] == "outlier"


def test_forced_open_with_an_end_and_closed_again(upstream):
    be = Scripted(upstream)
    with guarded(proxy_config(be.address)) as p, Caller(p) as c:
        b = Breakers(p.segment)
        assert c.ask().status == 200
        assert b.force("open", "be", for_s=0.3)
        r = c.ask()
        assert json.loads(r.body)["detail"] == "upstream be: forced open by an operator"
        wait_until(lambda: c.ask().status == 200, 5)
        wait_until(lambda: c.ask().status == 200 and snapshot(p)["state"] == "closed", 5)
        assert b.force("open", "be") and c.ask().status == 503
        assert b.force("auto", "be") and c.ask().status == 200  # a probe
        assert b.force("closed", "be") and snapshot(p)["forced"] == "closed"
        be.say = answers("500 Oops")
        assert all(c.ask().status == 500 for _ in range(200))
        assert b.force("auto", "be")
        until_open(c)
        assert not b.force("open", "nobody")


def test_p2_is_shed_before_p1_and_p0_last(upstream):
    be = Scripted(upstream)
    text = f"upstreams: {{be: {{endpoints: ['{be.address}'], breaker: {{window: 2s}}}}}}\nroutes:\n" + "".join(
        f"  - {{name: p{n}, match: {{prefix: /p{n}}}, upstream: be, tier: P{n}}}\n" for n in range(3)
    )
    with guarded(text) as p, Caller(p) as c:
        shed = [0, 0, 0]
        for i in range(1500):
            be.say = answers("503 Busy") if i % 10 < 6 else ok()
            r = c.ask(f"/p{i % 3}")
            if b"breaker_shed" in r.body:
                shed[i % 3] += 1
                assert "over the threshold" in json.loads(r.body)["detail"]
            time.sleep(0.001)
        s = snapshot(p)
        assert s["state"] == "closed" and s["refused_shed"] == sum(shed)
        assert shed[2] > 1.5 * shed[1] > 0 and shed[0] < shed[1] / 2


def test_a_reload_keeps_state_and_rules_change(upstream):
    be = Scripted(upstream, answers("500 Oops"))
    with guarded(proxy_config(be.address)) as p, Caller(p) as c:
        until_open(c)
        before = snapshot(p)
        p.reload(proxy_config(be.address, upstream="breaker: {open: 2s}"))
        after = snapshot(p)
        assert (after["state"], after["generation"], after["opens"]) == (before["state"], before["generation"], before["opens"])
        p.reload(proxy_config(be.address, upstream="breaker: off"))
        assert c.ask().status == 500
        p.reload(proxy_config(be.address))
        assert snapshot(p)["generation"] >= before["generation"]


def test_two_workers_share_one_breaker(upstream):
    be = Scripted(upstream, answers("500 Oops"))
    with (
        guarded(proxy_config(be.address), workers=2) as p,
        guarded(proxy_config(be.address), number=1, segment=p.segment) as q,
        Caller(p) as a,
        Caller(q) as b,
    ):
        until_open(a)
        assert b"breaker_open" in b.ask().body
        s = snapshot(p)
        assert s["opens"] == 1 and s["refused_open"] >= 2


def test_a_dead_worker_leaves_no_permit_and_no_probe(upstream):
    be = Scripted(upstream)
    text = proxy_config(be.address, upstream="breaker: {probe_lease: 1h, open: 100ms}")
    p = PlaneThread(text, workers=2)
    q = PlaneThread(text, number=1, segment=p.segment)  # it only plays dead, so nobody is asked whether it is at rest
    try:
        b = Breakers(p.segment)
        be.say = None
        lost = [q.connect() for _ in range(5)]
        for s in lost:
            s.sendall(get())
        wait_until(lambda: q.counts()["permits"] == 5)
        assert b.force("open", "be") and b.force("auto", "be")
        probes = [q.connect() for _ in range(3)]
        for s in probes:
            s.sendall(get())
        wait_until(lambda: snapshot(p)["probes_in_flight"] == 3)
        with Caller(p) as c:
            assert b"probes out" in c.ask().body  # its places are taken
            p.segment.retire(1)  # as the supervisor does when worker 1 dies
            s = snapshot(p)
            assert (s["probes_in_flight"], s["in_flight"], s["expired"]) == (0, 0, 8) and balanced(s)
            be.say = ok()
            wait_until(lambda: c.ask().status == 200 and snapshot(p)["state"] == "closed", 5)
        for s in lost + probes:
            s.close()
    finally:
        q.close()
        p.close()
