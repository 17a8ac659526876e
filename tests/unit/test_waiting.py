"""The waiting queue and the adaptive limit: pure decisions under a clock that the test holds."""

from __future__ import annotations

import heapq
import random
from collections import deque

import pytest
from gwcore._speedups.limiter import LimiterProbe
from gwcore._speedups.waiting import WaitProbe

# ---- who is next --------------------------------------------------------------------------------------------------


def test_higher_tiers_first_and_the_oldest_within_one():
    q = WaitProbe(6, 100)
    for i, tier in enumerate((2, 1, 0, 2, 1, 0)):
        assert q.push(i, tier, i)
    order = []
    while (i := q.next()) is not None:
        assert q.drop(i, 10)
        order.append(i)
    assert order == [2, 5, 1, 4, 0, 3]
    assert q.n == 0 and q.by_tier == [0, 0, 0]


def test_over_half_full_the_newest_of_a_tier_is_first():
    q = WaitProbe(10, 8)
    for i in range(4):
        q.push(i, 1, i)
    assert q.next() == 0  # half full is calm
    q.push(4, 1, 4)
    assert q.next() == 4
    q.push(5, 0, 5)
    q.push(6, 0, 6)
    assert q.next() == 6  # of the highest tier
    q.drop(6, 7)
    q.drop(5, 7)
    q.drop(4, 7)
    assert q.next() == 0


def test_who_comes_back_stands_where_it_stood():
    q = WaitProbe(8, 8)
    for i in range(3):
        q.push(i, 1, i)
    i = q.next()
    q.drop(i, 5)
    q.give_back(i, 250)
    assert q.next() == i == 0
    for i in range(3, 6):
        q.push(i, 1, i)
    i = q.next()
    q.drop(i, 7)
    q.give_back(i, 255)
    assert q.next() == i == 5
    assert q.n == 6


def test_a_full_queue_takes_nobody_and_names_who_gives_way():
    q = WaitProbe(5, 3)
    q.push(0, 2, 0)
    q.push(1, 1, 1)
    q.push(2, 2, 2)
    assert not q.push(3, 0, 3)
    assert q.lower(0) == 0 and q.lower(1) == 0 and q.lower(2) is None
    q.drop(0, 4)
    q.drop(2, 4)
    assert q.lower(0) == 1 and q.lower(1) is None
    assert q.push(3, 0, 5)
    assert not q.drop(0, 5) and q.drop(3, 5) and not q.drop(3, 5)  # leaving twice is harmless


def test_a_newcomer_does_not_overtake_its_own_or_a_higher_tier():
    q = WaitProbe(3, 10)
    assert not q.before(2)
    q.push(0, 1, 0)
    assert [q.before(t) for t in range(3)] == [False, True, True]


def test_a_queue_that_moves_is_left_alone():
    q = WaitProbe(400, 1000)
    for i in range(400):  # one comes each millisecond, and waits three
        q.push(i, 1, i)
        if i >= 3:
            assert q.drop(q.next(), i)
        assert q.overdue(i) is None
    assert not q.drowning


def test_a_queue_that_stands_lets_the_old_go_until_it_was_empty():
    q = WaitProbe(300, 10_000)
    gone = []
    for t in range(200):  # nobody is served
        q.push(t, 1, t, 10_000)
        while (i := q.overdue(t)) is not None:
            q.drop(i, t)
            gone.append((i, t - i))
        if t < 105:
            assert not gone
    assert q.drowning and gone[0] == (0, 105) and gone[-1] == (178, 21)
    assert q.n == 21  # nobody younger left
    while (i := q.next()) is not None:
        q.drop(i, 200)
    assert not q.drowning
    q.push(250, 1, 1000, 10_000)
    assert q.overdue(1104) is None and q.overdue(1105) == 250


def test_who_may_wait_longer_is_given_more_patience():
    q = WaitProbe(2, 10)
    q.pace(10_000)  # forty times as long
    q.push(0, 1, 0, 10_000)
    assert q.overdue(4199) is None and q.overdue(4200) == 0


def test_newest_first_does_not_hide_that_the_queue_stands():
    q = WaitProbe(500, 100)
    for i in range(60):
        q.push(i, 1, 0, 10_000)
    n = 60
    for t in range(1, 300):  # the newest goes at once, those behind stay
        if q.push(n, 1, t, 10_000):
            n += 1
        q.drop(q.next(), t)
        if q.overdue(t) is not None:
            assert t == 105
            return
    raise AssertionError("nobody left")


def test_the_low_tier_that_starves_leaves_and_the_high_one_does_not():
    q = WaitProbe(500, 1000)
    q.push(0, 2, 0, 10_000)
    for t in range(1, 120):
        q.push(t, 0, t, 10_000)
        assert q.next() == t
        q.drop(t, t)
        i = q.overdue(t)
        assert i is None if t < 105 else i == 0


def test_plain_order_knows_no_tiers_and_no_delay():
    q = WaitProbe(6, 6, plain=True)
    for i, tier in enumerate((2, 1, 0, 2, 1)):
        q.push(i, tier, i, 10_000)
    assert q.next() == 0 and q.overdue(5000) is None and q.lower(0) is None


# ---- the limit ----------------------------------------------------------------------------------------------------


class Served:
    """An upstream of `servers`, each `ms` a request, with a queue of its own; in front of it a limit, and a queue that nobody leaves but by
    being served or after `patience` ms. Arrivals at `rate` a second. Time is the simulation's."""

    def __init__(self, servers: int, ms: float, seed: int = 1, spread: bool = False, **limits: int):
        self.limit = LimiterProbe(**limits)
        self.servers, self.ms, self.random, self.spread = servers, ms, random.Random(seed), spread
        self.t = self.inside = self.busy = self.peak = 0
        self.done: list[tuple[float, float]] = []
        self.refused = self.sent = 0
        self.inner: deque[float] = deque()
        self.outer: deque[float] = deque()
        self.heap: list[tuple[float, int, float]] = []

    def serve(self, began: float) -> None:
        took = self.ms * (self.random.lognormvariate(-0.125, 0.5) if self.spread else 1)
        heapq.heappush(self.heap, (self.t + took, len(self.done) + self.sent, began))

    def enter(self) -> None:
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        if self.busy < self.servers:
            self.busy += 1
            self.serve(self.t)
        else:
            self.inner.append(self.t)

    def leave(self, began: float) -> None:
        self.inside -= 1
        self.done.append((self.t, self.t - began))
        self.limit.sample(int((self.t - began) * 1000))
        if self.inner:
            self.serve(self.inner.popleft())
        else:
            self.busy -= 1
        while self.outer and self.inside < int(self.limit.limit):
            if self.t - self.outer.popleft() <= 250:
                self.enter()
            else:
                self.refused += 1

    def run(self, seconds: float, rate: float, most_waiting: int = 512) -> None:
        end, arrival, window = self.t + seconds * 1000, self.t, self.t + 250
        while True:
            arrival += self.random.expovariate(rate) * 1000
            while True:
                due = min(arrival, window, self.heap[0][0] if self.heap else 1e18)
                if due >= end:
                    self.t = end
                    return
                self.t = due
                if due == window:
                    window += 250
                    self.limit.window(self.peak)
                    self.peak = self.inside
                elif due == arrival:
                    break
                else:
                    self.leave(heapq.heappop(self.heap)[2])
            self.sent += 1
            if self.inside < int(self.limit.limit):
                self.enter()
            elif len(self.outer) < most_waiting:
                self.outer.append(self.t)
            else:
                self.refused += 1

    def goodput(self, since_ms: float) -> float:
        return sum(1 for t, _ in self.done if t >= since_ms) / (self.t - since_ms) * 1000


@pytest.mark.parametrize("spread", [False, True])
def test_at_three_times_the_capacity_all_of_it_is_used(spread):
    s = Served(20, 10, spread=spread)
    s.run(20, 1000)  # half
    assert s.refused == 0
    began = s.t
    s.run(20, 6000)
    assert s.goodput(began + 1000) >= 0.95 * 2000
    late = sorted(took for t, took in s.done if t > began + 1000)
    assert late[len(late) // 2] < 5 * 10  # and the upstream's own queue stays short: without a limit it would be seconds
    began = s.t
    s.run(5, 1000)
    recent = sorted(took for t, took in s.done if t > began + 1000)
    assert recent[len(recent) // 2] < 1.5 * 10


def test_a_slowdown_that_load_did_not_make_is_not_cured_by_refusal():
    s = Served(1000, 20)
    s.run(20, 100)
    s.refused = s.sent = 0
    s.ms = 200  # of a sudden, and for a minute, whatever the load
    s.run(60, 100)
    assert s.refused < 0.12 * s.sent
    s.refused = s.sent = 0
    s.run(60, 100)
    assert s.refused == 0 and s.limit.limit > 100 * 0.2  # what the new latency needs


def test_few_samples_make_no_verdict_and_what_is_unused_does_not_grow():
    p = LimiterProbe(64, 8, 1000)
    for _ in range(9):
        p.sample(1000)
    assert p.window(64) == 64 and p.base_us == 0
    p.sample(1000)
    assert p.window(31) == 64 and p.base_us > 0
    for _ in range(10):
        p.sample(1000)
    assert p.window(32) == 65  # 64 + 0.2 * sqrt(64)


def test_the_limit_keeps_its_bounds_and_learns_at_the_floor():
    p = LimiterProbe(64, 8, 100)
    for _ in range(100):
        for _ in range(20):
            p.sample(1000)
        p.window(100)
    assert p.limit == 100
    base, windows = p.base_us, 0
    while p.limit > 8:
        for _ in range(20):
            p.sample(1_000_000)
        p.window(100)
        windows += 1
    assert windows < 60
    for _ in range(4):
        for _ in range(20):
            p.sample(1_000_000)
        p.window(8)
    assert p.base_us > 500 * base  # after five windows at the minimum
    p.window(8)
    for _ in range(20):
        p.sample(1_000_000)
    p.window(8)
    assert p.limit > 8


def test_an_overload_does_not_become_the_normal_however_long():
    """Where the limit is full, latency is what we made of it."""
    p = LimiterProbe(64, 8, 1000)
    for window in range(400):
        under_way = 5 if window < 4 else round(p.limit)
        for _ in range(20):
            p.sample(max(10_000, under_way * 1000))  # ten at once, 10 ms each, the others wait there
        p.window(under_way)
        if window > 44:
            assert p.base_us < 10_500 and 10 < p.limit < 15


def test_a_limit_that_does_not_bind_does_not_shrink():
    p = LimiterProbe(64, 8, 1000)
    for ms in (10, 100, 50, 1000):
        for _ in range(20):
            for _ in range(20):
                p.sample(ms * 1000)
            before = p.limit
            p.window(47)
            assert p.limit >= before


def test_the_limit_comes_back_when_less_load_has_not_helped():
    p = LimiterProbe(64, 8, 1000)
    limits = []
    for ms in [10] * 4 + [100] * 60:
        for _ in range(20):
            p.sample(ms * 1000)
        p.window(round(p.limit))
        limits.append(p.limit)
    low = limits.index(8)
    assert low < 40 and limits[low + 5] >= 64 and min(limits[low + 5 :]) >= 64


def test_shares_of_the_tiers():
    p = LimiterProbe(100, 8, 1000)
    assert [p.share(t) for t in range(3)] == [100, 90, 80]
    assert [LimiterProbe(1, 1, 1).share(t) for t in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("latency_us", [300, 1234, 50_000, 2_000_000])
def test_the_median_is_read_within_its_cell(latency_us):
    p = LimiterProbe()
    for i in range(1000):
        p.sample(latency_us * (500 + i) // 1000)
    assert p.median_us() == pytest.approx(latency_us, rel=0.02)
