"""A busy worker gets help with its queue, and nothing is lost by that."""

from __future__ import annotations

import contextlib
import threading

import pytest

from gwcore.balance import BUSY
from tests.e2e.process import GET, Process, kill
from tests.support import SLACK, read_reply, wait_until

OWN = b"OPTIONS /x HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"  # answered by the gateway itself


class Heavy:
    """Pipelines without a pause on one connection, so that its worker is busy."""

    def __init__(self, g: Process):
        before = [w["accepted"] for w in g.status()["workers"]]
        self.s, self.stopped = g.connect(), threading.Event()
        self.worker = wait_until(lambda: [i for i, w in enumerate(g.status()["workers"]) if w["accepted"] > before[i]])[0]
        self.threads = [threading.Thread(target=f) for f in (self.write, self.read)]
        for t in self.threads:
            t.start()

    def write(self) -> None:
        with contextlib.suppress(OSError):
            while not self.stopped.is_set():
                self.s.sendall(OWN * 64)

    def read(self) -> None:
        with contextlib.suppress(OSError):
            while self.s.recv(1 << 20):
                pass

    def stop(self) -> None:
        self.stopped.set()
        with contextlib.suppress(OSError):
            self.s.shutdown(2)
        self.s.close()
        for t in self.threads:
            t.join()


def helped(g: Process) -> int:
    return sum(w["accepted_for_others"] for w in g.status()["workers"])


def ask(g: Process) -> None:
    with g.connect() as s:
        s.sendall(GET)
        assert read_reply(s).status == 200


@pytest.mark.parametrize("victim", ["lender", "helper"])
def test_a_busy_worker_is_helped_and_no_connection_is_lost_when_one_dies(gateway, victim):
    g = gateway(workers=2, extra="accept_balance: on\nlimits: {requests_per_connection: 100000000}\n")
    heavy = Heavy(g)

    def is_helped() -> bool:
        for _ in range(20):
            ask(g)
        return helped(g) > 0

    wait_until(is_helped, 10 * SLACK, f"help for a worker that takes more than {BUSY:.0%} of a CPU")
    assert g.status()["workers"][heavy.worker]["accepted_for_others"] == 0
    dead = heavy.worker if victim == "lender" else 1 - heavy.worker
    pid = g.pids()[dead]
    if victim == "lender":
        heavy.stop()
    kill(pid)
    for _ in range(200):  # a queue outlives its worker; whoever comes next, or helps, empties it
        ask(g)
    wait_until(lambda: g.status()["workers"][dead]["up"] and g.pids()[dead] != pid, 5)
    heavy.stop()
    assert g.reload()["ok"]
    for _ in range(100):
        ask(g)
    wait_until(lambda: sum(w["connections"] for w in g.status()["workers"]) == 0)
    assert b"gwcore_connections_accepted_for_others_total" in g.get("/metrics")
    assert g.stop() == 0


def test_without_balance_everybody_accepts_alone(gateway):
    g = gateway(workers=2, extra="accept_balance: off\nlimits: {requests_per_connection: 100000000}\n")
    heavy = Heavy(g)
    for _ in range(600):
        ask(g)
    assert helped(g) == 0
    heavy.stop()
