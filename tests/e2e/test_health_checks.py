"""What workers make of the verdicts of active checks, and the whole way from a sick endpoint to a request that does not meet it."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.process import alive, kill
from tests.support import Conversation, PlaneThread, Upstream, get, ok, plane, read_reply, wait_until


class Sick(Upstream):
    """Names itself in each answer. `ill` is the answer to checks while it is set; "" says nothing at all. `checks` and `requests` count."""

    def __init__(self, name: str):
        self.name, self.checks, self.requests = name, 0, 0
        self.ill: bytes | None = None
        self.broken = False  # requests get a 503
        super().__init__(self._answer)

    def _answer(self, c: Conversation) -> None:
        while True:
            head, _ = c.request()
            if b"gwcore-health" not in head:
                self.requests += 1
                c.send(b"HTTP/1.1 503 Broken\r\nContent-Length: 0\r\n\r\n" if self.broken else ok(self.name.encode()))
                continue
            self.checks += 1
            c.send(ok(b"well") if self.ill is None else self.ill)


@pytest.fixture
def sick():
    made: list[Sick] = []

    def make(n: int) -> list[Sick]:
        made.extend(Sick("abcdef"[i]) for i in range(n))
        return made

    yield make
    for u in made:
        u.close()


def shares(port: int, n: int) -> Counter[str]:
    """Who answered n requests; statuses other than 200 by their number."""
    out: Counter[str] = Counter()
    with socket.create_connection(("127.0.0.1", port), 5) as s:
        for _ in range(n):
            s.sendall(get())
            r = read_reply(s)
            out[r.body.decode() if r.status == 200 else str(r.status)] += 1
    return out


def config(made: list[Sick], more: str = "") -> str:
    return f"upstreams: {{be: {{endpoints: [{', '.join(repr(u.address) for u in made)}], balance: round_robin{more}}}}}\nroutes: [{{name: all, upstream: be}}]\n"


def tell(p: PlaneThread, made: list[Sick], *states: str, since_ms: int = 0, drained: bool = False) -> None:
    """What the supervisor would write."""
    for u, state in zip(made, states, strict=True):
        p.segment.set_health(p.segment.slot("endpoint", f"be|{u.address}"), state, since_ms, drained)
    p.segment.set_down(p.segment.slot("upstream", "be"), states.count("down"))


@pytest.mark.parametrize("balance", ["round_robin", "least_request", "ewma", "hash", "random"])
def test_one_that_is_down_gets_nothing(sick, balance):
    made = sick(3)
    with plane(config(made).replace("round_robin", balance)) as p:
        tell(p, made, "down", "up", "unknown")
        assert "a" not in shares(p.port, 60)
        tell(p, made, "up", "up", "unknown")
        if balance != "hash":
            assert shares(p.port, 60)["a"]


@pytest.mark.parametrize(
    ("states", "panic", "seen"),
    [
        (("down", "down", "up", "up"), "", "cd"),  # half is not fewer than half
        (("down", "down", "down", "up"), "", "abcd"),
        (("down", "down", "down", "up"), "0", "d"),
        (("down", "down", "down", "down"), "", "abcd"),
        (("down", "down", "down", "down"), "0", "abcd"),  # never the last one
        (("down", "up", "up", "up"), "1", "abcd"),
    ],
)
def test_panic(sick, states, panic, seen):
    made = sick(4)
    with plane(config(made, f", health: {{panic: {panic}}}" if panic else "")) as p:
        tell(p, made, *states)
        assert "".join(sorted(shares(p.port, 40))) == seen


def test_the_only_endpoint_is_asked_though_it_is_down(sick):
    made = sick(1)
    with plane(config(made)) as p:
        tell(p, made, "down")
        assert shares(p.port, 5) == {"a": 5}


def test_one_that_is_back_begins_with_a_tenth(sick):
    made = sick(2)
    with plane(config(made, ", slow_start: 1h")) as p:
        now = time.monotonic_ns() // 1_000_000
        tell(p, made, "back", "up", since_ms=now + 50)  # the supervisor's clock may be ahead
        assert shares(p.port, 110)["a"] == 10
        tell(p, made, "back", "up", since_ms=now - 1_800_000)
        assert 30 <= shares(p.port, 110)["a"] <= 45  # 55 of 155
        tell(p, made, "back", "up", since_ms=now - 3_600_000)
        assert 50 <= shares(p.port, 110)["a"] <= 60


def test_a_drained_endpoint_gets_nothing_new_not_even_in_panic(sick):
    made = sick(2)
    with plane(config(made)) as p:
        tell(p, made[:1], "up", drained=True)
        assert shares(p.port, 20) == {"b": 20}
        p.segment.set_health(p.segment.slot("endpoint", f"be|{made[1].address}"), "down")
        p.segment.set_down(p.segment.slot("upstream", "be"), 1)
        assert shares(p.port, 20) == {"b": 20}
        tell(p, made, "up", "up", drained=True)
        assert shares(p.port, 2) == {"503": 2}
        wait_until(lambda: p.reasons().get("no_endpoint") == 2)  # counted when the answer is out
        tell(p, made, "up", "up")
        assert set(shares(p.port, 20)) == {"a", "b"}


# ---- whole gateways

BAD = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"
WRONG = ok(b"migrating")
CHECKS = "health: {path: /healthz, body: well, interval: 50ms, timeout: 150ms}, slow_start: off, balance: round_robin"


@pytest.fixture
def checked(sick, gateway) -> Callable[..., tuple[Any, list[Sick]]]:
    def make(n: int = 3, workers: int = 1) -> tuple[Any, list[Sick]]:
        made = sick(n)
        g = gateway(upstream=made[0], workers=workers)
        g.replace(f'endpoints: ["{made[0].address}"]', f"endpoints: [{', '.join(repr(u.address) for u in made)}], {CHECKS}")
        assert g.reload()["ok"]
        return g, made

    return make


def state(g: Any, u: Sick) -> str:
    e = g.status()["endpoints"]["be"][u.address]
    return f"{e['state']}: {e['reason']}"


@pytest.mark.parametrize(
    ("ill", "reason"), [(BAD, "status 500"), (WRONG, "no 'well' in the body of status 200"), (b"", "answer timeout")]
)
def test_a_sick_endpoint_gets_no_requests_until_it_is_well(checked, ill, reason):
    g, made = checked()
    wait_until(lambda: all(state(g, u) == "up: checks pass" for u in made))
    made[0].ill = ill
    told = wait_until(lambda: state(g, made[0]).startswith("down") and state(g, made[0]))
    assert "checks failed, last: " + reason in told
    assert set(shares(g.port, 30)) == {"b", "c"}
    assert f'gwcore_endpoint_up{{endpoint="{made[0].address}",upstream="be"}} 0.0' in g.get("/metrics").decode()
    made[0].ill = None
    wait_until(lambda: state(g, made[0]).startswith("up"))
    assert set(shares(g.port, 30)) == {"a", "b", "c"}
    told = [json.loads(line) for line in g.said().splitlines() if '"event": "health"' in line]
    assert [(e["to"], e["reason"]) for e in told] == [("down", "checks_failed"), ("up", "checks_passed")]
    assert [e["event"] for e in json.loads(g.get("/status/events"))["events"]].count("health") == 2


def test_a_dead_endpoint_is_down_and_says_refused(checked):
    g, made = checked()
    made[1].close()
    wait_until(lambda: state(g, made[1]).endswith("connect refused") and state(g, made[1]).startswith("down"))
    assert shares(g.port, 30) == {"a": 15, "c": 15}


def test_checks_come_once_for_all_workers(checked):
    g, made = checked(n=2, workers=3)
    wait_until(lambda: made[0].checks > 2)
    began, before = time.monotonic(), made[0].checks
    time.sleep(0.6)
    most = (time.monotonic() - began) / (0.05 * 0.8) + 1
    assert made[0].checks - before <= most
    assert g.stop() == 0


def test_a_verdict_outlives_a_worker_a_reload_and_the_program(checked):
    g, made = checked()
    made[0].ill = BAD
    wait_until(lambda: state(g, made[0]).startswith("down"))
    since = g.status()["endpoints"]["be"][made[0].address]["since"]

    (pid,) = g.pids()
    kill(pid)
    wait_until(lambda: g.pids() != [pid] and g.status()["workers"][0]["up"])
    before = made[0].requests
    shares(g.port, 30)
    assert made[0].requests == before

    g.replace("interval: 50ms", "interval: 60ms")
    assert g.reload()["ok"]
    shares(g.port, 30)
    assert made[0].requests == before

    old = g.pids()
    g.signal(signal.SIGUSR2)

    def upgraded() -> bool:
        try:
            s = g.status()
        except OSError:
            return False
        return s["ready"] and s["upgrades"] == 1 and all(w["up"] for w in s["workers"])

    wait_until(upgraded, 20)
    assert g.status()["endpoints"]["be"][made[0].address]["since"] == since
    wait_until(lambda: not any(map(alive, old)))
    assert set(shares(g.port, 30)) == {"b", "c"}
    assert made[0].requests == before
    checks = made[0].checks
    wait_until(lambda: made[0].checks > checks)
    assert g.stop() == 0


def test_a_removed_endpoint_is_asked_no_more(checked):
    g, made = checked()
    wait_until(lambda: made[2].checks > 1)
    g.replace(f", '{made[2].address}'", "")
    assert g.reload()["ok"]
    time.sleep(0.2)  # one may be under way
    before, others = made[2].checks, made[0].checks
    wait_until(lambda: made[0].checks > others + 3)
    assert made[2].checks == before
    assert made[2].address not in g.status()["endpoints"]["be"]


def test_drain_by_the_admin_interface(checked):
    g, made = checked()
    g.get(f"/endpoints/drain?upstream=be&endpoint={made[0].address}", "POST")
    assert state(g, made[0]) == "draining: taken out by the admin interface"
    assert set(shares(g.port, 30)) == {"b", "c"}
    g.get(f"/endpoints/undrain?upstream=be&endpoint={made[0].address}", "POST")
    assert set(shares(g.port, 30)) == {"a", "b", "c"}


def test_a_passing_check_lets_an_open_breaker_try_at_once(checked):
    """Every answer is bad for a while: the upstream's breaker opens and would wait for an hour, but for the checks."""
    g, made = checked()
    g.replace("slow_start: off", "slow_start: off, outlier: off, breaker: {open: 1h, open_max: 1h}")
    assert g.reload()["ok"]
    for u in made:
        u.ill, u.broken = BAD, True

    def breaker() -> str:
        shares(g.port, 5)
        return str(g.status()["upstreams"]["be"]["breaker"]["state"])

    wait_until(lambda: breaker() == "open", 10, "the breaker's opening")
    wait_until(lambda: all(state(g, u).startswith("down") for u in made))
    assert all(state(g, u).endswith("panic, so it gets requests all the same") for u in made)
    for u in made:
        u.ill, u.broken = None, False
    wait_until(lambda: breaker() == "closed", 10, "the breaker's closing")
