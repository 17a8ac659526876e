"""Reloads: all workers take the new plan or none does, and no client notices."""

from __future__ import annotations

import os
import signal
import socket
import threading

from tests.e2e.process import GET, Clients, kill
from tests.support import free_port, read_reply, wait_until


def test_reloads_close_no_connection_and_lose_nothing(gateway):
    g = gateway()
    clients = Clients(g.port)
    clients.warm()
    with g.connect() as idle:
        idle.sendall(GET)
        read_reply(idle)
        for i in range(20):
            g.write(f"limits: {{header_count: {60 + i}}}\n")
            assert g.reload()["ok"]
        assert g.status()["plan"] == 21
        clients.more()
        clients.stop()
        idle.sendall(GET)
        assert read_reply(idle).status == 200, "an idle connection outlives reloads too"
    assert clients.lost == 0 and clients.connects == clients.n and set(clients.statuses) == {200}
    assert g.status()["upstreams"]["be"]["opens"] <= clients.n + 1, "no pool was cooled"
    assert [w["restarts"] for w in g.status()["workers"]] == [0, 0]


def test_a_bad_reload_changes_nothing_and_says_why(gateway):
    g = gateway(workers=1)
    g.file.write_text(g.file.read_text() + "limit: {}\n")
    g.signal(signal.SIGHUP)
    wait_until(lambda: "did you mean limits" in g.said())
    status = g.status()
    assert status["plan"] == 1 and not status["last_reload"]["ok"]
    assert g.answers()
    assert 'gwcore_reloads_total{result="refused"} 1.0' in g.get("/metrics").decode()


def test_a_listener_that_cannot_be_had_refuses_the_reload(gateway):
    g = gateway(workers=1)
    other = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        g.replace("listeners: [", f'listeners: [{{address: "127.0.0.1:{other}"}}, {{address: "127.0.0.1:{port}"}}, ')
        result = g.reload()
    assert not result["ok"] and f"cannot listen on 127.0.0.1:{port}" in result["errors"][0]
    assert g.answers() and not g.answers(other)
    socket.create_server(("127.0.0.1", other)).close()  # what was opened for it is closed again


def test_a_log_that_cannot_be_had_refuses_the_reload(gateway, tmp_path):
    g = gateway(workers=1)
    was = str(g.log)
    for bad, why in (
        (str(tmp_path / "no" / "log"), "there is no directory"),
        ("/proc/gwcore.log", "cannot open access_log.path"),
    ):
        g.replace(was, bad)
        result = g.reload()
        assert not result["ok"] and why in result["errors"][0]
        was = bad
    g.replace(was, str(tmp_path / "new.log"))
    assert g.reload()["ok"] and g.answers()
    wait_until(lambda: (tmp_path / "new.log").read_bytes().count(b"\n") == 1)


def test_listeners_come_and_go(gateway):
    g = gateway()
    other = free_port()
    text = g.file.read_text()
    g.replace("listeners: [", f'listeners: [{{address: "127.0.0.1:{other}"}}, ')
    assert g.reload()["ok"]
    wait_until(lambda: g.answers(other))
    with socket.create_connection(("127.0.0.1", other)) as kept:
        kept.sendall(GET)
        read_reply(kept)
        g.file.write_text(text)
        assert g.reload()["ok"]
        wait_until(lambda: not g.answers(other), 10)
        kept.sendall(GET)
        assert read_reply(kept).status == 200, "its connections live on"
    assert g.answers()


def test_admin_moves(gateway):
    g = gateway(workers=1)
    old, new = g.admin, free_port()
    g.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    assert g.reload()["ok"]
    g.admin = new
    wait_until(g.ready)
    with socket.socket() as s:
        wait_until(lambda: s.connect_ex(("127.0.0.1", old)) != 0)


def test_a_worker_that_dies_in_a_reload_does_not_stop_it(gateway):
    g = gateway()
    victim = g.pids()[0]
    os.kill(victim, signal.SIGSTOP)
    g.write("limits: {header_count: 60}\n")
    results: list[dict] = []
    t = threading.Thread(target=lambda: results.append(g.reload()))
    t.start()
    wait_until(lambda: not g.status()["last_reload"])  # the admin answers while a reload is under way
    kill(victim)
    t.join(20)
    assert results[0]["ok"], results
    wait_until(lambda: [(w["plan"], w["up"]) for w in g.status()["workers"]] == [(2, True)] * 2)
    assert g.answers()


def test_the_number_of_workers_waits_for_an_upgrade_and_says_so(gateway):
    g = gateway(workers=1)
    g.replace("workers: 1", "workers: 2")
    result = g.reload()
    assert result["ok"] and "workers: still 1" in result["warnings"][-1]
