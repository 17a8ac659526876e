"""Start, drain, end, logs, figures: the gateway as its users run it."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.e2e.process import GET, Clients, alive, children, run_failing, switches
from tests.support import SLACK, Upstream, free_port, ok, read_all, read_reply, wait_until


def test_a_drain_loses_nothing_and_ends_with_zero(gateway):
    g = gateway()
    clients = Clients(g.port)
    clients.warm()
    workers = g.pids()
    started = time.monotonic()
    g.signal(signal.SIGTERM)
    clients.stopping = True
    assert g.p.wait(20) == 0
    clients.stop()
    assert clients.lost == 0 and set(clients.statuses) == {200}
    assert time.monotonic() - started < 10 * SLACK
    assert not any(map(alive, workers))


def test_a_drain_lets_requests_finish_and_closes_idle_connections_last(gateway, upstream):
    begun, go_on = threading.Event(), threading.Event()

    def handler(c):
        while True:
            c.request()
            begun.set()
            go_on.wait(10)
            c.send(ok(b"late"))

    g = gateway(upstream(handler), workers=1)
    with g.connect() as busy, g.connect() as idle:
        busy.sendall(GET)
        assert begun.wait(5 * SLACK)
        g.signal(signal.SIGTERM)
        wait_until(lambda: "draining" in g.said())
        time.sleep(0.5)
        assert g.p.poll() is None
        idle.setblocking(False)
        with pytest.raises(BlockingIOError):  # a request may be on its way on it
            idle.recv(1)
        go_on.set()
        reply = read_reply(busy)
        assert (reply.status, reply.body, reply.get("Connection")) == (200, b"late", "close")
        assert read_all(idle) == b""
    assert g.p.wait(10 * SLACK) == 0


def test_not_ready_comes_before_the_drain(gateway):
    g = gateway(workers=1, extra="timeouts: {drain_delay: 1s}\n")
    g.signal(signal.SIGTERM)
    wait_until(lambda: not g.ready())
    assert g.answers(), "during drain_delay connections are still accepted"
    assert g.p.wait(20) == 0


def test_a_drain_has_an_end(gateway, upstream):
    silent = upstream(lambda c: (c.request(), time.sleep(60)))
    g = gateway(silent, workers=1, extra="timeouts: {drain: 300ms}\n")
    with g.connect() as s:
        s.sendall(GET)
        wait_until(lambda: silent.seen)
        g.signal(signal.SIGTERM)
        assert g.p.wait(10 * SLACK) == 0
        assert "the drain time is over" in g.said()


def test_a_second_signal_stops_at_once(gateway, upstream):
    silent = upstream(lambda c: (c.request(), time.sleep(60)))
    g = gateway(silent, workers=1)
    workers = g.pids()
    with g.connect() as s:
        s.sendall(GET)
        wait_until(lambda: silent.seen)
        g.signal(signal.SIGINT)
        wait_until(lambda: "draining" in g.said())
        assert g.p.poll() is None
        g.signal(signal.SIGTERM)
        assert g.p.wait(5 * SLACK) == 1
    wait_until(lambda: not any(map(alive, workers)))


@pytest.mark.parametrize("which", ["listeners", "admin"])
def test_a_taken_port_is_named(tmp_path, which):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = {"listeners": free_port(), "admin": free_port(), which: taken.getsockname()[1]}
        file = tmp_path / "x.yaml"
        file.write_text(
            f'listeners: [{{address: "127.0.0.1:{port["listeners"]}"}}]\nroutes: [{{respond: {{body: x}}}}]\n'
            f'admin: {{address: "127.0.0.1:{port["admin"]}"}}\n'
        )
        done = run_failing(file)
    assert done.returncode == 1
    assert (
        f"cannot listen on 127.0.0.1:{port[which]}: Address already in use (another process listens there; stop it" in done.stderr
    )
    assert ("admin.address: " in done.stderr) == (which == "admin")


@pytest.mark.parametrize(
    "log, status, why", [("no/such/log", 2, "there is no directory"), ("/proc/gwcore.log", 1, "cannot open access_log.path")]
)
def test_a_log_that_cannot_be_opened_is_named(tmp_path, log, status, why):
    file = tmp_path / "x.yaml"
    file.write_text(
        f'listeners: [{{address: "127.0.0.1:{free_port()}"}}]\nroutes: [{{respond: {{body: x}}}}]\n'
        f'admin: {{address: "127.0.0.1:{free_port()}"}}\naccess_log: {{path: {tmp_path / log}}}\n'
    )
    done = run_failing(file)
    assert done.returncode == status and why in done.stderr


def test_a_unix_listener_replaces_what_a_dead_process_left(gateway, tmp_path):
    path = tmp_path / "gw.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    g = gateway(workers=2)
    g.replace("listeners: [", f'listeners: [{{address: "unix:{path}"}}, ')
    assert g.reload()["ok"]

    def answers() -> bool:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(5)
            s.connect(str(path))
            s.sendall(GET)
            return read_reply(s).status == 200

    wait_until(answers)
    assert g.stop() == 0
    assert not path.exists()


def test_an_ipv6_listener(gateway):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 here")
    assert gateway(workers=1, host="::1").answers()


def test_logs_are_reopened(gateway, tmp_path):
    g = gateway(workers=1)

    def request() -> None:
        with g.connect() as s:
            s.sendall(GET)
            read_reply(s)

    request()
    wait_until(lambda: g.log.read_bytes().count(b"\n") == 1)
    g.log.rename(tmp_path / "old.log")
    g.signal(signal.SIGUSR1)
    wait_until(g.log.exists)
    time.sleep(0.1)
    request()
    wait_until(lambda: g.log.read_bytes().count(b"\n") == 1)
    assert (tmp_path / "old.log").read_bytes().count(b"\n") == 1


def test_metrics_and_status_tell_the_same(gateway):
    g = gateway(workers=1)
    with g.connect() as s:
        for _ in range(5):
            s.sendall(GET)
            read_reply(s)
    done = 'gwcore_requests_total{route="all",status="2xx"} 5.0'  # counted a moment after the last byte was sent
    text = wait_until(lambda: done in (text := g.get("/metrics").decode()) and text)
    assert 'gwcore_upstream_reuses_total{upstream="be"} 4.0' in text
    assert 'gwcore_request_seconds_bucket{le="+Inf",route="all"} 5.0' in text
    u = g.status()["upstreams"]["be"]
    assert u["reuse_ratio"] == 0.8 and u["requests_per_connection"] == 5.0


def test_an_idle_gateway_sleeps(gateway):
    """Nobody wakes up but the supervisor's watch, once a second."""
    g = gateway()
    tree = [g.p.pid, *children(g.p.pid), *g.pids()]
    time.sleep(1.2)  # the admin connections of this test are closed by then
    before = {pid: switches(pid) for pid in tree}
    time.sleep(3)
    woken = {pid: switches(pid) - before[pid] for pid in tree}
    assert len(tree) == 4 and sum(woken.values()) <= 8, woken


def test_every_descriptor_that_may_be_had_is_used(gateway):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    g = gateway(workers=1)
    for pid in [g.p.pid, *g.pids()]:
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)


def test_descriptors_near_their_limit_pause_accepting_and_recover(tmp_path, backend):
    """Clients up to the limit: idle ones are shed first, then accepting pauses with an alarm, and goes on by itself."""
    port, admin = free_port(), free_port()
    file = tmp_path / "fd.yaml"
    file.write_text(
        f'workers: 1\nlisteners: [{{address: "127.0.0.1:{port}"}}]\nadmin: {{address: "127.0.0.1:{admin}"}}\n'
        f'access_log: {{path: "off"}}\nlimits: {{connections: 100000}}\n'
        f'upstreams: {{be: {{endpoints: ["{backend.address}"]}}}}\nroutes: [{{upstream: be}}]\n'
    )
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); "
        "from gwcore.supervisor import run; sys.exit(run(sys.argv[1]))"
    )
    messages = tmp_path / "err"
    with open(messages, "w") as out:
        p = subprocess.Popen([sys.executable, "-c", script, str(file)], stderr=out)

    def answers() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as s:
                s.sendall(GET)
                return read_reply(s).status == 200
        except (OSError, EOFError):
            return False

    try:
        wait_until(answers, 20)
        busy = []

        def paused() -> bool:
            s = socket.create_connection(("127.0.0.1", port), 5)
            s.sendall(b"GET / HTTP/1.1\r\n")  # a head that never ends: not idle, so it cannot be shed once it was read
            busy.append(s)
            return "paused accepting" in messages.read_text()

        wait_until(paused, 10)
        for s in busy:
            s.close()
        wait_until(answers, 10)
    finally:
        p.terminate()
        assert p.wait(40) == 0


@pytest.mark.parametrize("names", [1, 4], ids=["idle clients", "idle upstreams"])
def test_out_of_descriptors_nobody_waits_for_what_idles(tmp_path, names):
    """Accepting is paused while all descriptors are busy. When they idle, by kept clients or in the pools of other upstreams, they are had
    at once: whoever waited was served only when idle connections had expired."""

    def slow(c):
        while True:
            c.request()
            time.sleep(0.2)
            c.send(ok())

    up = Upstream(slow)
    port = free_port()
    file = tmp_path / "fd.yaml"
    pools = ", ".join(f'u{i}: {{endpoints: ["{up.address}"]}}' for i in range(names))
    routes = ", ".join(f"{{match: {{prefix: /u{i}}}, upstream: u{i}}}" for i in range(names))
    file.write_text(
        f'workers: 1\nlisteners: [{{address: "127.0.0.1:{port}"}}]\naccess_log: {{path: "off"}}\noverload: off\n'
        f"limits: {{connections: 100000}}\ntimeouts: {{keepalive: 10m, drain: 1s}}\nupstreams: {{{pools}}}\nroutes: [{routes}]\n"
    )
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); "
        "from gwcore.supervisor import run; sys.exit(run(sys.argv[1]))"
    )
    p = subprocess.Popen([sys.executable, "-c", script, str(file)], stderr=subprocess.DEVNULL)

    def up_now() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        return False

    def ask(wave: int) -> socket.socket:
        s = socket.create_connection(("127.0.0.1", port), 5)
        s.sendall(b"GET /u%d HTTP/1.1\r\nHost: a\r\n\r\n" % (wave % names))
        return s

    try:
        wait_until(up_now, 20)
        for wave in range(8 if names > 1 else 1):
            clients = [ask(wave) for _ in range(60 if names > 1 else 300)]
            for s in clients:
                try:
                    reply = read_reply(s, timeout=10)
                except ConnectionResetError:  # its request came so late that it was taken for an idle one
                    with ask(wave) as again:
                        reply = read_reply(again, timeout=10)
                assert reply.status == 200
            for s in clients:
                s.close()
    finally:
        p.terminate()
        assert p.wait(40) == 0
        up.close()
