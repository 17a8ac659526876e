"""Drills on real sockets: what drawn requests get, by tier and fault; what they leave untouched; and the command on a gateway as its users run it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
from gwcore._speedups.drills import Drills
from gwcore._speedups.shm import Segment

from tests.e2e.test_process_sla import Load, Tiered
from tests.support import SLACK, Conversation, PlaneThread, Upstream, get, ok, plane, read_reply, wait_until

Make = Callable[[Callable[[Conversation], None]], Upstream]

BE = "retry: {attempts: 0}, breaker: {trip_time: 0s, trip_failures: 5, min_volume: 1}"
TIERS = f"tiers: {{P0: [99%, {round(300 * SLACK)}ms], P1: [99%, {round(500 * SLACK)}ms], P2: [99%, {round(400 * SLACK)}ms]}}\n"


def config(address: str, extra: str = "") -> str:
    return (
        f"upstreams: {{be: {{endpoints: ['{address}'], {BE}}}}}\n{TIERS}routes:\n"
        "- {name: p0, match: {prefix: /p0}, upstream: be, tier: P0}\n"
        "- {name: p1, match: {prefix: /p1}, upstream: be, tier: P1, timeouts: {response: 200ms}, degrade: {steps: [{cache: local}, live]}}\n"
        "- {name: p2, match: {prefix: /p2}, upstream: be, tier: P2, degrade: {steps: [live, {static: {body: spare}}]}}\n"
        f"- {{name: picky, match: {{prefix: /picky}}, upstream: be, tier: P2, degrade: {{on_status: [500], steps: [live, {{static: {{body: spare}}}}]}}}}\n{extra}"
    )


def serve(c: Conversation) -> None:
    while True:
        c.request()
        c.send(ok(b"live"))


def asks(p: PlaneThread, path: str):
    with p.connect() as s:
        s.sendall(get(path))
        return read_reply(s)


def ended(p: PlaneThread, drawn: int) -> dict:
    wait_until(lambda: Drills(p.segment).list()[-1]["waiting"] == 0)
    row = Drills(p.segment).list()[-1]
    assert row["drawn"] == drawn
    return row


def untouched(p: PlaneThread, answers: int) -> None:
    """The upstream sent so many answers, and nobody holds anything against it."""
    p.at_rest()
    be = p.segment.snapshot()["upstreams"]["be"]
    assert be["opens"] + be["reuses"] == answers and sum(be["retried"].values()) == 0
    assert p.reasons().keys() <= {"fault_injected", "client_closed"}


def test_503_by_tier(upstream: Make):
    with plane(config(upstream(serve).address)) as p:
        drills = Drills(p.segment)
        for path, status, body, kind, lost in (
            ("p2", 200, b"spare", "static", 0),
            ("p1", 503, b'"fault_injected"', "refused", 10),  # its ladder has copies, and there are none
            ("p0", 503, b'"fault_injected"', "refused", 0),
            ("picky", 503, b'"fault_injected"', "refused", 0),  # a 503 is an answer there
        ):
            number = drills.start(path, "503", 1.0, 60_000)
            for _ in range(10):
                r = asks(p, f"/{path}")
                assert r.status == status and body in r.body
            assert asks(p, "/p0" if path != "p0" else "/p2").body == b"live"  # others are not drilled
            row = ended(p, 10)
            assert row[kind] == 10 and row["lost"] == row["unkept"] == lost and row["late"] == 0
            assert row["reasons"] == ({"fault_injected": 10} if kind == "refused" else {})
            assert drills.stop(number) and not drills.stop(number)
            assert asks(p, f"/{path}").body == b"live"
        assert p.reasons() == {"fault_injected": 40}
        untouched(p, 8)


@pytest.mark.parametrize("fault", ["503", "timeout"])
def test_copies_where_there_are_some(upstream: Make, fault: str):
    def fresh(c: Conversation) -> None:
        while True:
            c.request()
            c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nCache-Control: max-age=1\r\n\r\ncopy")

    text = config(upstream(fresh).address).replace("tier: P1,", "tier: P1, cache: on,")
    with plane(text) as p:
        assert asks(p, "/p1/known").status == 200
        number = Drills(p.segment).start("p1", fault, 1.0, 60_000)
        assert asks(p, "/p1/known").get("X-Gwcore-Degraded") is None  # it is fresh: nobody asks the upstream
        time.sleep(1.1)
        r = asks(p, "/p1/known")
        assert (r.status, r.body, r.get("X-Gwcore-Degraded")) == (200, b"copy", "cache")
        assert asks(p, "/p1/unknown").status == 503
        row = ended(p, 2)
        assert (row["copy"], row["refused"], row["lost"], row["late"]) == (1, 1, 1, 0)
        Drills(p.segment).stop(number)
        untouched(p, 1)


def test_timeout_ends_with_the_budget(upstream: Make):
    with plane(config(upstream(serve).address)) as p:
        Drills(p.segment).start("p2", "timeout", 1.0, 60_000)
        for _ in range(3):
            began = time.monotonic()
            assert asks(p, "/p2").body == b"spare"
            assert time.monotonic() - began > 0.3 * SLACK
        row = ended(p, 3)
        assert row["static"] == 3 and row["unkept"] == 0 and 0.3 * SLACK < row["max_s"] < 0.4 * SLACK
        Drills(p.segment).start("p1", "timeout", 1.0, 60_000)
        assert asks(p, "/p1").status == 503  # after the route's response timeout, for there is no other limit
        row = ended(p, 1)
        assert row["lost"] == 1 and row["late"] == 0 and row["max_s"] > 0.19
        untouched(p, 0)


def test_slow_is_sent_later_or_never(upstream: Make):
    with plane(config(upstream(serve).address)) as p:
        drills = Drills(p.segment)
        number = drills.start("p2", "slow", 1.0, 60_000, 100)
        for _ in range(3):
            assert asks(p, "/p2").body == b"live"
        row = ended(p, 3)
        assert row["live"] == 3 and row["unkept"] == 0 and row["max_s"] > 0.09
        with p.connect() as s:  # with a body, of which a part comes later
            s.sendall(b"POST /p2 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234")
            time.sleep(0.02)
            s.sendall(b"56789")
            assert read_reply(s).body == b"live"
        drills.stop(number)
        number = drills.start("p2", "slow", 1.0, 60_000, 30_000)
        assert asks(p, "/p2").body == b"spare"
        assert ended(p, 1)["static"] == 1
        drills.stop(number)
        drills.start("p0", "slow", 1.0, 60_000, round(350 * SLACK))  # beyond what P0 promises, and no ladder
        assert asks(p, "/p0").body == b"live"
        row = ended(p, 1)
        assert (row["live"], row["late"], row["unkept"]) == (1, 1, 1)
        assert p.segment.snapshot()["upstreams"]["be"]["seconds"]["count"] == 0  # its latency was none of these
        untouched(p, 5)


@pytest.mark.parametrize("fault", ["timeout", "slow"])
def test_clients_that_leave_meanwhile(upstream: Make, fault: str):
    with plane(config(upstream(serve).address)) as p:
        drills = Drills(p.segment)
        drills.start("p0", fault, 1.0, 60_000, 30_000 if fault == "slow" else 0)
        held = [p.connect() for _ in range(20)]
        for i, s in enumerate(held):
            s.sendall(get("/p0") if i % 2 else b"POST /p0 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123")
        wait_until(lambda: drills.list()[-1]["waiting"] == 20)
        counts = p.segment.snapshot()["upstreams"]["be"]
        assert (counts["in_use"], counts["waiting"], p.counts()["permits"]) == (0, 0, 0)
        for s in held:
            s.close()
        row = ended(p, 20)
        assert row["left"] == 20 and row["unkept"] == 0
        untouched(p, 0)


def test_a_share_is_drawn_and_its_time_ends(upstream: Make):
    with plane(config(upstream(serve).address)) as p, p.connect() as s:
        Drills(p.segment).start("p2", "503", 0.25, 60_000)
        bodies = []
        for _ in range(800):
            s.sendall(get("/p2"))
            bodies.append(read_reply(s).body)
        spare = bodies.count(b"spare")
        assert 120 < spare < 280 and bodies.count(b"live") == 800 - spare
        row = ended(p, spare)
        Drills(p.segment).stop(row["number"])
        Drills(p.segment).start("p2", "503", 1.0, 200)
        assert asks(p, "/p2").body == b"spare"
        wait_until(lambda: asks(p, "/p2").body == b"live")
        assert Drills(p.segment).list()[-1]["remaining_s"] == 0


def test_room_for_so_many():
    drills = Drills(Segment.create(1))
    numbers = [drills.start(f"r{i}", "503", 0.5, 60_000) for i in range(4)]
    assert numbers == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="r2 is under way"):
        drills.start("r2", "timeout", 0.5, 60_000)
    with pytest.raises(ValueError, match="no room"):
        drills.start("r4", "503", 0.5, 60_000)
    assert drills.stop(2) and drills.start("r4", "slow", 0.5, 60_000, 10) == 5
    assert [(x["number"], x["route"], x["share"]) for x in drills.list()] == [
        (1, "r0", 0.5),
        (3, "r2", 0.5),
        (4, "r3", 0.5),
        (5, "r4", 0.5),
    ]


def command(gw: Tiered, *args: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "gwcore", "drill", "-c", str(gw.file), *args]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def refused(gw: Tiered, query: str, method: str = "POST") -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as why:
        gw.get(f"/drill?{query}", method)
    return why.value.code, json.load(why.value)["error"]


def test_the_command_on_a_running_gateway(upstream: Make, tmp_path: Path):
    gw = Tiered(
        tmp_path,
        upstream(serve),
        extra="- {name: p1, match: {prefix: /p1}, upstream: be, degrade: {steps: [{cache: local}, live]}}\n- {name: own, match: {path: /own}, respond: {status: 204}}\n",
    )
    try:
        loads = [Load(gw.port, f"/{x}", 2) for x in ("p0", "p1", "p2")]
        good = command(gw, "--route", "p2", "--fail", "503", "--share", "50%", "--for", "1s")
        bad = command(gw, "--route", "p1", "--fail", "503", "--share", "100%", "--for", "1s")
        said, also = good.communicate(timeout=60)[0], bad.communicate(timeout=60)[0]
        assert good.returncode == 0 and "KEPT: every drilled request" in said and "NOT" not in said, said
        assert "route p2 (P2, live -> static): 50% of its requests get 503" in said and "drawn" in said
        assert bad.returncode == 1 and "NOT KEPT" in also and "fault_injected" in also, also
        row = next(x for x in json.loads(gw.get("/drill"))["drills"] if x["route"] == "p2")
        assert row["static"] == row["drawn"] > 0 and row["waiting"] == 0

        long = command(gw, "--route", "p2", "--fail", "timeout", "--share", "1%", "--for", "10m")
        wait_until(lambda: b'gwcore_drill{fail="timeout",route="p2"} 0.01' in gw.get("/metrics"))
        assert refused(gw, "route=p2&fail=503")[0] == 409
        long.send_signal(signal.SIGINT)
        assert "ended" in long.communicate(timeout=60)[0]
        assert b"gwcore_drill{" not in gw.get("/metrics")
        assert refused(gw, "route=p2", "DELETE")[0] == 404

        assert refused(gw, "route=p2&fail=503&for=11m")[0] == 422
        assert refused(gw, "route=p2&fail=503&share=101%25")[0] == 422
        assert refused(gw, "route=p2&fail=503&delay=1s")[0] == 422
        assert refused(gw, "route=p2&fail=slow&delay=2m")[0] == 422
        assert refused(gw, "route=p2&fail=500")[0] == 422
        assert refused(gw, "route=own&fail=503")[0] == 422
        assert refused(gw, "route=none&fail=503")[0] == 404
        for load in loads:
            load.stop()
        assert {x[0] for x in loads[0].seen} == {x[0] for x in loads[2].seen} == {200}
        status = gw.status()
        assert status["upstreams"]["be"]["breaker"]["state"] == "closed" and status["upstreams"]["be"]["breaker"]["opens"] == 0
        events = [e for e in json.loads(gw.get("/status/events"))["events"] if e["event"] == "drill"]
        assert sorted(e["to"] for e in events) == ["off"] * 3 + ["on"] * 3
        assert gw.stop() == 0
    finally:
        gw.clean_up()
