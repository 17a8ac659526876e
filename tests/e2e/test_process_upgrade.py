"""SIGUSR2: the supervisor becomes the installed code. Old workers serve until the new ones do, then drain."""

from __future__ import annotations

import signal
import threading
import time

from tests.e2e.process import GET, Clients, alive
from tests.support import SLACK, ok, read_all, read_reply, wait_until


def upgraded(g, n: int = 1) -> bool:
    try:
        s = g.status()
    except OSError:
        return False
    return s["ready"] and s["upgrades"] == n and all(w["up"] for w in s["workers"])


def test_an_upgrade_keeps_sockets_and_pid_and_loses_nothing(gateway):
    g = gateway()
    clients = Clients(g.port, 8)
    clients.warm()
    for n in (1, 2):
        old = g.pids()
        g.signal(signal.SIGUSR2)
        wait_until(lambda n=n: upgraded(g, n), 20)
        assert not set(old) & set(g.pids()) and g.status()["pid"] == g.p.pid
        clients.more()
        wait_until(lambda old=old: not any(map(alive, old)))
        assert g.status()["workers_draining"] == 0
    clients.stop()
    assert clients.lost == 0 and set(clients.statuses) == {200}
    assert g.stop() == 0


def test_new_connections_are_answered_all_the_time(gateway):
    """No gap: the longest wait of a new connection is far below what a start takes."""
    g = gateway()
    waits: list[float] = []
    over = threading.Event()

    def connect() -> None:
        while not over.is_set():
            began = time.monotonic()
            with g.connect() as s:
                s.sendall(GET)
                assert read_reply(s).status == 200
            waits.append(time.monotonic() - began)

    t = threading.Thread(target=connect)
    t.start()
    g.signal(signal.SIGUSR2)
    try:
        wait_until(lambda: upgraded(g), 20)
    finally:
        over.set()
        t.join(10)
    assert max(waits) < 0.2 * SLACK, sorted(waits)[-5:]


def test_a_bad_configuration_refuses_the_upgrade(gateway):
    g = gateway(workers=1)
    old = g.pids()
    g.file.write_text(g.file.read_text() + "limit: {}\n")
    g.signal(signal.SIGUSR2)
    wait_until(lambda: "upgrade refused, nothing changed" in g.said(), 20)
    assert "did you mean limits" in g.said()
    assert g.pids() == old and g.answers() and g.status()["upgrades"] == 0


def test_a_long_request_outlives_the_upgrade_and_a_stop_waits_for_it(gateway, upstream):
    begun, go_on = threading.Event(), threading.Event()

    def handler(c):
        head, _ = c.request()
        if b"/x" in head:
            begun.set()
            go_on.wait(20)
        c.send(ok(b"late"))

    g = gateway(upstream(handler), workers=1)
    with g.connect() as s:
        s.sendall(GET)
        assert begun.wait(5 * SLACK)
        g.signal(signal.SIGUSR2)
        wait_until(lambda: upgraded(g), 20)
        assert g.status()["workers_draining"] == 1
        g.signal(signal.SIGTERM)
        time.sleep(0.5)
        assert g.p.poll() is None, "it waits for the old generation too"
        go_on.set()
        assert read_reply(s).body == b"late"
    assert g.p.wait(10 * SLACK) == 0


def test_signals_during_an_upgrade_wait(gateway):
    """Between the old program and the new one there are no handlers: a signal must wait instead of ending the process."""
    g = gateway(workers=1)
    g.signal(signal.SIGUSR2)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline and not upgraded(g):
        g.signal(signal.SIGUSR1)
        time.sleep(0.001)
    wait_until(lambda: upgraded(g), 20)
    assert g.p.poll() is None and g.answers()


def test_the_number_of_workers_changes_with_an_upgrade(gateway):
    g = gateway(workers=2)
    clients = Clients(g.port, 8)
    clients.warm()
    for n, workers in ((1, 3), (2, 1)):
        g.workers = workers
        g.write()
        g.signal(signal.SIGUSR2)
        wait_until(lambda n=n: upgraded(g, n), 20)
        assert len(g.pids()) == workers
        clients.more()
    clients.stop()
    assert clients.lost == 0 and set(clients.statuses) == {200}


def test_a_generation_before_has_timeouts_drain_to_end(gateway, upstream):
    begun, go_on = threading.Event(), threading.Event()

    def handler(c):
        c.request()
        begun.set()
        go_on.wait(30)

    g = gateway(upstream(handler), workers=1, extra="timeouts: {drain: 1s}\n")
    old = g.pids()
    with g.connect() as s:
        s.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert begun.wait(5 * SLACK)
        g.signal(signal.SIGUSR2)
        wait_until(lambda: upgraded(g), 20)
        wait_until(lambda: not any(map(alive, old)), 5)
        assert read_all(s) == b""
    go_on.set()


def test_a_tunnel_outlives_an_upgrade_and_not_a_stop(gateway, upstream):
    def handler(c):
        if b"Upgrade" not in c.head():
            c.send(ok())
            return
        c.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        while data := c.s.recv(1024):
            c.send(data)

    g = gateway(upstream(handler), workers=1, extra="timeouts: {drain: 500ms}\n")
    old = g.pids()
    with g.connect() as s:
        s.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert read_reply(s).status == 101
        g.signal(signal.SIGUSR2)
        wait_until(lambda: upgraded(g), 20)
        time.sleep(1.0)  # twice timeouts.drain
        s.sendall(b"still here")
        assert s.recv(100) == b"still here"
        assert all(map(alive, old)) and g.status()["workers_draining"] == 1
        g.signal(signal.SIGTERM)
        assert read_all(s) == b""
    assert g.p.wait(10 * SLACK) == 0
