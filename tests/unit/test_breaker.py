"""gwcore.breaker: what is its own beside test_breaker_acceptance, and the invariants over random histories. No sleep: the clock is the test's."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gwcore.breaker import Breaker, BreakerConfig, BreakerOpen, Permit, State
from tests.breakers import Private, fail


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a9_a_probe_that_never_ends_frees_its_place():
    w = Private(probes=1)
    w.run(2, 100, fail("connect"))
    assert w.b.state is State.OPEN
    w.now += 5
    probe = w.b.try_acquire()
    assert probe and probe.probe and w.b.state is State.HALF_OPEN
    refusal = w.b.try_acquire()
    assert not refusal and refusal.reason == "probe_limit" and 9 < refusal.retry_after_s <= 10
    w.now += 10.1
    again = w.b.try_acquire()
    assert again and again.probe
    assert probe.success() is False and w.b.snapshot()["expired"] == 1 and w.b.state is State.HALF_OPEN
    assert again.success() is True and w.b.state is State.CLOSED


def test_a10_results_of_an_older_state_are_stale():
    w = Private().healthy()
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


def test_open_intervals_stay_within_bounds():
    w = Private().healthy()
    w.run(60, 100, fail("connect"))
    opens = [m[0] for m in w.moves if m[2] == "open"]
    probes = [m[0] for m in w.moves if m[2] == "half_open"]
    for a, b in zip(opens, probes, strict=False):
        assert 0.8 <= b - a <= 5 * 1.2 + 0.05


def test_force_and_reset():
    w = Private()
    w.b.force_open()
    assert w.b.state is State.OPEN and w.b.try_acquire().reason == "open"
    w.now += 1000
    assert not w.b.try_acquire()  # 16
    w.b.reset()
    assert w.b.state is State.CLOSED and w.b.try_acquire()
    w.b.force("open", for_s=5)
    w.now += 6
    assert w.b.try_acquire().probe
    w.b.force("closed")
    w.run(5, 100, fail("connect"))
    assert w.b.state is State.CLOSED
    with pytest.raises(ValueError, match="'open', 'closed' or None"):
        w.b.force("ajar")
    assert [m[3] for m in w.moves] == ["forced", "reset", "forced", "probe", "forced"]


def test_hint_ends_the_open_interval_after_a_second():
    w = Private(open_s=5.0, open_jitter=0.0)
    w.run(2, 100, fail("connect"))
    opened = w.moves[0][0]
    w.now = max(w.now, opened + 1.5)
    w.b.hint_healthy()
    assert w.b.try_acquire().probe


def test_hint_gives_probes_that_are_out_one_second_more():
    w = Private(open_s=1.0, open_jitter=0.0)
    w.run(2, 100, fail("connect"))
    w.now += 5
    silent = [w.b.try_acquire() for _ in range(3)]
    assert all(p.probe for p in silent) and w.b.try_acquire().reason == "probe_limit"
    w.b.hint_healthy()
    w.now += 0.9
    assert w.b.try_acquire().reason == "probe_limit"
    w.now += 0.2
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
        w = Private(seed=7).healthy(5)
        w.run(20, 100, lambda r: ("overload" if r.random() < 0.5 else "ok", 0.01))
        return w.b.snapshot()

    assert story() == story()  # 18
