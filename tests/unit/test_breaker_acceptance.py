"""What a breaker is held to, whoever has it: a program by itself, one worker, or four that share it."""

from __future__ import annotations

from functools import partial

import pytest

from tests.breakers import Private, Shared, fail


@pytest.fixture(params=[Private, partial(Shared, workers=1), Shared], ids=["private", "one worker", "four workers"])
def World(request):
    return request.param


def test_a1_all_fail_opens_within_a_third_of_a_second(World):
    w = World().healthy()
    t = w.now
    w.run(1, 100, fail("status"))
    at, was, to, why = w.moves[0]
    assert (was, to, why) == ("closed", "open", "failures") and 0.25 <= at - t <= 0.35


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a2_partial_status_failures_refuse_nothing(World, share):
    w = World().healthy()
    w.run(60, 100, lambda r: ("status" if r.random() < share else "ok", 0.01))
    assert w.refused == 0 and w.moves == []


def test_a4_one_request_a_second_opens_within_15_seconds(World):
    w = World().healthy()
    t = w.now
    w.run(20, 1, fail("connect"))
    assert w.moves and w.moves[0][3] == "failures" and w.moves[0][0] - t <= 15


def test_a5_a_blip_changes_nothing(World):
    w = World().healthy()
    w.run(0.2, 100, fail("reset"))
    w.run(20, 100, lambda r: ("ok", 0.01))
    assert w.moves == []


def test_a6_silence_is_a_stall(World):
    w = World().healthy()
    t = w.now
    w.run(8, 100, lambda r: ("timeout", 5.0))
    opened = next(m for m in w.moves if m[2] == "open")
    assert opened[3] in ("stall", "failures") and opened[0] - t <= 5.5
    assert w.snapshot()["probes_in_flight"] <= 3 and not [m for m in w.moves if m[2] == "closed"]


def test_a7_cancels_refuse_nothing(World):
    w = World().healthy()
    w.run(60, 100, lambda r: ("cancel", 0.005) if r.random() < 0.8 else ("ok", 0.02))
    assert w.refused == 0 and w.moves == []


def test_a8_a_new_normal_latency_is_learned(World):
    w = World().healthy()
    w.run(30, 100, lambda r: ("ok", 0.06 + r.random() * 0.02))
    s = w.snapshot()
    assert w.refused == 0 and s["slow_limit_s"] > s["p99_s"] > 0.05


def test_a11_partial_overload_is_shed_in_proportion(World):
    w = World().healthy()
    w.run(20, 100, lambda r: ("overload" if r.random() < 0.6 else "ok", 0.01))
    s = w.snapshot()
    assert s["state"] == "closed" and 0.4 <= s["shed_probability"] <= 0.6


def test_a13_classic_opens_on_latency_with_a_full_pool_never_on_errors(World):
    w = World(score="classic", capacity=100.0)
    w.run(20, 100, fail("status"))
    assert w.snapshot()["state"] == "closed"
    w = World(score="classic", capacity=100.0)
    w.run(20, 180, lambda r: ("ok", 0.55))
    assert any(m[3] == "score" for m in w.moves)


def test_recovery_ramps(World):
    w = World().healthy()
    w.run(10, 100, fail("connect"))
    w.run(30, 100, lambda r: ("ok", 0.01))
    s = w.snapshot()
    assert s["state"] == "closed" and w.moves[-1][3] == "recovered" and s["admit_ratio"] == 1.0 and s["refused_ramp"] > 0
