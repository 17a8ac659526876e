"""What was answered statically reaches its upstream later: over kills of workers and supervisor, within bounds."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from gwcore.compensation import HEAD, MAGIC, Journal, encode
from tests.e2e.process import Process, kill
from tests.support import Conversation, Upstream, free_port, ok, read_reply, wait_until


class Compensated(Process):
    rules = "{ttl: 5m, rate: 500/s}"

    def write(self, extra: str = "") -> None:
        state = self.file.parent / "owed"
        state.mkdir(exist_ok=True)
        self.state = state
        self.file.write_text(
            f'workers: {self.workers}\nlisteners: [{{address: "{self.address}"}}]\nadmin: {{address: "127.0.0.1:{self.admin}"}}\n'
            f"access_log: {{path: 'off'}}\noverload: off\ncompensation: {{dir: {state}}}\n"
            f'upstreams: {{be: {{endpoints: ["{self.upstream.address}"]}}}}\n'
            "routes:\n- name: p2\n  upstream: be\n  tier: P2\n  rewrite: {replace_prefix: /inner}\n  match: {prefix: /p2}\n"
            f"  degrade: {{steps: [live, {{static: {{status: 202, body: later}}}}], compensate: {extra or self.rules}}}\n"
        )

    def owed(self) -> dict[str, Any]:
        return json.loads(self.get("/compensation"))

    def figures(self) -> dict[str, int]:
        return self.status()["compensation"]


class Nobody:
    """An upstream that is not there; `come` makes it."""

    def __init__(self, status: bytes = b""):
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.got: list[tuple[str, bytes]] = []
        self.heads: list[str] = []
        self.lock = threading.Lock()
        self.status = status
        self.up: Upstream | None = None

    def come(self) -> None:
        self.up = Upstream(self.serve, port=self.port)

    def serve(self, c: Conversation) -> None:
        while True:
            head, body = c.request()
            text = head.decode("latin-1")
            key = re.search(r"(?i)idempotency-key: (\S+)", text)
            with self.lock:
                self.heads.append(text)
                self.got.append((key[1] if key else "", body))
            c.send(self.status or ok(b"live"))

    def close(self) -> None:
        if self.up:
            self.up.close()


def post(port: int, body: bytes, more: str = "", method: str = "POST", path: str = "/p2/x") -> Any:
    with socket.create_connection(("127.0.0.1", port), 5) as s:
        s.sendall(f"{method} {path} HTTP/1.1\r\nHost: a\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return read_reply(s)


@pytest.fixture
def nobody():
    n = Nobody()
    yield n
    n.close()


def replaced(gw: Compensated) -> None:
    """Kill a worker, and wait for its successor."""
    victim = gw.pids()[0]
    kill(victim)
    wait_until(lambda: gw.ready() and victim not in gw.pids() and all(gw.pids()))


def test_nothing_is_lost_when_worker_and_supervisor_are_killed(nobody, tmp_path: Path):
    gw = Compensated(tmp_path, nobody)
    bodies = []
    try:
        for i in range(30):
            body = b"order %d " % i + b"x" * (i * 700)
            more = f"Idempotency-Key: mine-{i}\r\n" if i % 2 else ""
            r = post(gw.port, body, more)
            assert (r.status, r.get("X-Gwcore-Degraded")) == (202, "static"), (i, r.status)
            bodies.append(body)
            if i == 10:
                replaced(gw)
        assert gw.figures()["waiting"] <= 30
        pids = gw.pids()
        gw.p.kill()  # the supervisor, then what is left of its workers
        gw.p.wait()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                kill(pid)
    finally:
        gw.clean_up()
    again = Compensated(tmp_path, nobody)
    try:
        wait_until(lambda: again.figures()["waiting"] == 30)
        nobody.come()
        wait_until(lambda: again.figures()["waiting"] == 0, 60)
        assert {b for _, b in nobody.got} == set(bodies)
        keys = {b: k for k, b in nobody.got}
        assert all(keys[b] == f"mine-{i}" for i, b in enumerate(bodies) if i % 2)
        assert len(set(keys.values())) == 30 and all(keys.values())
        assert all("X-Gwcore-Compensation: " in h and h.startswith("POST /inner/x HTTP/1.1") for h in nobody.heads)
        assert again.figures()["replayed"] == 30
        assert "gwcore_compensations_total" in again.get("/metrics").decode()
        wait_until(lambda: not list(again.state.glob("*.done")))
        assert again.stop() == 0
    finally:
        again.clean_up()


def test_bounds_queue_body_and_time(nobody, tmp_path: Path):
    gw = Compensated(tmp_path, nobody, workers=1, extra="{queue: 3, ttl: 3s, body: 1KiB}")
    try:
        assert post(gw.port, b"x" * 2000).status in (502, 503)
        assert gw.figures()["not_queued"] == 1
        assert [post(gw.port, b"%d" % i, method="PUT").status for i in range(3)] == [202] * 3
        assert post(gw.port, b"over").status in (502, 503)
        assert (gw.figures()["overflow"], gw.figures()["queued"]) == (1, 3)
        with socket.create_connection(("127.0.0.1", gw.port), 5) as s:  # nothing to compensate: the static answer as ever
            s.sendall(b"GET /p2/x HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_reply(s).status == 202
        wait_until(lambda: gw.figures()["expired"] == 3)
        assert len(gw.owed()["dead"]) == 3 and gw.figures()["waiting"] == 0
        assert post(gw.port, b"again").status == 202  # its place came back
        assert gw.stop() == 0
    finally:
        gw.clean_up()


def test_dead_letters_are_listed_replayed_and_dropped(tmp_path: Path):
    nobody = Nobody(b"HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n")
    gw = Compensated(tmp_path, nobody, workers=1)
    try:
        assert [post(gw.port, b"%d" % i).status for i in range(2)] == [202] * 2
        wait_until(lambda: gw.figures()["waiting"] == 2)
        one, two = (r["id"] for r in gw.owed()["waiting"])
        gw.get(f"/compensation/drop?id={two}", "POST")
        nobody.come()
        wait_until(lambda: gw.figures()["failed"] == 1, 60)
        assert [(d["id"], d["why"]) for d in gw.owed()["dead"]] == [(one, "status 409")]
        nobody.status = b""
        gw.get(f"/compensation/replay?id={one}", "POST")
        wait_until(lambda: gw.figures()["replayed"] == 1)
        assert gw.owed() == {"waiting": [], "more": 0, "dead": []}
        assert [b for _, b in nobody.got] == [b"0", b"0"]
        assert gw.stop() == 0
    finally:
        gw.clean_up()
        nobody.close()


def test_a_torn_record_is_left_out(tmp_path: Path):
    path = tmp_path / "1-1.journal"
    whole = encode("a", "r", "u", b"POST / HTTP/1.1\r\n\r\nbody", 60)
    path.write_bytes(whole + whole[:-3])
    j = Journal(path)
    assert [o.id for o in j.news()] == ["a"] and j.left == 1 and not j.torn
    path.write_bytes(whole + whole[:-3] + b"???")
    assert j.news() == [] and j.torn
    j.settle(0)
    assert Journal(path).news() == []
    assert len(whole) > HEAD.size and whole.startswith(MAGIC)
