"""gwcore.breaker: acceptance of the scenarios, and the invariants over random histories. No sleep: the clock is the test's."""

from __future__ import annotations

import asyncio
import heapq
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gwcore.breaker import Breaker, BreakerConfig, BreakerOpen, Permit, State


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """100 calls a second by default against an upstream that is a function of time."""

    def __init__(self, seed: int = 1, **config):
        self.clock, self.rng = Clock(), random.Random(seed)
        self.moves: list[tuple[float, str, str, str]] = []
        self.b = Breaker(
            "x",
            BreakerConfig(**config),
            clock=self.clock,
            rng=self.rng.random,
            on_transition=lambda b, was, to, why: self.moves.append((self.clock.now, was.value, to.value, why)),
        )
        self.refused = 0
        self.pending: list[tuple[float, int, Permit, str, float]] = []
        self.serial = 0

    def run(self, seconds: float, rps: float, call) -> None:
        """call(rng) -> (outcome, latency): outcome 'ok', a failure kind, 'cancel', or None for never."""
        end, step = self.clock.now + seconds, 1 / rps
        at = self.clock.now
        while at < end:
            self.drain(at)
            self.clock.now = at
            permit = self.b.try_acquire()
            if permit:
                outcome, latency = call(self.rng)
                if outcome is not None:
                    self.serial += 1
                    heapq.heappush(self.pending, (at + latency, self.serial, permit, outcome, latency))
                else:
                    self.kept = [*getattr(self, "kept", []), permit]
            else:
                self.refused += 1
            at += step
        self.drain(end)
        self.clock.now = end

    def drain(self, until: float) -> None:
        while self.pending and self.pending[0][0] <= until:
            due, _, permit, outcome, _ = heapq.heappop(self.pending)
            self.clock.now = due
            if outcome == "ok":
                permit.success()
            elif outcome == "cancel":
                permit.cancel()
            else:
                permit.failure(outcome)

    def healthy(self, seconds: float = 60) -> World:
        self.run(seconds, 100, lambda r: ("ok", 0.01 + r.random() * 0.01))
        self.refused = 0
        assert self.moves == []
        return self


def fail(kind: str, latency: float = 0.001):
    return lambda r: (kind, latency)


def test_a1_all_fail_opens_within_a_third_of_a_second():
    w = World().healthy()
    t = w.clock.now
    w.run(1, 100, fail("status"))
    at, was, to, why = w.moves[0]
    assert (was, to, why) == ("closed", "open", "failures") and 0.25 <= at - t <= 0.35


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a2_partial_status_failures_refuse_nothing(share):
    w = World().healthy()
    w.run(60, 100, lambda r: ("status" if r.random() < share else "ok", 0.01))
    assert w.refused == 0 and w.moves == []


def test_a4_one_request_a_second_opens_within_15_seconds():
    w = World().healthy()
    w.run(20, 1, fail("connect"))
    assert w.moves and w.moves[0][3] == "failures" and w.moves[0][0] - 1060 <= 15


def test_a5_a_blip_changes_nothing():
    w = World().healthy()
    w.run(0.2, 100, fail("reset"))
    w.run(20, 100, lambda r: ("ok", 0.01))
    assert w.moves == []


def test_a6_silence_is_a_stall():
    w = World().healthy()
    t = w.clock.now
    w.run(8, 100, lambda r: ("timeout", 5.0))
    opened = next(m for m in w.moves if m[2] == "open")
    assert opened[3] in ("stall", "failures") and opened[0] - t <= 5.5
    after = [m for m in w.moves if m[0] > opened[0]]
    assert w.b.snapshot()["probes_in_flight"] <= 3 and len([m for m in after if m[2] == "closed"]) == 0


def test_a7_cancels_refuse_nothing():
    w = World().healthy()
    w.run(60, 100, lambda r: ("cancel", 0.005) if r.random() < 0.8 else ("ok", 0.02))
    assert w.refused == 0 and w.moves == []


def test_a8_a_new_normal_latency_is_learned():
    w = World().healthy()
    w.run(30, 100, lambda r: ("ok", 0.06 + r.random() * 0.02))
    s = w.b.snapshot()
    assert w.refused == 0 and s["slow_limit_s"] > s["p99_s"] > 0.05


def test_a9_a_probe_that_never_ends_frees_its_place():
    w = World(probes=1)
    w.run(2, 100, fail("connect"))
    assert w.b.state is State.OPEN
    w.clock.now += 5
    probe = w.b.try_acquire()
    assert probe and probe.probe and w.b.state is State.HALF_OPEN
    refusal = w.b.try_acquire()
    assert not refusal and refusal.reason == "probe_limit" and 9 < refusal.retry_after_s <= 10
    w.clock.now += 10.1
    again = w.b.try_acquire()
    assert again and again.probe
    assert probe.success() is False and w.b.snapshot()["expired"] == 1 and w.b.state is State.HALF_OPEN
    assert again.success() is True and w.b.state is State.CLOSED


def test_a10_results_of_an_older_state_are_stale():
    w = World().healthy()
    old = [w.b.try_acquire() for _ in range(5)]
    w.run(1, 100, fail("status"))
    before = w.b.snapshot()
    assert w.b.state is State.OPEN
    assert all(p.success() for p in old)
    after = w.b.snapshot()
    assert (
        after["stale"] == before["stale"] + 5
        and after["state"] == "open"
        and after["failure_ratio"] == pytest.approx(before["failure_ratio"])
    )
    assert not any(p.success() for p in old)


def test_a11_partial_overload_is_shed_in_proportion():
    w = World().healthy()
    w.run(20, 100, lambda r: ("overload" if r.random() < 0.6 else "ok", 0.01))
    assert w.b.state is State.CLOSED and 0.4 <= w.b.shed_probability <= 0.6


def test_a13_classic_opens_on_latency_with_a_full_pool_never_on_errors():
    w = World(score="classic", capacity=100.0)
    w.run(20, 100, fail("status"))
    assert w.b.state is State.CLOSED
    w = World(score="classic", capacity=100.0)
    w.run(20, 180, lambda r: ("ok", 0.55))
    assert any(m[3] == "score" for m in w.moves)


def test_recovery_ramps():
    w = World().healthy()
    w.run(10, 100, fail("connect"))
    w.run(30, 100, lambda r: ("ok", 0.01))
    assert w.b.state is State.CLOSED and [m[3] for m in w.moves][-1] == "recovered" and w.b.admit_ratio == 1.0
    assert w.b.snapshot()["refused_ramp"] > 0


def test_open_intervals_stay_within_bounds():
    w = World().healthy()
    w.run(60, 100, fail("connect"))
    opens = [m[0] for m in w.moves if m[2] == "open"]
    probes = [m[0] for m in w.moves if m[2] == "half_open"]
    for a, b in zip(opens, probes, strict=False):
        assert 0.8 <= b - a <= 5 * 1.2 + 0.05


def test_force_and_reset():
    w = World()
    w.b.force_open()
    assert w.b.state is State.OPEN and w.b.try_acquire().reason == "open"
    w.clock.now += 1000
    assert not w.b.try_acquire()  # 16
    w.b.reset()
    assert w.b.state is State.CLOSED and w.b.try_acquire()
    w.b.force("open", for_s=5)
    w.clock.now += 6
    assert w.b.try_acquire().probe
    w.b.force("closed")
    w.run(5, 100, fail("connect"))
    assert w.b.state is State.CLOSED
    with pytest.raises(ValueError, match="'open', 'closed' or None"):
        w.b.force("ajar")
    assert [m[3] for m in w.moves] == ["forced", "reset", "forced", "probe", "forced"]


def test_hint_ends_the_open_interval_after_a_second():
    w = World(open_s=5.0, open_jitter=0.0)
    w.run(2, 100, fail("connect"))
    opened = w.moves[0][0]
    w.clock.now = max(w.clock.now, opened + 1.5)
    w.b.hint_healthy()
    assert w.b.try_acquire().probe


def test_hint_gives_probes_that_are_out_one_second_more():
    w = World(open_s=1.0, open_jitter=0.0)
    w.run(2, 100, fail("connect"))
    w.clock.now += 5
    silent = [w.b.try_acquire() for _ in range(3)]
    assert all(p.probe for p in silent) and w.b.try_acquire().reason == "probe_limit"
    w.b.hint_healthy()
    w.clock.now += 0.9
    assert w.b.try_acquire().reason == "probe_limit"
    w.clock.now += 0.2
    fresh = [w.b.try_acquire() for _ in range(3)]
    assert all(p.probe for p in fresh) and not w.b.try_acquire()
    assert not silent[0].success() and all(p.success() for p in fresh)
    assert w.b.state is State.CLOSED and w.b.snapshot()["expired"] == 3


def test_context_managers_end_the_permit_by_what_happened():
    b = Breaker("x")
    with b.acquire():
        pass
    for error in (TimeoutError(), ConnectionRefusedError(), ConnectionResetError(), KeyError()):
        with pytest.raises(type(error)), b.acquire():
            raise error
    with pytest.raises(KeyboardInterrupt), b.acquire():
        raise KeyboardInterrupt
    with b.acquire() as p:
        assert p.failure("status")  # a verdict inside wins

    async def cancelled() -> None:
        async with b.acquire():
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    s = b.snapshot()
    assert (s["succeeded"], s["failed"], s["cancelled"], s["in_flight"]) == (1, 5, 2, 0)


def test_a_lost_permit_is_cancelled():
    b = Breaker("x")
    p = b.try_acquire()
    assert b.in_flight == 1
    del p
    assert b.in_flight == 0 and b.snapshot()["cancelled"] == 1


def test_bad_values_name_the_field():
    for field, value in [
        ("window_s", 0),
        ("trip_ratio", 1),
        ("probes", 0),
        ("probes", 33),
        ("shed_max", 1.5),
        ("score", "x"),
        ("open_max_s", 0.5),
        ("window_s", float("nan")),
        ("classic_weights", (1, 2)),
        ("threshold_floor", 0.3),
    ]:
        with pytest.raises(ValueError, match=field.replace("threshold_floor", "threshold_ceiling")):
            BreakerConfig(**{field: value})
    p = Breaker("x").acquire()
    with pytest.raises(ValueError, match="not a kind"):
        p.failure("nonsense")
    assert p.success()


def test_breaker_open_says_who_and_when():
    b = Breaker("users")
    b.force_open()
    with pytest.raises(BreakerOpen) as e:
        b.acquire()
    assert (e.value.name, e.value.reason) == ("users", "open") and e.value.retry_after_s >= 0


class Histories(RuleBasedStateMachine):
    """Section 13's invariants over whatever hypothesis thinks of."""

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.chance = Clock(), 0.5
        self.moves = 0
        self.b = Breaker(
            "x",
            BreakerConfig(trip_failures=3, trip_time_s=0.0, min_volume=4, probes=2),
            clock=self.clock,
            rng=lambda: self.chance,
            on_transition=self.moved,
        )
        self.live: list[Permit] = []
        self.ended: list[Permit] = []
        self.legal = {
            ("closed", "open"),
            ("open", "half_open"),
            ("half_open", "closed"),
            ("half_open", "open"),
            ("open", "closed"),
        }

    def moved(self, b, was, to, why) -> None:
        self.moves += 1
        assert (was.value, to.value) in self.legal and why  # 3

    @rule(chance=st.floats(0, 0.999))
    def acquire(self, chance) -> None:
        self.chance = chance
        was, remaining = self.b.state, self.b.snapshot()["open_remaining_s"]
        got = self.b.try_acquire()
        if got:
            assert not (was is State.OPEN and remaining > 0)  # 6
            self.live.append(got)
        else:
            assert got.retry_after_s >= 0

    @precondition(lambda self: self.live)
    @rule(
        i=st.integers(0, 1 << 16),
        kind=st.sampled_from(["ok", "cancel", "timeout", "status", "overload"]),
        latency=st.floats(-1, 100),
    )
    def end(self, i, kind, latency) -> None:
        p = self.live.pop(i % len(self.live))
        before = self.b.snapshot()
        done = p.success(latency) if kind == "ok" else p.cancel() if kind == "cancel" else p.failure(kind, latency)
        after = self.b.snapshot()
        if kind == "cancel":
            assert after["generation"] == before["generation"] and after["failure_ratio"] == before["failure_ratio"]  # 8
        if kind == "ok":
            assert not (before["state"] == "closed" and after["state"] == "open")  # 9
        assert done or after["stale"] == before["stale"] + 1 or p.probe
        assert not p.success() and not p.cancel()  # 5
        self.ended.append(p)

    @rule(dt=st.floats(-5, 30))
    def pass_time(self, dt) -> None:
        before = self.b.snapshot()
        self.clock.now += dt
        if dt <= 0:
            assert self.b.snapshot() == before  # 17
            self.clock.now -= dt

    @rule()
    def reset(self) -> None:
        self.b.reset()

    @rule(state=st.sampled_from(["open", "closed", None]))
    def force(self, state) -> None:
        self.b.force(state)

    @invariant()
    def holds(self) -> None:
        s = self.b.snapshot()
        assert s["admitted"] == s["succeeded"] + s["failed"] + s["cancelled"] + s["expired"] + s["in_flight"]  # 1
        assert 0 <= s["in_flight"] <= len(self.live)  # 2
        assert s["generation"] == self.moves  # 4
        assert s["probes_in_flight"] <= 2  # 7
        assert 0 <= s["evidence"] <= s["evidence_needed"] + 1e-9  # 11
        for key in ("failure_ratio", "pressure_ratio", "score"):
            assert 0 <= s[key] <= 1, (key, s)
        assert s["shed_probability"] <= 0.8
        b = s["baseline_failure_ratio"]
        assert b + 0.05 - 1e-9 <= s["threshold"] <= b + 0.20 + 1e-9  # 12
        if s["pressure_ratio"] == 0:
            assert s["shed_probability"] == 0  # 13


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_same_history_same_snapshot():
    def story() -> dict:
        w = World(seed=7).healthy(5)
        w.run(20, 100, lambda r: ("overload" if r.random() < 0.5 else "ok", 0.01))
        return w.b.snapshot()

    assert story() == story()  # 18
