"""Workers that die: replaced at once, on the same sockets, with the same lane."""

from __future__ import annotations

import os
import signal
import threading
import time

from tests.e2e.process import GET, Clients, alive, children, kill
from tests.support import SLACK, ok, read_reply, wait_until


def replaced(g, number: int, pid: int) -> bool:
    w = g.status()["workers"][number]
    return w["up"] and w["pid"] != pid


def test_a_killed_worker_is_replaced_and_loses_only_its_own(gateway):
    g = gateway()
    clients = Clients(g.port)
    clients.warm()
    victim = g.pids()[0]
    killed = time.monotonic()
    kill(victim)
    wait_until(lambda: replaced(g, 0, victim), 5)
    assert time.monotonic() - killed < 0.3 * SLACK
    clients.more(500)
    clients.stop()
    assert clients.lost <= clients.n and set(clients.statuses) == {200}
    assert g.status()["workers"][0]["restarts"] == 1
    assert f"process {victim} was ended by SIGKILL" in g.said()
    wait_until(lambda: g.status()["upstreams"]["be"]["in_use"] == 0)


def test_connections_queued_at_a_dead_worker_are_served_by_its_successor(gateway):
    g = gateway(workers=1)
    victim = g.pids()[0]
    os.kill(victim, signal.SIGSTOP)
    queued = [g.connect() for _ in range(20)]
    for s in queued:
        s.sendall(GET)
    kill(victim)
    assert [read_reply(s).status for s in queued] == [200] * 20
    for s in queued:
        s.close()
    assert g.status()["workers"][0]["restarts"] == 1


def test_counters_never_go_back_and_gauges_do(gateway):
    g = gateway(workers=1)
    with g.connect() as s:
        s.sendall(GET)
        read_reply(s)
        victim = g.pids()[0]
        wait_until(lambda: g.status()["workers"][0]["requests"] == 1)  # counted after the answer has left
        before = g.status()["workers"][0]
        kill(victim)
        wait_until(lambda: replaced(g, 0, victim), 5)
    wait_until(lambda: g.status()["workers"][0]["connections"] == 0)
    assert g.status()["workers"][0]["requests"] == before["requests"] == 1


def test_a_worker_that_keeps_dying_is_replaced_ever_slower(gateway):
    g = gateway(workers=1)
    for _ in range(3):
        victim = g.pids()[0]
        kill(victim)
        wait_until(lambda victim=victim: replaced(g, 0, victim), 5)
    said = g.said()
    assert [x.split("; replacing it ")[1] for x in said.splitlines() if "replacing" in x] == ["at once", "in 0.1s", "in 0.2s"]
    assert g.answers()


def test_a_terminated_worker_drains_and_is_replaced(gateway):
    g = gateway(workers=1)
    victim = g.pids()[0]
    os.kill(victim, signal.SIGTERM)
    wait_until(lambda: replaced(g, 0, victim), 5)
    assert g.answers()


def test_without_a_supervisor_workers_drain_and_end(gateway):
    g = gateway()
    clients = Clients(g.port)
    clients.warm()
    tree = [*children(g.p.pid), *g.pids()]
    kill(g.p.pid)
    g.p.wait()
    clients.stopping = True
    clients.stop()
    assert clients.lost == 0 and set(clients.statuses) == {200}
    wait_until(lambda: not any(map(alive, tree)))
    assert not g.answers()


def test_without_a_zygote_the_supervisor_begins_anew_in_place(gateway):
    g = gateway()
    clients = Clients(g.port)
    clients.warm()
    time.sleep(2)  # sooner it would be taken for a fault of the installation
    old = g.pids()
    kill(children(g.p.pid)[0])
    wait_until(lambda: g.ready() and not set(g.pids()) & set(old), 20)
    assert g.status()["pid"] == g.p.pid and "starting anew in place" in g.said()
    clients.more()
    clients.stop()
    assert clients.lost == 0 and set(clients.statuses) == {200}
    assert g.stop() == 0


def test_queues_are_divided_by_the_workers_that_run(gateway, upstream):
    """`--workers` overrides the file, at the start and after a reload."""
    go = threading.Event()

    def serve(c):
        while True:
            c.request()
            go.wait(20)
            c.send(ok())

    g = gateway(upstream(serve), workers=8, args=("--workers", "1"))
    g.replace("]}}", "], pool: {max_connections: 1, queue: {size: 8, timeout: 20s}}}}")
    g.reload()
    clients = [g.connect() for _ in range(10)]
    for s in clients:
        s.sendall(GET)
    wait_until(lambda: g.status()["upstreams"]["be"]["queue_full"] == 1)
    assert g.status()["upstreams"]["be"]["waiting"] == 8
    go.set()
    assert sorted(read_reply(s).status for s in clients) == [200] * 9 + [503]
    for s in clients:
        s.close()
