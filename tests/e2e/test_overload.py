"""Overload on real sockets: the concurrency limit, the queue in front of it, shedding by tier; and every place is given back."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from gwcore._speedups.shm import Segment

from bench.load.common import Server, free_port
from bench.load.overload import capacity, config, last_refusal, three_phases
from tests.e2e.process import kill
from tests.support import SLACK, echo_handler, get, ok, plane, read_reply, wait_until

TIERS = (
    "routes:\n"
    + "".join(f"  - {{name: p{i}, match: {{prefix: /p{i}}}, upstream: be, tier: P{i}}}\n" for i in range(3))
    + "  - {name: all, upstream: be}\n"
)


def tiers(address: str, upstream: str, extra: str = "") -> str:
    return f"upstreams: {{be: {{endpoints: ['{address}'], {upstream}}}}}\n{TIERS}{extra}"


def be(p) -> dict:
    return p.segment.snapshot()["upstreams"]["be"]


def tier(p, n: int) -> dict:
    return p.segment.snapshot()["tiers"][f"P{n}"]


class Held:
    """An upstream whose answers are held back until `go(n)` lets n of them out."""

    def __init__(self, upstream):
        self.begun: list[bytes] = []
        self.out = threading.Semaphore(0)
        self.up = upstream(self.serve)

    def serve(self, c) -> None:
        while True:
            head, _ = c.request()
            self.begun.append(head.split(b" ")[1])
            self.out.acquire()
            c.send(ok())

    def go(self, n: int = 1) -> None:
        for _ in range(n):
            self.out.release()


def send(p, path: str) -> socket.socket:
    s = p.connect()
    s.sendall(get(path))
    return s


def fill(p, held: Held, n: int, path: str = "/p0") -> list[socket.socket]:
    before = len(held.begun)
    socks = [send(p, path) for _ in range(n)]
    wait_until(lambda: len(held.begun) == before + n)
    return socks


def finish(held: Held, socks: list[socket.socket]) -> None:
    held.go(1000)
    for s in socks:
        assert read_reply(s).status == 200
        s.close()


def detail(reply) -> str:
    assert reply.status == 503 and reply.get("Retry-After") == "1"
    return json.loads(reply.body)["detail"]


# ---- the limit ----------------------------------------------------------------------------------------------------


def test_tiers_fill_their_share_of_a_limit_and_then_wait(upstream):
    held = Held(upstream)
    with plane(tiers(held.up.address, "concurrency: 10, pool: {queue: {timeout: 10s}}")) as p:
        socks = fill(p, held, 8, "/p2")
        late = [send(p, "/p2")]
        wait_until(lambda: be(p)["waiting"] == 1)
        socks += fill(p, held, 1, "/p1")
        late.append(send(p, "/p1"))
        wait_until(lambda: be(p)["waiting"] == 2)
        socks += fill(p, held, 1, "/p0")
        late.append(send(p, "/p0"))
        wait_until(lambda: be(p)["waiting"] == 3)
        assert be(p)["limit"] == be(p)["limit_in_flight"] == 10
        held.go()  # one place: the highest tier has it
        wait_until(lambda: len(held.begun) == 11)
        assert held.begun[-1] == b"/p0"
        finish(held, socks + late)
        assert sorted(held.begun[-2:]) == [b"/p1", b"/p2"]
        wait_until(lambda: be(p)["limit_in_flight"] == 0)
        assert [tier(p, i)["queued"] for i in range(3)] == [1, 1, 1]
        assert [tier(p, i)["admitted"] for i in range(3)] == [2, 2, 9]
        assert tier(p, 2)["seconds"]["count"] == 9


def test_where_nobody_may_wait_the_limit_refuses_and_says_why(upstream):
    held = Held(upstream)
    with plane(tiers(held.up.address, "concurrency: 5, pool: {queue: {size: 0}}")) as p:
        socks = fill(p, held, 4, "/p2")
        with send(p, "/p2") as s:
            reply = read_reply(s)
            assert json.loads(reply.body)["reason"] == "concurrency_limit"
            assert detail(reply) == "upstream be: 0 of at most 0 wait; 4 in flight of a limit of 5, of which P2 may fill 4"
            s.sendall(get("/p0"))  # the connection is kept
            wait_until(lambda: len(held.begun) == 5)
            socks.append(s)
            finish(held, socks)
        assert tier(p, 2)["shed"] == {"overload": 0, "concurrency_limit": 1, "queue_full": 0, "queue_timeout": 0}
        wait_until(lambda: be(p)["limit_in_flight"] == 0)


def test_a_full_queue_gives_a_low_tiers_turn_to_a_higher_one(upstream):
    held = Held(upstream)
    with plane(tiers(held.up.address, "concurrency: 1, pool: {queue: {size: 2, timeout: 10s}}")) as p:
        socks = fill(p, held, 1)
        low = send(p, "/p2")
        wait_until(lambda: be(p)["waiting"] == 1)
        mid = send(p, "/p1")
        wait_until(lambda: be(p)["waiting"] == 2)
        high = send(p, "/p0")
        reply = read_reply(low)
        assert json.loads(reply.body)["reason"] == "queue_full"
        assert detail(reply).startswith("upstream be: 1 of at most 2 wait; 1 in flight of a limit of 1")
        with send(p, "/p2") as s:
            assert json.loads(read_reply(s).body)["reason"] == "queue_full"
        assert be(p)["waiting"] == 2 and be(p)["queue_full"] == tier(p, 2)["shed"]["queue_full"] == 2
        low.close()
        finish(held, [*socks, high, mid])
        assert held.begun == [b"/p0", b"/p0", b"/p1"]


def test_a_queue_that_stands_lets_the_old_go_early(upstream):
    held = Held(upstream)
    with plane(tiers(held.up.address, "concurrency: 1, pool: {queue: {timeout: 250ms}}")) as p:
        socks = fill(p, held, 1)
        began = time.monotonic()
        with send(p, "/p1") as s:
            said = detail(read_reply(s))
        took = time.monotonic() - began
        assert "nobody waited less than 5 ms for 100 ms, so who waits longer than 20 ms leaves" in said
        assert 0.1 <= took < 0.24 * SLACK
        assert be(p)["queue_timeout"] == tier(p, 1)["shed"]["queue_timeout"] == 1
        finish(held, socks)


def test_nobody_overtakes_who_waits(upstream):
    held = Held(upstream)
    with plane(tiers(held.up.address, "pool: {max_connections: 1, queue: {timeout: 10s}}")) as p:
        first = fill(p, held, 1)
        waits = send(p, "/p1?waits")
        wait_until(lambda: be(p)["waiting"] == 1)
        first[0].sendall(get("/p1?again"))  # the kept connection's next request is there when the place becomes free
        held.go()
        assert read_reply(first[0]).status == 200
        finish(held, [waits])
        assert read_reply(first[0]).status == 200
        first[0].close()
        assert held.begun == [b"/p0", b"/p1?waits", b"/p1?again"]


def test_a_request_whose_deadline_cannot_be_met_does_not_wait(upstream):
    held = Held(upstream)
    text = tiers(held.up.address, "concurrency: 1, pool: {queue: {timeout: 10s}}").replace(
        "tier: P1", "tier: P1, deadline: 150ms"
    )
    with plane(text) as p:
        socks = fill(p, held, 1)
        began = time.monotonic()
        with send(p, "/p1") as s:
            reply = read_reply(s)
        assert reply.status == 504 and b'"deadline"' in reply.body and 0.14 < time.monotonic() - began < 2 * SLACK
        finish(held, socks)


# ---- places come back ---------------------------------------------------------------------------------------------


def test_clients_that_leave_give_their_place_back(upstream):
    held = Held(upstream)
    with plane(tiers(held.up.address, "concurrency: 4, pool: {queue: {timeout: 10s}}")) as p:
        socks = fill(p, held, 4)
        waiting = [send(p, "/p0") for _ in range(3)]
        wait_until(lambda: be(p)["waiting"] == 3)
        waiting[0].close()  # in the queue
        wait_until(lambda: be(p)["waiting"] == 2)
        assert be(p)["limit_in_flight"] == 4
        socks[0].close()  # under way: who is next has its place
        wait_until(lambda: len(held.begun) == 5)
        assert be(p)["limit_in_flight"] == 4 and be(p)["waiting"] == 1
        for s in (*socks[1:], *waiting[1:]):
            s.close()
        wait_until(lambda: be(p)["limit_in_flight"] == be(p)["waiting"] == p.counts()["exchanges"] == 0)
        held.go(1000)


@pytest.mark.parametrize("how", ["refused", "reset", "bad", "timeout", "truncated", "tunnel", "slow client"])
def test_every_end_gives_the_place_back(upstream, how):
    def serve(c) -> None:
        c.request()
        if how == "reset":
            c.reset()
        elif how == "bad":
            c.send(b"HTTP/1.1 2000 no\r\n\r\n")
        elif how == "timeout":
            time.sleep(1.5 * SLACK)
        elif how == "truncated":
            c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        elif how == "tunnel":
            c.send(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
            time.sleep(0.5)
        else:
            c.send(ok(b"x" * 30_000_000))

    up = upstream(serve)
    address = f"127.0.0.1:{free_port()}" if how == "refused" else up.address
    text = tiers(address, "concurrency: 1, timeouts: {response: 300ms}, pool: {queue: {size: 0}}, retry: {attempts: 0}")
    with plane(text) as p:
        for _ in range(3):
            with p.connect() as s:
                s.sendall(get("/p0", Connection="upgrade", Upgrade="websocket") if how == "tunnel" else get("/p0"))
                if how == "tunnel":
                    assert read_reply(s).status == 101
                    assert be(p)["limit_in_flight"] == 0  # though it is open
                elif how == "slow client":
                    time.sleep(0.05)
                    assert be(p)["limit_in_flight"] == 1
                else:
                    assert s.recv(100)
            wait_until(lambda: be(p)["limit_in_flight"] == 0)
        assert "concurrency_limit" not in p.reasons()


def test_a_reload_changes_the_limit_and_loses_no_place(upstream):
    held = Held(upstream)
    with plane(tiers(held.up.address, "concurrency: 2, pool: {queue: {timeout: 10s}}")) as p:
        socks = fill(p, held, 2)
        late = [send(p, "/p0") for _ in range(2)]
        wait_until(lambda: be(p)["waiting"] == 2)
        p.reload(tiers(held.up.address, "concurrency: 4, pool: {queue: {timeout: 10s}}"))
        wait_until(lambda: len(held.begun) == 4)
        assert be(p)["limit"] == be(p)["limit_in_flight"] == 4
        p.reload(tiers(held.up.address, "concurrency: 1, pool: {queue: {timeout: 10s}}"))
        more = send(p, "/p0")
        wait_until(lambda: be(p)["waiting"] == 1)
        p.reload(tiers(held.up.address, "concurrency: off"))
        wait_until(lambda: len(held.begun) == 5)  # no limit: it waits no longer
        finish(held, [*socks, *late, more])
        wait_until(lambda: be(p)["limit_in_flight"] == 0)
        assert be(p)["limit"] == 0


def test_a_place_that_another_worker_gives_up_is_found(upstream):
    held = Held(upstream)
    segment = Segment.create(2)
    text = tiers(held.up.address, "concurrency: 2, pool: {queue: {timeout: 10s}}")
    with plane(text, segment=segment, number=0) as a, plane(text, segment=segment, number=1) as b:
        socks = fill(a, held, 1)
        (s,) = fill(b, held, 1)
        late = send(a, "/p0")
        wait_until(lambda: be(a)["waiting"] == 1)
        assert be(a)["limit_in_flight"] == 2
        s.close()  # nothing tells the other worker of it
        wait_until(lambda: len(held.begun) == 3)
        finish(held, [*socks, late])
        wait_until(lambda: be(a)["limit_in_flight"] == 0)


def test_a_worker_killed_with_places_and_waiters(gateway, upstream):
    held = Held(upstream)
    g = gateway(held.up, workers=2)
    g.replace(
        f'endpoints: ["{held.up.address}"]',
        f'endpoints: ["{held.up.address}"], concurrency: 6, pool: {{queue: {{timeout: 10s}}}}',
    )
    assert g.reload()["ok"]
    socks = [g.connect() for _ in range(20)]
    for s in socks:
        s.sendall(get())
    wait_until(lambda: g.status()["upstreams"]["be"]["limit_in_flight"] == 5)  # 90 % of 6, for P1
    for pid in g.pids():
        kill(pid)
    wait_until(lambda: g.status()["upstreams"]["be"]["limit_in_flight"] == 0, 10)
    wait_until(lambda: all(w["up"] for w in g.status()["workers"]), 10)
    held.go(1000)
    assert g.answers()
    # a place is given back behind the answer
    wait_until(lambda: (be := g.status()["upstreams"]["be"])["waiting"] == be["limit_in_flight"] == 0 and be["limit"] == 6)
    for s in socks:
        s.close()


# ---- pressure -----------------------------------------------------------------------------------------------------


def shed(p, path: str) -> str:
    with p.connect() as s:
        s.sendall(get(path))
        reply = read_reply(s)
    return detail(reply) if reply.status == 503 else ""


def test_a_late_loop_sheds_p2_then_p1_and_p0_last_and_recovers(upstream):
    held = Held(upstream)
    text = tiers(held.up.address, "pool: {max_connections: 64}", "overload: {}\n")
    with plane(text) as p:
        keep = fill(p, held, 1)  # the pulse beats while there are requests
        held.go(10_000)
        keep[0].close()
        seen: dict[str, float] = {}
        said: dict[str, str] = {}
        stop = threading.Event()

        def refused(n: int) -> None:
            """Note the first refusal of a tier. The load may pass several marks at once: then the lower tiers are refused too, and noted before."""
            if f"/p{n}" not in seen and (why := shed(p, f"/p{n}")):
                if n < 2:
                    refused(n + 1)
                seen[f"/p{n}"], said[f"/p{n}"] = time.monotonic(), why

        def stall() -> None:  # the loop is stopped for a while, again and again
            while not stop.is_set():
                p.loop.call_soon_threadsafe(time.sleep, 0.15)
                time.sleep(0.16)

        thread = threading.Thread(target=stall)
        thread.start()
        try:
            began = time.monotonic()
            while len(seen) < 3 and time.monotonic() < began + 10 * SLACK:
                for n in range(3):
                    refused(n)
        finally:
            stop.set()
            thread.join()
        assert set(seen) >= {"/p2", "/p1"} and seen["/p2"] <= seen["/p1"], seen
        assert seen.get("/p0", 1e18) >= seen["/p1"]
        assert ": load 0.8" in said["/p2"] or ": load 0.9" in said["/p2"] or ": load 1" in said["/p2"]
        assert said["/p2"].endswith("P2 is shed from 0.80") and said["/p1"].endswith("P1 is shed from 0.90")
        assert " of 50 ms" in said["/p2"] or " of 250 ms" in said["/p2"]
        wait_until(lambda: shed(p, "/p2") == "", 10)  # all is well again
        assert tier(p, 2)["shed"]["overload"] >= 1


def test_busy_connections_shed_by_tier(upstream):
    held = Held(upstream)
    text = tiers(held.up.address, "pool: {max_connections: 200}", "overload: {lag: 60s, wait: 60s}\nlimits: {connections: 100}\n")
    with plane(text) as p:
        socks = fill(p, held, 83)
        wait_until(lambda: p.segment.snapshot()["workers"][0]["load"] > 0.8, 8)
        wait_until(lambda: shed_now(p, "/p2"), 5)
        worker = p.segment.snapshot()["workers"][0]
        assert worker["load_of"] == "connections" and worker["load"] < 0.9
        why = shed_now(p, "/p2")
        assert why.startswith("busy connections 8") and why.endswith("P2 is shed from 0.80") and " of 100: load 0.8" in why
        socks += fill(p, held, 1, "/p1")  # the higher tiers are served
        finish(held, socks)
        wait_until(lambda: p.segment.snapshot()["workers"][0]["load"] == 0.0)


def shed_now(p, path: str) -> str:
    """The detail of a refusal; asks again while it is not refused."""
    for _ in range(50):
        with p.connect() as s:
            s.sendall(get(path))
            s.settimeout(0.1)
            try:
                reply = read_reply(s, timeout=0.1)
            except TimeoutError:
                continue
            return detail(reply)
    return ""


def test_switched_off_nothing_is_shed_and_nothing_is_measured(upstream):
    held = Held(upstream)
    with plane(tiers(held.up.address, "pool: {max_connections: 200}", "overload: off\nlimits: {connections: 20}\n")) as p:
        socks = fill(p, held, 20, "/p2")
        time.sleep(0.3)
        assert p.segment.snapshot()["workers"][0]["load"] == 0
        finish(held, socks)
        assert "overload" not in p.reasons()


def test_own_answers_are_never_shed(upstream):
    held = Held(upstream)
    text = tiers(
        held.up.address,
        "pool: {max_connections: 200}",
        "overload: {shed: {P2: 0.01, P1: 0.01, P0: 5}}\nlimits: {connections: 10}\n",
    )
    text = text.replace("  - {name: all, upstream: be}", "  - {match: {path: /health}, tier: P2, respond: {body: OK}}")
    with plane(text) as p:
        socks = fill(p, held, 5)
        wait_until(lambda: p.segment.snapshot()["workers"][0]["load"] > 0.1)
        assert "P1 is shed from 0.01" in shed_now(p, "/p1")
        with send(p, "/health") as s:
            assert read_reply(s).status == 200
        finish(held, socks)


# ---- all of it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["12", "adaptive"])
def test_three_times_the_capacity(tmp_path: Path, limit: str):
    upstream, port, admin = free_port(), free_port(), free_port()
    served = Server(
        [sys.executable, "-m", "bench.load.overload", "--backend", str(upstream), "--servers", "10", "--ms", "20"], upstream
    )
    file = tmp_path / "gw.yaml"
    file.write_text(config(port, admin, upstream, 2, limit))
    gateway = Server([sys.executable, "-m", "gwcore", "run", "-c", str(file)], port)
    try:
        rate = asyncio.run(capacity(upstream, 10, 1.0))
        load, calm, over, ended = asyncio.run(three_phases(port, rate, 3, 4))
        assert load.out == load.failed == 0
        assert sum(calm.refused) < 0.02, calm
        assert over.good_per_s > 0.9 * rate, over  # of a machine that other tests use too; the bench holds 95 %
        assert over.refused[0] <= 0.02 and over.refused[2] > 0.5 and over.refused[2] > 2 * over.refused[1], over
        assert over.p50[0] / calm.p50[0] < (1.5 if limit == "12" else 4.5) * SLACK
        assert last_refusal(load.answers, ended) <= 5
        state = json.loads(read_status(admin))
        be = state["upstreams"]["be"]
        assert be["waiting"] == be["limit_in_flight"] == be["in_use"] == 0
        sent = state["tiers"]["P2"]
        assert sent["queued"] > 0 and sum(sent["shed"].values()) > 0
        assert b'gwcore_tier_shed_total{reason="queue_timeout",tier="P2"}' in read_status(admin, "/metrics")
    finally:
        gateway.stop()
        served.stop()


def read_status(admin: int, path: str = "/status") -> bytes:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{admin}{path}", timeout=10) as r:
        return r.read()


def test_the_limit_adapts_and_is_shared(upstream):
    def serve(c) -> None:
        while True:
            c.request()
            time.sleep(0.002)
            c.send(ok())

    up = upstream(serve)
    with plane(tiers(up.address, "concurrency: {mode: adaptive, min: 2, max: 40, start: 4}")) as p:
        stop = time.monotonic() + 3 * SLACK

        def ask() -> None:
            with p.connect() as s:
                while time.monotonic() < stop:
                    s.sendall(get("/p0"))
                    assert read_reply(s).status in (200, 503)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for t in threads:
            t.start()
        wait_until(lambda: be(p)["limit"] != 4, 3)
        for t in threads:
            t.join()
        assert 2 <= be(p)["limit"] <= 40 and be(p)["limit_in_flight"] == 0


def test_echo_is_not_changed_by_a_limit(upstream):
    up = upstream(echo_handler)
    with plane(tiers(up.address, "concurrency: adaptive")) as p, p.connect() as s:
        for i in range(30):
            s.sendall(b"POST /p2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n%03d" % i)
            assert read_reply(s).body.endswith(b"%03d" % i)
