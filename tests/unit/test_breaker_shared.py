"""The breaker as processes share it: lanes, folds, the lock, workers that die. The same scenarios and invariants as the private one's."""

from __future__ import annotations

import threading
from dataclasses import fields
from typing import Any

import pytest
from gwcore._speedups.breaker_probe import SharedBreaker, SharedPermit
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gwcore.breaker import BreakerConfig
from gwcore.config.resilience import Outlier, core_rules
from tests.breakers import Shared, fail, shared


def balanced(s: dict[str, Any]) -> bool:
    return s["admitted"] == s["succeeded"] + s["failed"] + s["cancelled"] + s["expired"] + s["in_flight"]


# ---- acceptance


def test_a9_a_probe_that_never_ends_frees_its_place():
    w = Shared(probes=1)
    w.run(2, 100, fail("connect"))
    w.now += 6
    probe = w.b.admit(0, w.us())
    assert probe.probe and w.b.admit(1, w.us()).refusal == "probe_limit"
    w.now += 10.1
    again = w.b.admit(1, w.us())
    assert again.probe
    assert w.b.end(probe, 0, 1000, w.us()) is False and w.snapshot()["expired"] == 1 and w.b.state == "half_open"
    assert w.b.end(again, 0, 1000, w.us()) is True and w.b.state == "closed" and balanced(w.snapshot())


def test_a10_results_of_an_older_state_are_stale():
    w = Shared().healthy()
    old = [w.b.admit(i % 4, w.us()) for i in range(5)]
    w.run(1, 100, fail("status"))
    before = w.snapshot()
    assert before["state"] == "open"
    assert all(w.b.end(p, 0, 1000, w.us()) for p in old) and not any(w.b.end(p, 0, 1000, w.us()) for p in old)
    after = w.snapshot()
    assert (
        after["stale"] == before["stale"] + 5 and after["state"] == "open" and after["failure_ratio"] == before["failure_ratio"]
    )


def test_the_endpoints_defaults_eject_within_a_second_and_a_half():
    rules = core_rules(Outlier().config(), 256.0)
    w = Shared(breaker=SharedBreaker(4, rules, 1_000_000_000))
    w.run(60, 10, lambda r: ("ok", 0.01))
    t, before = w.now, w.snapshot()["failed"]
    w.run(60, 10, fail("status"))
    assert w.moves[0][2] == "open" and w.moves[0][0] - t <= 1.5 and w.snapshot()["failed"] - before <= 60


def test_levels_follow_the_score():
    w = Shared().healthy()
    assert w.snapshot()["level"] == 0
    w.run(8, 100, lambda r: ("status" if r.random() < 0.6 else "ok", 0.01))
    assert w.snapshot()["level"] == 1
    w.run(1, 100, fail("connect"))
    assert w.snapshot()["level"] == 2
    w.run(4, 100, lambda r: ("ok", 0.01))
    assert w.snapshot()["level"] == 2  # it stays for five seconds
    w.run(30, 100, lambda r: ("ok", 0.01))
    assert w.snapshot()["level"] == 0


def test_a_level_falls_in_a_pause_too():
    for pause, level in ((1, 2), (12, 1), (17, 0), (600, 0)):
        w = Shared().healthy()
        w.run(8, 100, lambda r: ("status" if r.random() < 0.6 else "ok", 0.01))
        w.run(1, 100, fail("connect"))
        w.run(1, 100, lambda r: ("ok", 0.01))
        assert w.snapshot()["level"] == 2
        if w.snapshot()["state"] != "closed":
            w.b.force(2, w.us(), 0)
        w.now += pause
        assert w.snapshot()["level"] <= level, pause


# ---- lanes, the lock, and those who die


def test_a_tick_without_the_lock_is_done_by_the_next():
    w = Shared(workers=2).healthy(5)
    assert w.b.hold(0) and not w.b.hold(1)
    w.run(1, 100, fail("status"))
    assert w.b.state == "closed" and w.refused == 0  # nobody folds, nobody waits, all are admitted
    w.b.release(0)
    w.run(0.1, 100, fail("status"))
    assert w.b.state == "open"


def test_a_worker_that_dies_with_the_lock_leaves_it_to_the_supervisor():
    w = Shared(workers=2).healthy(5)
    out = [w.b.admit(1, w.us()) for _ in range(7)]
    assert w.b.hold(1)
    w.b.retire(1, w.us())
    assert w.b.locked == 0 and w.b.events() == []
    s = w.snapshot()
    assert (s["in_flight"], s["expired"]) == (0, 7) and balanced(s) and len(out) == 7
    w.run(1, 100, fail("status"))
    assert w.b.state == "open" and balanced(w.snapshot())


def test_the_probes_of_a_dead_worker_are_free_at_once():
    w = Shared(workers=3, probe_lease_s=1000.0)
    w.run(2, 100, fail("connect"))
    w.now += 6
    dead = [w.b.admit(2, w.us()) for _ in range(2)]
    live = w.b.admit(0, w.us())
    assert all(p.probe for p in [*dead, live]) and w.b.admit(1, w.us()).refusal == "probe_limit"
    w.b.retire(2, w.us())
    s = w.snapshot()
    assert (s["probes_in_flight"], s["expired"]) == (1, 2) and balanced(s)
    again = [w.b.admit(1, w.us()) for _ in range(2)]
    assert all(p.probe for p in again)
    for p in [live, *again]:
        assert w.b.end(p, 0, 1000, w.us())
    assert w.b.state == "closed" and balanced(w.snapshot())


def test_a_successor_goes_on_in_the_lane():
    w = Shared(workers=2).healthy(5)
    before = w.snapshot()
    w.b.admit(1, w.us())
    w.b.retire(1, w.us())
    p = w.b.admit(1, w.us())
    assert w.b.end(p, 0, 1000, w.us())
    s = w.snapshot()
    assert s["succeeded"] == before["succeeded"] + 1 and s["expired"] == 1 and balanced(s)


def test_one_worker_wins_an_edge():
    w = Shared()
    w.run(2, 100, fail("connect"))
    w.now += 6
    got = [w.b.admit(i, w.us()) for i in range(4)]
    assert [p.probe for p in got] == [True, True, True, False]
    w.look()
    assert [m[2] for m in w.moves].count("half_open") == [m[2] for m in w.moves].count("open")


def test_what_is_late_of_an_older_generation_is_no_evidence():
    w = Shared().healthy(5)
    late = [w.b.admit(3, w.us()) for _ in range(50)]
    w.b.force(1, w.us())
    w.b.force(-1, w.us())  # reset
    for p in late:
        w.b.end(p, 1, 1000, w.us(), tick=False)
    w.now += 1
    w.b.fold(w.us())
    s = w.snapshot()
    assert s["state"] == "closed" and s["stale"] >= 50 and s["calls"] == 0 and s["evidence"] == 0 and balanced(s)


def test_rules_change_and_state_stays():
    w = Shared().healthy(5)
    w.run(1, 100, fail("status"))
    w.b.use(core_rules(BreakerConfig(open_s=2.0), 0.0), w.us())
    assert w.b.state == "open" and w.snapshot()["failed"] > 0
    w.b.use(core_rules(BreakerConfig(), 0.0), w.us(), identity=2)  # the place is another's by now
    s = w.snapshot()
    assert s["state"] == "closed" and s["calls"] == 0 and balanced(s)


def test_lost_failures_do_not_open_what_may_not_open():
    w = Shared().healthy(5)
    for _ in range(100):
        p = w.b.admit(0, w.us(), tick=False)
        w.b.end(p, 1, 1000, w.us(), tick=False)
        w.now += 0.01
        w.b.fold(w.us(), may_open=False)
    assert w.b.state == "closed" and w.snapshot()["evidence"] == 0


def test_tiers_are_shed_in_order():
    w = Shared().healthy()
    w.run(20, 100, lambda r: ("overload" if r.random() < 0.6 else "ok", 0.01))
    share = w.snapshot()["shed_probability"]
    shed = [0, 0, 0]
    for i in range(3000):
        p = w.b.admit(0, w.us(), w.rng.random(), i % 3, tick=False)
        shed[i % 3] += p.refusal == "shed"
        w.b.end(p, 3, 0, w.us(), tick=False)
    assert shed[2] / 1000 == pytest.approx(min(1, 2 * share), abs=0.06)
    assert shed[1] / 1000 == pytest.approx(share, abs=0.06)
    assert shed[0] / 1000 == pytest.approx(max(0, 2 * share - 1), abs=0.06)


@pytest.mark.parametrize("bad", [1, 5, 10])
def test_threads_at_once_lose_nothing(bad):
    b = shared(4, 0.001)
    admitted = [0] * 4

    def work(i: int) -> None:
        admitted[i] = b.hammer(i, 300_000, bad)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    s = b.snapshot(400_000)
    assert s["admitted"] == sum(admitted) and balanced(s) and s["in_flight"] == 0 and s["illegal"] == 0 and b.locked == 0
    refused = sum(s[f"refused_{why}"] for why in ("open", "probe_limit", "shed", "ramp"))
    assert sum(admitted) + refused == 4 * 300_000


# ---- invariants


class Histories(RuleBasedStateMachine):
    """Section 13's invariants, with several workers, deaths, and folds that come or do not."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000_000
        self.b = shared(3, 1000.0, trip_failures=3, trip_time_s=0.0, min_volume=4, probes=2)
        self.live: list[SharedPermit] = []
        self.moves = self.bumps = 0
        self.held = -1
        self.legal = {
            ("closed", "open"),
            ("open", "half_open"),
            ("half_open", "closed"),
            ("half_open", "open"),
            ("open", "closed"),
        }

    @rule(worker=st.integers(0, 2), chance=st.floats(0, 0.999), tick=st.booleans())
    def acquire(self, worker: int, chance: float, tick: bool) -> None:
        if worker == self.held:
            return
        was, s = self.b.state, self.b.snapshot(self.now) if self.held < 0 else None
        p = self.b.admit(worker, self.now, chance, tick=tick)
        if not p.refusal:
            assert s is None or not (was == "open" and s["open_remaining_s"] > 0)  # 6
            assert (p.probe or was == "closed") or self.b.state == "closed"
            self.live.append(p)

    @precondition(lambda self: self.live)
    @rule(i=st.integers(0, 1 << 16), outcome=st.integers(0, 3), latency=st.integers(0, 100_000_000), tick=st.booleans())
    def end(self, i: int, outcome: int, latency: int, tick: bool) -> None:
        p = self.live[i % len(self.live)]
        if p.worker == self.held:
            return
        self.live.remove(p)
        quiet = self.held < 0
        before = self.b.snapshot(self.now) if quiet else {}
        self.b.end(p, outcome, latency, self.now, tick=tick)
        after = self.b.snapshot(self.now) if quiet else {}
        if quiet and outcome == 3 and not tick:
            assert (after["generation"], after["failure_ratio"]) == (before["generation"], before["failure_ratio"])  # 8
        assert not self.b.end(p, 0, 0, self.now)  # 5

    @rule(dt=st.integers(0, 30_000_000))
    def pass_time(self, dt: int) -> None:
        self.now += dt

    @rule(worker=st.integers(0, 2))
    def fold(self, worker: int) -> None:
        if worker != self.held:
            assert self.b.fold(self.now, worker) == (self.held < 0)

    @precondition(lambda self: self.held < 0)
    @rule(worker=st.integers(0, 2))
    def die(self, worker: int) -> None:
        self.live = [p for p in self.live if p.worker != worker]
        self.b.retire(worker, self.now)

    @precondition(lambda self: self.held < 0)
    @rule(worker=st.integers(0, 2))
    def take_the_lock(self, worker: int) -> None:
        assert self.b.hold(worker)
        self.held = worker

    @precondition(lambda self: self.held >= 0)
    @rule(dies=st.booleans())
    def leave_the_lock(self, dies: bool) -> None:
        if dies:
            self.live = [p for p in self.live if p.worker != self.held]
            self.b.retire(self.held, self.now)
            self.bumps += 1
        else:
            self.b.release(self.held)
        self.held = -1

    @precondition(lambda self: self.held < 0)
    @rule(to=st.integers(-1, 2))
    def force(self, to: int) -> None:
        self.b.force(to, self.now)

    @invariant()
    def holds(self) -> None:
        if self.held >= 0:
            return
        s = self.b.snapshot(self.now)
        assert balanced(s), s  # 1
        assert 0 <= s["in_flight"] <= len(self.live)  # 2
        for e in self.b.events():
            self.moves += 1
            assert (e["from"], e["to"]) in self.legal and e["reason"]  # 3
        assert s["generation"] == self.moves + self.bumps  # 4
        assert s["probes_in_flight"] <= 2 and s["illegal"] == 0  # 7
        assert 0 <= s["evidence"] <= s["evidence_needed"] + 1e-9  # 11
        assert all(0 <= s[key] <= 1 for key in ("failure_ratio", "pressure_ratio", "score")) and s["shed_probability"] <= 0.8
        b = s["baseline_failure_ratio"]
        assert b + 0.05 - 1e-9 <= s["threshold"] <= b + 0.20 + 1e-9  # 12
        if s["pressure_ratio"] == 0:
            assert s["shed_probability"] == 0  # 13

    def teardown(self) -> None:
        if self.held >= 0:
            self.b.release(self.held)
        for p in self.live:
            self.b.end(p, 3, 0, self.now)
        self.now += 20_000_000
        s = self.b.snapshot(self.now)
        assert s["in_flight"] == s["probes_in_flight"] == 0 and balanced(s)  # 2


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


def test_the_data_planes_defaults_are_those_of_the_public_class():
    from gwcore.config.resilience import Breaker

    assert Breaker().config() == BreakerConfig()
    mine, yours = Outlier().config(), BreakerConfig()
    differ = {f.name for f in fields(mine) if getattr(mine, f.name) != getattr(yours, f.name)}
    assert differ == {"trip_failures", "trip_time_s", "open_s", "open_max_s", "shed_max"}
