"""Breakers of a gateway as its users run it: over several workers, through the death of one and a reload, and by hand."""

from __future__ import annotations

import json
import threading
import time
import urllib.error

import pytest

from tests.e2e.process import GET, kill
from tests.support import read_reply, wait_until

NO = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"
YES = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"


class Moody:
    """An upstream's handler that answers what `mood` says."""

    def __init__(self) -> None:
        self.mood, self.seen, self.lock = YES, 0, threading.Lock()

    def __call__(self, c) -> None:
        while True:
            c.request()
            with self.lock:
                self.seen += 1
            c.send(self.mood)


def ask(g):
    with g.connect() as s:
        s.sendall(GET)
        return read_reply(s)


def breaker(g) -> dict:
    return g.status()["upstreams"]["be"]["breaker"]


def fail_until_open(g) -> None:
    def opened() -> bool:
        for _ in range(10):
            ask(g)
        return breaker(g)["state"] == "open"

    wait_until(opened, 10)


def events(g) -> list[dict]:
    return json.loads(g.get("/status/events"))["events"]


def test_an_open_breaker_outlives_workers_and_reloads_and_recovers(gateway, upstream):
    moody = Moody()
    g = gateway(upstream(moody))
    g.replace('"]}}\n', '"], breaker: {open: 30s, open_max: 30s}}}\n')
    g.reload()
    moody.mood = NO
    fail_until_open(g)
    before = moody.seen
    reply = ask(g)
    problem = json.loads(reply.body)
    assert reply.status == 503 and problem["reason"] == "breaker_open" and "upstream be: open by failures" in problem["detail"]
    assert int(reply.get("Retry-After") or 0) >= 1
    for pid in g.pids():
        kill(pid)
    wait_until(lambda: all(w["up"] and w["restarts"] for w in g.status()["workers"]), 10)
    g.reload()
    assert [json.loads(ask(g).body)["reason"] for _ in range(10)] == ["breaker_open"] * 10
    assert moody.seen == before
    moody.mood = YES
    assert json.loads(g.get("/breakers?upstream=be&state=closed&for=5s", "POST"))["ok"]
    wait_until(lambda: ask(g).status == 200, 10)
    wait_until(lambda: sum(w["permits"] for w in g.status()["workers"]) == 0 and breaker(g)["in_flight"] == 0)
    told = [(e.get("to"), e.get("reason")) for e in events(g)]
    assert ("open", "failures") in told


def test_an_operator_opens_one_for_a_while(gateway, upstream):
    g = gateway(upstream(Moody()))
    g.get("/breakers?upstream=be&state=open&for=1s", "POST")
    begun = time.monotonic()
    reply = ask(g)
    assert reply.status == 503 and "forced open by an operator" in json.loads(reply.body)["detail"]
    wait_until(lambda: ask(g).status == 200, 10)
    assert time.monotonic() - begun > 0.9
    assert any(e["event"] == "breaker_forced" for e in events(g))
    for bad in ("", "?upstream=be", "?upstream=be&state=ajar", "?upstream=nobody&state=open", "?upstream=be&state=open&for=soon"):
        with pytest.raises(urllib.error.HTTPError, match="404|422"):
            g.get(f"/breakers{bad}", "POST")
