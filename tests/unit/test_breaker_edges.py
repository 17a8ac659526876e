"""gwcore.breaker at its edges: the table of moves, odd clocks, lost permits, threads, what cancels and leases may not do."""

from __future__ import annotations

import gc
import itertools
import pickle
import sys
import threading

import pytest
from gwcore._speedups.breaker_core import edges, try_move
from hypothesis import given
from hypothesis import strategies as st

from gwcore.breaker import Breaker, BreakerConfig, BreakerOpen, Permit, Refusal, State

CLOSED, OPEN, HALF_OPEN = range(3)
LEGAL = {(CLOSED, OPEN), (OPEN, HALF_OPEN), (OPEN, CLOSED), (HALF_OPEN, CLOSED), (HALF_OPEN, OPEN)}


class Clock:
    def __init__(self, now: float = 50.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make(clock: Clock | None = None, chance: float = 0.5, **config) -> tuple[Breaker, Clock]:
    clock = clock or Clock()
    return Breaker("x", BreakerConfig(**config), clock=clock, rng=lambda: chance), clock


def healthy(b: Breaker, clock: Clock, seconds: float = 60, latency: float = 0.01) -> None:
    for _ in range(int(seconds * 100)):
        assert b.acquire().success(latency)
        clock.now += 0.01


def trip(b: Breaker, clock: Clock) -> None:
    while b.state is State.CLOSED:
        b.acquire().failure("status")
        clock.now += 0.05


@pytest.mark.parametrize(("was", "to"), list(itertools.product(range(3), repeat=2)))
def test_every_edge_of_the_table(was: int, to: int) -> None:
    assert try_move(was, to) is ((was, to) in LEGAL)
    assert (to in edges()[was]) is ((was, to) in LEGAL)


def test_fewer_failures_than_trip_failures_never_open():
    b, clock = make(trip_failures=100, trip_time_s=0.0)
    for _ in range(99):
        b.acquire().failure("status")
    assert b.state is State.CLOSED
    b.acquire().failure("status")
    assert b.state is State.OPEN


def test_cancels_alone_never_open_however_long():
    b, clock = make()
    healthy(b, clock)
    for _ in range(60 * 100):
        assert b.acquire().cancel()
        clock.now += 0.01
    assert b.state is State.CLOSED and b.generation == 0


def test_a_stall_is_seen_though_the_clients_lose_patience():
    b, clock = make()
    healthy(b, clock)
    fault, out = clock.now, []
    while b.state is State.CLOSED and clock.now < fault + 20:
        permit = b.try_acquire()
        if permit:
            out.append(permit)
        if len(out) > 100:  # each waits for a second
            out.pop(0).cancel()
        clock.now += 0.01
    assert b.state is State.OPEN and clock.now - fault <= 5.5


def test_after_a_stall_at_most_three_are_out():
    b, clock = make()
    healthy(b, clock)
    out = [b.acquire() for _ in range(10)]
    clock.now += 5.01
    refusal = b.try_acquire()
    assert not refusal and refusal.reason == "open" and b.state is State.OPEN
    clock.now += 2
    got = [b.try_acquire() for _ in range(100)]
    assert sum(map(bool, got)) == 3 and b.in_flight == len(out) + 3


def test_a_permit_lost_in_a_cycle_is_cancelled():
    b, _ = make()

    class Cycle:
        pass

    c = Cycle()
    c.permit, c.itself = b.acquire(), c
    del c
    assert b.in_flight == 1
    gc.collect()
    assert b.in_flight == 0 and b.snapshot()["cancelled"] == 1


def test_a_permit_lost_with_a_traceback_is_cancelled():
    b, _ = make()

    def work() -> None:
        permit = b.acquire()  # noqa: F841
        try:
            raise RuntimeError
        except RuntimeError as error:
            keep = error  # noqa: F841  the frame holds the error, the error the frame

    work()
    gc.collect()
    assert b.in_flight == 0


def test_permits_and_refusals_made_by_hand_are_harmless():
    permit = Permit()
    assert permit.success() is False and permit.failure() is False and permit.cancel() is False
    assert not Refusal()


def test_a_breaker_is_initialised_once():
    b, _ = make()
    with pytest.raises(TypeError, match="initialised once"):
        b.__init__("y")


@pytest.mark.parametrize("first", [0.0, -3.0, 1e9, 0.1])
def test_clocks_may_start_anywhere(first: float) -> None:
    b, clock = make(Clock(first), probe_lease_s=10.0)
    permit = b.acquire()
    assert permit.started == first and permit.success()
    trip(b, clock)
    clock.now += 6
    probe = b.acquire()
    assert probe.probe and probe.started == clock.now
    clock.now += 10.0
    assert b.snapshot()["expired"] == 1 and probe.success() is False
    for _ in range(3):
        b.acquire().success()
    assert b.state is State.CLOSED and b.admit_ratio == pytest.approx(0.2)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf"), -1e300])
def test_odd_clock_readings_stand_still(odd: float) -> None:
    b, clock = make()
    permit = b.acquire()
    b.acquire().failure()
    before = b.snapshot()
    clock.now = odd
    assert b.snapshot() == before
    assert permit.success() and b.snapshot()["p99_s"] < 0.001


def test_latencies_out_of_range():
    b, _ = make(latency_limit_s=1.0)
    for latency, failed in ((-1.0, 0), (float("nan"), 0), (float("inf"), 1), (1e300, 1), (0.5, 0), (1.5, 1)):
        before = b.snapshot()["failed"]
        assert b.acquire().success(latency)
        assert b.snapshot()["failed"] - before == failed, latency
    permit = b.acquire()
    with pytest.raises(TypeError):
        permit.success("fast")
    assert permit.success()  # it stayed live


def test_leases_out_of_range():
    for lease in (-1.0, float("nan"), float("inf"), 1e300):
        b, clock = make(probes=1)
        trip(b, clock)
        clock.now += 6
        probe = b.acquire(lease)
        clock.now += 1
        assert probe.probe and bool(b.try_acquire()) is not (lease > 0)


def test_figures_are_as_of_now():
    b, clock = make(probes=1)
    trip(b, clock)
    clock.now += 6
    probe = b.acquire()
    clock.now += 11
    assert b.in_flight == 0  # nobody asked since, and the lease is over
    assert probe.cancel() is False and b.snapshot()["stale"] == 0  # a cancel is no result
    b.acquire().success()
    assert b.admit_ratio == pytest.approx(0.2)
    clock.now += 1.5
    assert b.admit_ratio == pytest.approx(0.6)
    clock.now += 2
    assert b.admit_ratio == 1.0


def test_the_ramp_lets_low_traffic_pass():
    b, clock = make(probes=1, chance=0.999)
    trip(b, clock)
    clock.now = 61.0
    b.acquire().success()
    admitted = sum(bool(b.try_acquire()) for _ in range(30))
    assert admitted == 10
    refusal = b.try_acquire()
    assert refusal.reason == "ramp"
    clock.now += 1
    assert b.try_acquire()


def test_back_off_grows_is_capped_and_forgotten():
    b, clock = make(open_jitter=0.0, probes=1)
    lengths = []
    trip(b, clock)
    for _ in range(6):
        lengths.append(round(b.snapshot()["open_remaining_s"] + 0.05 * (not lengths), 3))
        clock.now += lengths[-1]
        b.acquire().failure("connect")
    assert lengths == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    clock.now += 5
    b.acquire().success()
    assert b.state is State.CLOSED and b.snapshot()["backoff_level"] == 7
    clock.now += 59
    assert b.snapshot()["backoff_level"] == 7
    clock.now += 1.5
    assert b.snapshot()["backoff_level"] == 0


@pytest.mark.parametrize(("chance", "length"), [(0.0, 0.8), (0.5, 1.0), (0.999999, 1.2)])
def test_open_intervals_are_spread(chance: float, length: float) -> None:
    b, clock = make(chance=chance, trip_time_s=0.0, trip_failures=1)
    b.acquire().failure()
    assert b.snapshot()["open_remaining_s"] == pytest.approx(length, abs=1e-5)
    assert b.try_acquire().retry_after_s == pytest.approx(length, abs=1e-5)


def test_classic_reads_a_clock_that_stands():
    b, _ = make(score="classic", capacity=100)
    permits = [b.acquire() for _ in range(95)]
    for permit in permits[:19]:
        permit.success(0.001)
        permits.append(b.acquire())
    assert b.state is State.CLOSED
    for permit in permits[19:40]:
        permits.extend([b.acquire()] if b.state is State.CLOSED else [])
        permit.success(0.6)
    assert b.state is State.OPEN


def test_saturation_and_score_stay_within_one():
    for score in ("adaptive", "classic"):
        b, _ = make(score=score, capacity=2, classic_weights=(3.0, 3.0, 3.0))
        out = [b.acquire() for _ in range(5)]
        assert b.saturation == 1.0 and 0 <= b.score <= 1.0 and len(out) == 5


def test_what_a_listener_raises_is_dropped():
    def listener(*_: object) -> None:
        raise ValueError

    clock = Clock()
    b = Breaker("x", BreakerConfig(trip_failures=1, trip_time_s=0.0), clock=clock, on_transition=listener)
    assert b.acquire().failure() and b.state is State.OPEN


def test_a_listener_may_read_and_hears_the_truth():
    heard = []
    clock = Clock()
    b = Breaker(
        "x",
        BreakerConfig(trip_failures=1, trip_time_s=0.0, probes=1),
        clock=clock,
        on_transition=lambda b, was, to, why: heard.append((was.value, to.value, why, b.snapshot()["state"])),
    )
    b.acquire().failure()
    clock.now += 2
    b.acquire().success()
    b.force_open()
    b.force_open()
    b.reset()
    assert heard == [
        ("closed", "open", "failures", "open"),
        ("open", "half_open", "probe", "half_open"),
        ("half_open", "closed", "recovered", "closed"),
        ("closed", "open", "forced", "open"),
        ("open", "closed", "reset", "closed"),
    ]


@pytest.mark.parametrize("for_s", [0, -1, float("nan")])
def test_force_wants_a_time_above_zero(for_s: float) -> None:
    b, _ = make()
    with pytest.raises(ValueError, match="for_s"):
        b.force("open", for_s)
    assert b.state is State.CLOSED


def test_breaker_open_travels_between_processes():
    error = pickle.loads(pickle.dumps(BreakerOpen("users", "shed", 1.5)))
    assert (error.name, error.reason, error.retry_after_s) == ("users", "shed", 1.5)
    assert str(error) == "users: refused, shed; retry after 1.5s"


@given(latency=st.floats(0.0001, 100.0))
def test_the_quantile_is_within_a_sixteenth(latency: float) -> None:
    b, _ = make()
    b.acquire().success(latency)
    assert abs(b.snapshot()["p99_s"] - latency) <= 0.0625 * latency + 1e-6


def test_threads_agree_on_every_transition_and_every_place():
    moves = []
    b = Breaker(
        "x",
        BreakerConfig(trip_failures=3, trip_time_s=0.0, open_s=0.001, open_max_s=0.001, probes=2, ramp_s=0.0),
        on_transition=lambda b, was, to, why: moves.append((was, to)),
    )

    def work(seed: int) -> None:
        for i in range(20_000):
            permit = b.try_acquire()
            if permit:
                if (i * 7 + seed) % 50 < 25:
                    permit.failure()
                else:
                    permit.success()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(interval)
    s = b.snapshot()
    assert s["in_flight"] == 0 and s["generation"] == len(moves)
    assert s["admitted"] == s["succeeded"] + s["failed"] + s["cancelled"] + s["expired"]
