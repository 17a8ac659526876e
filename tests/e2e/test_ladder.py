"""The ladder on real sockets: what each tier gets when its upstream is refused, fails, or is late; and what is counted of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import SLACK, Conversation, PlaneThread, Upstream, free_port, get, ok, plane, read_reply, wait_until

Make = Callable[[Callable[[Conversation], None]], Upstream]

TIERS = "tiers: {P0: [99%, 300ms], P1: [99%, 500ms], P2: [99%, 400ms]}\n"
STATIC = "degrade: {steps: [live, {static: {status: 200, headers: {Content-Type: application/json}, body: '{\"banner\": 1}'}}]}"


def config(address: str, upstream: str = "", static: str = STATIC, extra: str = "") -> str:
    return (
        f"upstreams: {{be: {{endpoints: ['{address}'], retry: {{attempts: 0}}{', ' + upstream if upstream else ''}}}}}\n{TIERS}"
        f"routes:\n- {{name: p0, match: {{prefix: /p0}}, upstream: be, tier: P0}}\n"
        f"- {{name: p1, match: {{prefix: /p1}}, upstream: be, tier: P1}}\n"
        f"- {{name: p2, match: {{prefix: /p2}}, upstream: be, tier: P2, {static}}}\n{extra}"
    )


def sla(p: PlaneThread, name: str) -> dict[str, dict[str, int]]:
    tiers: dict[str, dict[str, int]] = p.segment.snapshot()["routes"][name]["sla"]
    return {tier: {k: n for k, n in row.items() if n} for tier, row in tiers.items() if any(row.values())}


def asks(p: PlaneThread, path: str, method: str = "GET", head: str = ""):
    with p.connect() as s:
        s.sendall(f"{method} {path} HTTP/1.1\r\nHost: a.test\r\n{head}\r\n".encode())
        return read_reply(s, to_head=method == "HEAD")


def test_a_dead_upstream_by_tier(tmp_path: Path):
    log = tmp_path / "log"
    with plane(config(f"127.0.0.1:{free_port()}"), log=str(log)) as p:
        assert asks(p, "/p0").status == 502
        assert asks(p, "/p1").status == 502
        r = asks(p, "/p2/x")
        assert (r.status, r.body) == (200, b'{"banner": 1}')
        assert r.get("X-Gwcore-Degraded") == "static" and r.get("Age") == "0" and "gwcore" in (r.get("Cache-Status") or "")
        assert r.get("Content-Type") == "application/json" and r.get("Date")
        assert asks(p, "/p2", "HEAD").get("Content-Length") == "13"
        assert asks(p, "/p2", "POST", "Content-Length: 0\r\n").status == 200
        with p.connect() as s:  # the connection goes on
            for _ in range(3):
                s.sendall(get("/p2"))
                assert read_reply(s).status == 200
        p.at_rest()
        assert sla(p, "p0") == {"P0": {"failed": 1}} and sla(p, "p1") == {"P1": {"failed": 1}}
        assert sla(p, "p2") == {"P2": {"degraded": 6}}
        wait_until(lambda: log.read_text().count("\n") == 8 if log.exists() else False)
        line = next(x for x in map(json.loads, log.read_text().splitlines()) if x["path"] == "/p2/x")
        assert (line["degraded"], line["reason"], line["status"], line["tier"]) == ("static", "connect_refused", 200, "P2")


@pytest.mark.parametrize("how", ["500", "503 kept", "reset", "bad", "truncated head", "slow"])
def test_every_failure_of_live_falls(upstream: Make, how: str):
    def serve(c: Conversation) -> None:
        while True:
            c.request()
            if how == "500":
                c.send(b"HTTP/1.1 500 No\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc")
            elif how == "503 kept":
                c.send(b"HTTP/1.1 503 No\r\nContent-Length: 3\r\n\r\nabc")
                continue
            elif how == "reset":
                c.reset()
            elif how == "bad":
                c.send(b"HTTP/1.1 2000 no\r\n\r\n")
            elif how == "truncated head":
                c.send(b"HTTP/1.1 200 OK\r\nContent-")
            else:
                time.sleep(1.5 * SLACK)
            return

    with plane(config(upstream(serve).address, "breaker: off, outlier: off")) as p:
        for _ in range(3):
            began = time.monotonic()
            r = asks(p, "/p2")
            assert (r.status, r.body) == (200, b'{"banner": 1}')
            if how == "slow":
                assert 0.3 < time.monotonic() - began < 1.4 * SLACK
        p.at_rest()
        counts = sla(p, "p2")["P2"]
        assert sum(counts.values()) == 3 and set(counts) <= {"degraded", "late"}  # late: this machine was
        if how == "503 kept":
            assert (
                p.segment.snapshot()["upstreams"]["be"]["opens"] == 1
            )  # the connection of an answer that was not passed on is kept


def test_statuses_that_are_answers_pass(upstream: Make):
    def serve(c: Conversation) -> None:
        while True:
            status = c.request()[0].split(b" ")[1].rpartition(b"/")[2]
            c.send(b"HTTP/1.1 %s Some\r\nContent-Length: 0\r\n\r\n" % status)

    with plane(config(upstream(serve).address)) as p:
        assert [asks(p, f"/p2/{n}").status for n in (200, 404, 501, 500)] == [200, 404, 501, 200]
        assert asks(p, "/p0/500").status == asks(p, "/p1/500").status == 500
        assert p.reasons() == {"upstream_error": 1}
        assert sla(p, "p2") == {"P2": {"met": 2, "degraded": 1, "failed": 1}}


def test_fields_of_the_request_are_escaped():
    body = "{p: '{{path}}', m: '{{method}}', h: '{{host}}', t: '{{tier}}', r: '{{reason}}', q: '{{query.q}}', u: '{{header.user-agent}}', n: '{{query.none}}'}"
    static = f'degrade: {{steps: [live, {{static: {{template: true, headers: {{Content-Type: TYPE}}, body: "{body}"}}}}]}}'
    ask = "/p2/a%3Cb?x=1&q=%22%3Cb%3E%0A+%C3%A9&q=2"
    for kind, q, u in (
        ("application/json", "\\u0022<b>\\u000a %C3%A9", "\\u0022x\\u005c?"),
        ("text/html", "&quot;&lt;b&gt; %C3%A9", "&quot;x\\?"),
        ("text/plain", '"<b> %C3%A9', '"x\\?'),
    ):
        with plane(config(f"127.0.0.1:{free_port()}", static=static.replace("TYPE", kind))) as p:
            with p.connect() as s:
                s.sendall(f'GET {ask} HTTP/1.1\r\nHost: A.test\r\nUser-Agent: "x\\\xe9\r\n\r\n'.encode("latin-1"))
                r = read_reply(s)
            told = f"{{p: '/p2/a%3Cb', m: 'GET', h: 'a.test', t: 'P2', r: 'connect_refused', q: '{q}', u: '{u}', n: ''}}"
            assert r.body.decode() == told
            p.at_rest()


def test_the_budget_of_p0_is_enforced_only_when_it_is_asked_for(upstream: Make):
    def serve(c: Conversation) -> None:
        c.request()
        time.sleep(0.6)
        c.send(ok(b"late"))

    up = upstream(serve).address
    with plane(config(up)) as p:
        assert asks(p, "/p0").status == 200
        wait_until(lambda: sla(p, "p0") == {"P0": {"late": 1}})
    with plane(config(up, extra="degrade: {P0: {budget: 200ms, enforce: true}}")) as p:
        began = time.monotonic()
        r = asks(p, "/p0")
        assert r.status == 504 and b'"deadline"' in r.body and time.monotonic() - began < 0.5 * SLACK
        p.at_rest()
        assert sla(p, "p0") == {"P0": {"failed": 1}}


def test_a_trusted_proxy_chooses_the_tier():
    dead = f"127.0.0.1:{free_port()}"
    extra = "tier_header: X-Gwcore-Tier\n" + STATIC.replace("degrade: ", "degrade: {P2: ") + "}\n"
    for trusted, status in (("trusted_proxies: [127.0.0.1]\n", 200), ("", 502)):
        with plane(config(dead, extra=extra + trusted)) as p:
            assert asks(p, "/p1", head="X-Gwcore-Tier: P2\r\n").status == status
            assert asks(p, "/p1", head="X-Gwcore-Tier: P9\r\n").status == 502
            p.at_rest()
            assert set(sla(p, "p1")) == ({"P1", "P2"} if trusted else {"P1"})


def test_a_client_that_does_wrong_counts_neither_way(upstream: Make):
    def serve(c: Conversation) -> None:
        c.request()
        time.sleep(0.3)

    with plane(config(upstream(serve).address, extra="limits: {body_bytes: 10}")) as p:
        assert asks(p, "/p1", "POST", "Content-Length: 100\r\n").status == 413
        with p.connect() as s:
            s.sendall(get("/p1"))
            wait_until(lambda: p.counts()["exchanges"] == 1)
        wait_until(lambda: p.counts()["exchanges"] == 0)
        assert sla(p, "p1") == {}


def test_an_open_breaker_falls_too():
    with plane(
        config(f"127.0.0.1:{free_port()}", "breaker: {trip_time: 0s, trip_failures: 5, min_volume: 1}, outlier: off")
    ) as p:
        asked = 0

        def refused() -> bool:
            nonlocal asked
            asked += 1
            assert asks(p, "/p2").status == 200
            return p.reasons().get("breaker_open", 0) > 3

        wait_until(refused)
        p.at_rest()
        assert sla(p, "p2") == {"P2": {"degraded": asked}}
        p.at_rest()


def test_the_operators_switch(upstream: Make):
    def serve(c: Conversation) -> None:
        while True:
            c.request()
            c.send(ok(b"live"))

    with plane(config(upstream(serve).address)) as p:
        far = time.monotonic_ns() // 1_000_000 + 3_600_000
        for kind, name in (("route", "p2"), ("tier", "P2"), ("upstream", "be")):
            assert asks(p, "/p2").body == b"live"
            assert p.segment.switch(kind, name, far)
            r = asks(p, "/p2")
            assert r.get("X-Gwcore-Degraded") == "static" and asks(p, "/p0").body == asks(p, "/p1").body == b"live"
            assert p.segment.switch(kind, name, 0) and p.segment.switches() == []
        assert p.segment.switch("route", "p1", far) and asks(p, "/p2").body == b"live"  # another one
        assert p.segment.switch("route", "p2", time.monotonic_ns() // 1_000_000 + 300)
        assert asks(p, "/p2").body != b"live"
        wait_until(lambda: asks(p, "/p2").body == b"live")  # its time is over
        assert p.reasons()["degrade_refused"] >= 4
        p.at_rest()


def test_a_segment_has_room_for_so_many_switches():
    from gwcore._speedups.shm import Segment

    s = Segment.create(1)
    far = time.monotonic_ns() // 1_000_000 + 3_600_000
    assert [s.switch("route", f"r{i}", far) for i in range(34)] == [True] * 32 + [False] * 2
    assert s.switch("route", "r7", 0) and s.switch("tier", "P2", far)
    assert s.switch("route", "never", 0)  # off already
    assert ("tier", "P2", far) in s.switches() and len(s.switches()) == 32


def test_limits_fall_too(upstream: Make):
    def serve(c: Conversation) -> None:
        c.request()
        time.sleep(0.3)
        c.send(ok(b"live"))

    up = upstream(serve).address
    for limit, reason in (
        ("concurrency: 1, pool: {queue: {size: 0}}", "concurrency_limit"),
        ("pool: {max_connections: 1, queue: {size: 0}}", "queue_full"),
        ("pool: {max_connections: 1, queue: {timeout: 50ms}}", "queue_timeout"),
    ):
        with plane(config(up, limit)) as p, p.connect() as s:
            s.sendall(get("/p0"))
            wait_until(lambda p=p: p.segment.snapshot()["upstreams"]["be"]["in_use"] == 1)
            assert asks(p, "/p2").body == b'{"banner": 1}'
            assert read_reply(s).body == b"live"
            s.close()
            p.at_rest()
            assert p.reasons() == {reason: 1}


def test_overload_falls_too(upstream: Make):
    def serve(c: Conversation) -> None:
        c.request()
        time.sleep(10)

    up = upstream(serve).address
    with plane(config(up, extra="overload: {shed: {P2: 0.01, P1: 5, P0: 6}}\nlimits: {connections: 10}\n")) as p:
        held = [p.connect() for _ in range(4)]
        for s in held:
            s.sendall(get("/p0"))
        wait_until(lambda: asks(p, "/p2").get("X-Gwcore-Degraded") and p.reasons().get("overload", 0) > 0)
        for s in held:
            s.close()
        p.at_rest()


def test_who_is_parted_from_a_late_live_try_gets_the_next_step(upstream: Make):
    def serve(c: Conversation) -> None:
        c.request()
        time.sleep(0.2)
        c.send(ok(b"late"))

    body = "{path: '{{path}}', q: '{{query.q}}'}"
    static = f'degrade: {{steps: [live, {{static: {{template: true, body: "{body}"}}}}]}}'
    with plane(config(upstream(serve).address, static=static)) as p:
        with p.connect() as s:
            s.sendall(get("/p2/x?q=7"))
            wait_until(lambda: p.counts()["upstream_connections"] == 1)
            assert p.call(lambda: p.plane.leave_waiting()) == 1
            r = read_reply(s)
            assert (r.status, r.body) == (200, b"{path: '/p2/x', q: '7'}")
        p.at_rest()
        assert sla(p, "p2") == {"P2": {"degraded": 1}}


def test_bodies_that_are_still_coming(upstream: Make):
    """Of a request that is answered statically the rest is read and dropped, or its connection ends; either way nothing of it is taken for another."""
    with plane(config(f"127.0.0.1:{free_port()}")) as p:
        with p.connect() as s:
            s.sendall(b"POST /p2 HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n0123456789")
            assert read_reply(s).status == 200
            s.sendall(b"0123456789" + get("/p2/next"))
            assert read_reply(s).status == 200
        with p.connect() as s:
            s.sendall(b"POST /p2 HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\nExpect: 100-continue\r\n\r\n")
            r = read_reply(s)
            assert r.status == 200 and r.get("Connection") == "close"
        p.at_rest()
