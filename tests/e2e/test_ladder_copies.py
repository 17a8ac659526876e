"""Tier P1 on real sockets: copies when the upstream is ill, late or dead, and one refresh for each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tests.support import SLACK, Conversation, PlaneThread, Upstream, get, plane, read_reply, wait_until

Make = Callable[[Callable[[Conversation], None]], Upstream]


class Origin:
    """Answers are fresh for a second; `mode` says what it does by now."""

    def __init__(self, make: Make):
        self.mode, self.asked, self.go = "well", 0, threading.Event()
        self.control = b"max-age=1"
        self.up = make(self.serve)

    def serve(self, c: Conversation) -> None:
        while True:
            c.request()
            self.asked += 1
            n = b"%d" % self.asked
            if self.mode == "error":
                c.send(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
                continue
            if self.mode == "slow":
                self.go.wait(20)
            c.send(b"HTTP/1.1 200 OK\r\nCache-Control: %s\r\nContent-Length: %d\r\n\r\n%s" % (self.control, len(n), n))


def config(o: Origin, steps: str = "[{cache: local}, live]", tier: str = "P1") -> str:
    degrade = f", degrade: {{steps: {steps}, budget: 300ms, fresh: 2s, usable: 5m}}" if tier != "P0" else ""
    return (
        f"upstreams: {{be: {{endpoints: ['{o.up.address}'], retry: {{attempts: 0}}, timeouts: {{response: 20s}}}}}}\n"
        f"routes: [{{name: all, upstream: be, tier: {tier}, cache: on{degrade}}}]\n"
    )


def ask(p: PlaneThread, path: str = "/"):
    with p.connect() as s:
        s.sendall(get(path))
        return read_reply(s)


def aged(p: PlaneThread, o: Origin) -> None:
    """A copy whose life is over."""
    assert ask(p).status == 200
    wait_until(lambda: ask(p).get("Age") is not None)
    time.sleep(1.2)


def outcomes(p: PlaneThread) -> dict[str, int]:
    return {k: n for row in p.segment.snapshot()["routes"]["all"]["sla"].values() for k, n in row.items() if n}


def test_an_error_or_a_dead_upstream_gives_the_copy(upstream: Make):
    o = Origin(upstream)
    with plane(config(o)) as p:
        aged(p, o)
        o.mode = "error"
        r = ask(p)
        assert (r.status, r.body, r.get("X-Gwcore-Degraded")) == (200, b"1", "cache") and int(r.get("Age") or 0) >= 1
        o.up.close()
        for _ in range(30):
            r = ask(p)
            assert (r.status, r.body) == (200, b"1")
        assert ask(p, "/never-seen").status in (502, 503)
        p.at_rest()
        assert outcomes(p)["degraded"] == 31 and outcomes(p)["failed"] == 1


def test_p0_gets_the_error(upstream: Make):
    o = Origin(upstream)
    with plane(config(o, tier="P0")) as p:
        aged(p, o)
        o.mode = "error"
        assert ask(p).status == 500
        p.at_rest()


def test_a_late_live_try_runs_on_and_is_kept(upstream: Make):
    o = Origin(upstream)
    with plane(config(o)) as p:
        aged(p, o)
        o.mode = "slow"
        began = time.monotonic()
        r = ask(p)
        assert (r.status, r.body, r.get("X-Gwcore-Degraded")) == (200, b"1", "cache")
        assert 0.2 < time.monotonic() - began < 0.5 * SLACK
        assert p.counts()["exchanges"] == 1  # the live try
        o.mode = "well"
        o.go.set()
        wait_until(lambda: p.counts()["exchanges"] == 0)
        assert ask(p).body == b"2" and o.asked == 2
        p.at_rest()
        assert outcomes(p).get("degraded") == 1


def test_a_late_live_try_is_waited_for_where_no_copy_may_be_stale(upstream: Make):
    o = Origin(upstream)
    o.control = b"max-age=1, must-revalidate"
    with plane(config(o)) as p:
        aged(p, o)
        o.mode = "slow"
        threading.Timer(0.6, o.go.set).start()
        r = ask(p)
        assert (r.status, r.body) == (200, b"2")
        p.at_rest()


def test_from_level_1_or_by_hand_copies_come_first(upstream: Make):
    o = Origin(upstream)
    with plane(config(o)) as p:
        aged(p, o)
        assert p.segment.switch("upstream", "be", time.monotonic_ns() // 1_000_000 + 60_000)
        asked = o.asked
        for _ in range(5):
            r = ask(p)
            assert (r.body, r.get("X-Gwcore-Degraded")) == (b"1", "cache")
        assert o.asked == asked  # the upstream is left alone
        assert ask(p, "/new").body == b"2"  # but for what nobody has
        assert p.segment.switch("upstream", "be", 0)
        assert ask(p).body == b"3"
        p.at_rest()
    with plane(config(o, "[live, {cache: local}]")) as p:
        aged(p, o)
        assert p.segment.switch("upstream", "be", time.monotonic_ns() // 1_000_000 + 60_000)
        assert ask(p).get("X-Gwcore-Degraded") is None
        p.at_rest()
