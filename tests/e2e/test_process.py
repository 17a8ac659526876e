"""The gateway as its users run it: processes, signals, reload, crashes. Loaded with a small closed-loop client of our own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support import SLACK, Upstream, free_port, ok, read_reply, wait_until


class Process:
    """`python -m gwcore run` on a configuration of its own."""

    def __init__(self, tmp: Path, upstream: Upstream, workers: int = 2, extra: str = ""):
        self.port, self.admin = free_port(), free_port()
        self.file = tmp / "gw.yaml"
        self.log = tmp / "access.log"
        self.upstream, self.workers = upstream, workers
        self.write(extra)
        self.messages = open(tmp / "stderr", "w+")  # noqa: SIM115
        self.p = subprocess.Popen([sys.executable, "-m", "gwcore", "run", "-c", str(self.file)], stderr=self.messages)
        wait_until(lambda: self.p.poll() is not None or self.ready(), 20, "the gateway's start")

    def write(self, extra: str = "") -> None:
        self.file.write_text(
            f'workers: {self.workers}\nlisteners: [{{address: "127.0.0.1:{self.port}"}}]\nadmin: {{address: "127.0.0.1:{self.admin}"}}\n'
            f'access_log: {{path: {self.log}, flush: 50ms}}\nupstreams: {{be: {{endpoints: ["{self.upstream.address}"]}}}}\n'
            f"routes: [{{name: all, upstream: be}}]\n{extra}"
        )

    def ready(self) -> bool:
        try:
            return self.get("/readyz") == b"ready\n"
        except OSError:
            return False

    def get(self, path: str, method: str = "GET") -> bytes:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{self.admin}{path}", method=method), timeout=10
        ) as r:
            return r.read()

    def status(self) -> dict:
        return json.loads(self.get("/status"))

    def said(self) -> str:
        return Path(self.messages.name).read_text()

    def stop(self) -> int:
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
        return self.p.wait(40)


class Clients:
    """n closed-loop keep-alive clients; counts answers, lost requests (a byte was sent, no whole answer came) and reconnects."""

    def __init__(self, port: int, n: int = 16):
        self.port, self.answers, self.lost, self.connects = port, 0, 0, 0
        self.statuses: dict[int, int] = {}
        self.stopping = False
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(n)]
        for t in self.threads:
            t.start()

    def _run(self) -> None:
        s = None
        while not self.stopping:
            if s is None:
                try:
                    s = socket.create_connection(("127.0.0.1", self.port), 5)
                except OSError:
                    if self.stopping:
                        return
                    time.sleep(0.01)
                    continue
                with self.lock:
                    self.connects += 1
            try:
                s.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
                r = read_reply(s)
            except (OSError, EOFError):
                with self.lock:
                    self.lost += 1
                s.close()
                s = None
                continue
            with self.lock:
                self.answers += 1
                self.statuses[r.status] = self.statuses.get(r.status, 0) + 1
            if r.get("Connection") == "close":
                s.close()
                s = None
        if s is not None:
            s.close()

    def stop(self) -> None:
        self.stopping = True
        for t in self.threads:
            t.join(10)


@pytest.fixture
def backend(upstream):
    def handler(c):
        while True:
            c.request()
            c.send(ok())

    return upstream(handler)


@pytest.fixture
def gateway(tmp_path, backend):
    made = []

    def make(**kw):
        made.append(Process(tmp_path, backend, **kw))
        return made[-1]

    yield make
    for g in made:
        if g.p.poll() is None:
            g.p.kill()
            g.p.wait()
        g.messages.close()


def test_a_drain_loses_nothing_and_ends_with_zero(gateway):
    g = gateway()
    clients = Clients(g.port)
    wait_until(lambda: clients.answers > 200)
    started = time.monotonic()
    g.p.send_signal(signal.SIGTERM)
    clients.stopping = True
    assert g.p.wait(20) == 0
    clients.stop()
    assert clients.lost == 0 and set(clients.statuses) == {200}
    assert time.monotonic() - started < 10 * SLACK


def test_reloads_close_no_connection_and_lose_nothing(gateway):
    g = gateway()
    clients = Clients(g.port)
    wait_until(lambda: clients.answers > 100)
    before = clients.connects
    for i in range(20):
        g.write(f"limits: {{header_count: {60 + i}}}\n")
        assert json.loads(g.get("/reload", "POST"))["ok"]
    assert g.status()["plan"] == 21
    clients.stop()
    assert clients.lost == 0 and clients.connects == before and set(clients.statuses) == {200}


def test_a_bad_reload_changes_nothing_and_says_why(gateway):
    g = gateway(workers=1)
    g.file.write_text(g.file.read_text() + "limit: {}\n")
    g.p.send_signal(signal.SIGHUP)
    wait_until(lambda: "did you mean limits" in g.said())
    status = g.status()
    assert status["plan"] == 1 and not status["last_reload"]["ok"]
    with socket.create_connection(("127.0.0.1", g.port)) as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_reply(s).status == 200


def test_a_killed_worker_is_replaced_and_loses_only_its_own(gateway):
    g = gateway()
    n = 16
    clients = Clients(g.port, n)
    wait_until(lambda: clients.answers > 200)
    victim = g.status()["workers"][0]["pid"]
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(
        lambda: [w for w in g.status()["workers"] if w["number"] == 0][0]["up"] and g.status()["workers"][0]["pid"] != victim, 5
    )
    assert time.monotonic() - killed < 2 * SLACK
    answers = clients.answers
    wait_until(lambda: clients.answers > answers + 500)
    clients.stop()
    assert clients.lost <= n and set(clients.statuses) == {200}
    assert g.status()["workers"][0]["restarts"] == 1
    wait_until(lambda: g.status()["upstreams"]["be"]["in_use"] == 0)


def test_listeners_come_and_go_with_a_reload(gateway):
    g = gateway(workers=1)
    other = free_port()
    text = g.file.read_text()
    g.file.write_text(text.replace("listeners: [", f'listeners: [{{address: "127.0.0.1:{other}"}}, '))
    assert json.loads(g.get("/reload", "POST"))["ok"]

    def answers() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", other), 1) as s:
                s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                return read_reply(s).status == 200
        except OSError:
            return False

    wait_until(answers)
    g.file.write_text(text)
    assert json.loads(g.get("/reload", "POST"))["ok"]
    wait_until(lambda: not answers(), 10)


def test_logs_are_reopened(gateway, tmp_path):
    g = gateway(workers=1)

    def request() -> None:
        with socket.create_connection(("127.0.0.1", g.port)) as s:
            s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            read_reply(s)

    request()
    wait_until(lambda: g.log.read_bytes().count(b"\n") == 1)
    g.log.rename(tmp_path / "old.log")
    g.p.send_signal(signal.SIGUSR1)
    wait_until(g.log.exists)
    time.sleep(0.1)
    request()
    wait_until(lambda: g.log.read_bytes().count(b"\n") == 1)
    assert (tmp_path / "old.log").read_bytes().count(b"\n") == 1


def test_an_upgrade_keeps_the_sockets_and_the_pid(gateway):
    g = gateway()
    clients = Clients(g.port, 8)
    wait_until(lambda: clients.answers > 100)
    old = {w["pid"] for w in g.status()["workers"]}
    g.p.send_signal(signal.SIGUSR2)

    def upgraded() -> bool:
        try:
            s = g.status()
        except OSError:
            return False
        return s["ready"] and not old & {w["pid"] for w in s["workers"]} and all(w["up"] for w in s["workers"])

    wait_until(upgraded, 20)
    assert g.status()["pid"] == g.p.pid
    answers = clients.answers
    wait_until(lambda: clients.answers > answers + 200)
    clients.stop()
    assert clients.lost == 0 and set(clients.statuses) == {200}
    assert g.stop() == 0


def test_a_taken_port_is_named(tmp_path, backend):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file = tmp_path / "x.yaml"
        file.write_text(
            f'listeners: [{{address: "127.0.0.1:{taken.getsockname()[1]}"}}]\nroutes: [{{respond: {{body: x}}}}]\nadmin: {{address: "127.0.0.1:{free_port()}"}}\n'
        )
        done = subprocess.run(
            [sys.executable, "-m", "gwcore", "run", "-c", str(file)], capture_output=True, text=True, timeout=30
        )
    assert done.returncode == 1 and re.search(
        r"cannot listen on 127.0.0.1:\d+: Address already in use \(another process", done.stderr
    )


def test_metrics_and_status_tell_the_same(gateway):
    g = gateway(workers=1)
    with socket.create_connection(("127.0.0.1", g.port)) as s:
        for _ in range(5):
            s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            read_reply(s)
    text = g.get("/metrics").decode()
    assert 'gwcore_requests_total{route="all",status="2xx"} 5.0' in text
    assert 'gwcore_upstream_reuses_total{upstream="be"} 4.0' in text
    assert 'gwcore_request_seconds_bucket{le="+Inf",route="all"} 5.0' in text
    u = g.status()["upstreams"]["be"]
    assert u["reuse_ratio"] == 0.8 and u["requests_per_connection"] == 5.0


def test_descriptors_near_their_limit_pause_accepting_and_recover(tmp_path, backend):
    """Clients up to the limit: idle ones are shed first, then accepting pauses with an alarm, and goes on by itself."""
    port, admin = free_port(), free_port()
    file = tmp_path / "fd.yaml"
    file.write_text(
        f'workers: 1\nlisteners: [{{address: "127.0.0.1:{port}"}}]\nadmin: {{address: "127.0.0.1:{admin}"}}\naccess_log: {{path: "off"}}\n'
        f'limits: {{connections: 100000}}\nupstreams: {{be: {{endpoints: ["{backend.address}"]}}}}\nroutes: [{{upstream: be}}]\n'
    )
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); from gwcore.supervisor import run; sys.exit(run(sys.argv[1]))"
    messages = open(tmp_path / "err", "w")  # noqa: SIM115
    p = subprocess.Popen([sys.executable, "-c", script, str(file)], stderr=messages)
    try:

        def up() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True
            except OSError:
                return False

        wait_until(up, 20)
        busy = []
        for _ in range(180):  # heads that never end: not idle, so they cannot be shed
            s = socket.create_connection(("127.0.0.1", port), 5)
            s.sendall(b"GET / HTTP/1.1\r\n")
            busy.append(s)
        wait_until(lambda: "paused accepting" in Path(messages.name).read_text(), 10)
        for s in busy:
            s.close()

        def answers() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", port), 1) as s:
                    s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                    return read_reply(s).status == 200
            except (OSError, EOFError):
                return False

        wait_until(answers, 10)
    finally:
        p.terminate()
        assert p.wait(40) == 0
        messages.close()
