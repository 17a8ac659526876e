"""A gateway as its users run it: an upstream killed under load, by tier; figures that outlive a restart; the operator's switch."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.process import Process
from tests.support import SLACK, Conversation, Upstream, free_port, ok, read_reply, wait_until


def serve(c: Conversation) -> None:
    while True:
        c.request()
        c.send(ok(b"live"))


class Tiered(Process):
    def write(self, extra: str = "") -> None:
        self.file.write_text(
            f'workers: {self.workers}\nlisteners: [{{address: "{self.address}"}}]\nadmin: {{address: "127.0.0.1:{self.admin}"}}\n'
            f"access_log: {{path: {self.log}, flush: 50ms}}\noverload: off\n"
            f'upstreams: {{be: {{endpoints: ["{self.upstream.address}"]}}}}\n'
            "routes:\n- {name: p0, match: {prefix: /p0}, upstream: be, tier: P0}\n"
            "- {name: p2, match: {prefix: /p2}, upstream: be, tier: P2, degrade: {steps: [live, {static: {body: spare}}]}}\n"
            + extra
        )


class Load:
    """Closed-loop clients of one path: statuses, bodies and the slowest answer, since the last `clear`."""

    def __init__(self, port: int, path: str, n: int = 4):
        self.port, self.ask = port, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        self.seen: list[tuple[int, bytes, float, str]] = []
        self.lost = 0
        self.stopping = False
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(n)]
        for t in self.threads:
            t.start()

    def run(self) -> None:
        import socket

        s = None
        while not self.stopping:
            try:
                s = s or socket.create_connection(("127.0.0.1", self.port), 5)
                began = time.monotonic()
                s.sendall(self.ask)
                r = read_reply(s)
                degraded = r.get("X-Gwcore-Degraded") or ""
                self.seen.append((r.status, r.body if r.status == 200 else b"", time.monotonic() - began, degraded))
                if r.get("Connection") == "close":
                    s.close()
                    s = None
            except (OSError, EOFError):
                self.lost += 1
                s = None
            time.sleep(0.002)

    def stop(self) -> None:
        self.stopping = True
        for t in self.threads:
            t.join(10)


@pytest.fixture
def killable():
    made: list[Upstream] = []

    def make() -> Upstream:
        made.append(Upstream(serve))
        return made[-1]

    yield make
    for u in made:
        u.close()


def test_an_upstream_killed_under_load_by_tier(killable, tmp_path: Path):
    up = killable()
    state = tmp_path / "sla.json"
    gw = Tiered(tmp_path, up, extra=f"sla: {{file: {state}}}\n")
    try:
        p0, p2 = Load(gw.port, "/p0"), Load(gw.port, "/p2")
        wait_until(lambda: len(p0.seen) > 100 and len(p2.seen) > 100)
        up.close()  # nobody listens there any more
        wait_until(lambda: p0.seen[-1][0] != 200)
        before0, before2 = len(p0.seen), len(p2.seen)
        wait_until(lambda: len(p0.seen) > before0 + 300 and len(p2.seen) > before2 + 300)
        p0.stop()
        p2.stop()
        down0, all2 = p0.seen[before0 + 4 :], p2.seen
        assert p0.lost == p2.lost == 0
        assert {x[0] for x in down0} <= {502, 503}
        fast = sum(x[2] < 0.1 * SLACK for x in down0) / len(down0)
        assert fast >= 0.99, sorted(x[2] for x in down0)[-5:]
        assert {x[0] for x in all2} == {200} and {x[3] for x in all2[before2 + 4 :]} == {"static"}
        kinds = [bool(x[3]) for x in all2]
        assert kinds[0] is False and kinds[-1] is True

        status = gw.status()
        routes = status["sla"]["routes"]
        assert routes["p2"]["P2"]["5m"]["attainment"] == 1.0 and routes["p2"]["P2"]["5m"]["degraded"] > 0.3
        assert routes["p0"]["P0"]["5m"]["burn_rate"] > 1 > routes["p0"]["P0"]["5m"]["attainment"]
        asked = routes["p0"]["P0"]["30d"]["requests"]
        assert asked == len(p0.seen)
        text = gw.get("/metrics").decode()
        n = sum(float(x) for x in re.findall(r'gwcore_sla_requests_total\{outcome="\w+",route="p0",tier="P0"\} (\S+)', text))
        assert n == asked
        assert gw.stop() == 0
        assert json.loads(state.read_text())["version"] == 1
        again = Tiered(tmp_path, up, extra=f"sla: {{file: {state}}}\n")
        try:
            assert again.status()["sla"]["routes"]["p0"]["P0"]["30d"]["requests"] == asked
        finally:
            again.clean_up()
    finally:
        gw.clean_up()


def test_answers_do_not_flap_when_the_upstream_comes_back(tmp_path: Path):
    port = free_port()
    stub = type("Stub", (), {"address": f"127.0.0.1:{port}"})()
    gw = Tiered(tmp_path, stub)
    up = None
    try:
        p2 = Load(gw.port, "/p2", 2)
        wait_until(lambda: len(p2.seen) > 200)
        assert {x[3] for x in p2.seen} == {"static"}
        up = Upstream(serve, port=port)
        wait_until(lambda: [x[3] for x in p2.seen[-100:]] == [""] * 100, 30, "live answers again")
        p2.stop()
        assert {x[0] for x in p2.seen} == {200}
        live = [not x[3] for x in p2.seen]
        first = live.index(True)
        changes = sum(a != b for a, b in zip(live[first:], live[first + 1 :], strict=False))
        assert changes <= 6, changes  # probes; then static until the level has fallen; then live
    finally:
        gw.clean_up()
        if up:
            up.close()


def test_the_switch_reaches_all_workers(killable, tmp_path: Path):
    gw = Tiered(tmp_path, killable())
    try:
        p2 = Load(gw.port, "/p2")
        wait_until(lambda: len(p2.seen) > 50)
        assert json.loads(gw.get("/degrade?upstream=be&for=1h", "POST"))["ok"]
        n = len(p2.seen) + 8
        wait_until(lambda: len(p2.seen) > n + 100)
        assert {x[3] for x in p2.seen[n:]} == {"static"}
        gw.get("/degrade?upstream=be&state=off", "POST")
        n = len(p2.seen) + 8
        wait_until(lambda: len(p2.seen) > n + 100)
        assert {x[3] for x in p2.seen[n:]} == {""}
        p2.stop()
        assert any(e["event"] == "degrade_switched" for e in json.loads(gw.get("/status/events"))["events"])
        assert gw.stop() == 0
    finally:
        gw.clean_up()
