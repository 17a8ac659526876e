"""The rules of retries and their budget, without sockets."""

from __future__ import annotations

import pytest
from gwcore._speedups.budget import budget_trace
from gwcore._speedups.retry import ON, verdict, wait_ms
from gwcore._speedups.shm import reasons
from hypothesis import given
from hypothesis import strategies as st

REASON = {word: i for i, word in enumerate(reasons())}


# ---- what may be sent again


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "go"),
        ({"on": ON["connect"] | ON["stale"]}, "unasked"),
        ({"begun": True}, "begun"),
        ({"made": 1}, "spent"),
        ({"made": 1, "extra": 2}, "go"),
        ({"extra": 0}, "spent"),
        ({"idempotent": False}, "unsafe"),
        ({"idempotent": False, "sent": False}, "go"),
        ({"lost": True}, "lost"),
        ({"hop": 2}, "layer"),
        ({"tier": 2, "level": 1}, "degraded"),
        ({"tier": 2}, "go"),
        ({"tier": 1, "level": 2}, "go"),
        ({"left_ms": 100}, "go"),
        ({"left_ms": 100, "wait_ms": 20, "usual_ms": 80}, "late"),
        ({"left_ms": 100, "wait_ms": 20, "usual_ms": 79}, "go"),
        ({"left_ms": 100, "after_ms": 101}, "late"),
        ({"after_ms": 3_600_000}, "go"),
        ({"left_ms": 0}, "late"),
    ],
)
def test_each_rule_by_itself(given, word):
    assert verdict(**{"reason": REASON["response_timeout"], **given}) == word


def test_an_answer_of_another_gateway_passes():
    assert verdict(status=503, inner=True) == "layer"
    assert verdict(status=503) == "go"


@pytest.mark.parametrize("status", [200, 304, 400, 404, 408, 501, 505, 599])
def test_other_statuses_are_no_failures(status):
    assert verdict(status=status) == "unasked"


def test_every_reason_falls_under_one_kind_or_none():
    kinds = {}
    for word, number in REASON.items():
        if word != "-":
            kinds[word] = [k for k, bit in ON.items() if verdict(reason=number, on=bit) == "go"]
    assert {w: k for w, k in kinds.items() if k} == {
        "connect_refused": ["connect"],
        "connect_failed": ["connect"],
        "connect_timeout": ["connect"],
        "upstream_tls": ["connect"],
        "upstream_tls_verify": ["connect"],
        "upstream_reset": ["reset"],
        "upstream_write_timeout": ["timeout"],
        "response_timeout": ["timeout"],
    }


def test_back_off_is_drawn_from_zero_to_a_bound_that_doubles():
    top = 1 - 2**-53
    assert [wait_ms(25, 250, k, top) for k in range(6)] == [24, 49, 99, 199, 249, 249]
    assert {wait_ms(25, 250, k, 0.0) for k in range(40)} == {0}
    assert wait_ms(25, 250, 200, top) == 249 and wait_ms(0, 250, 3, top) == 0


# ---- the budget


def test_it_begins_with_ten_quiet_seconds():
    assert budget_trace(200, 3, [(1000, 0, 100)])[0][0] == 30


def test_first_attempts_and_seconds_pay():
    got = budget_trace(200, 3, [(1000, 0, 100), (2000, 100, 100), (2010, 100, 100), (3000, 100, 100)])
    assert [n for n, _ in got] == [30, 23, 0, 3]


def test_no_more_is_kept_than_ten_seconds_bring():
    # 100 a second for an hour: at most 10 s of 20 + 3
    assert 190 <= budget_trace(200, 3, [(0, 0, 0), (3_600_000, 360_000, 10**4)])[1][0] <= 230
    # an hour of silence: those of ten seconds
    assert budget_trace(200, 3, [(0, 0, 100), (3_600_000, 0, 100)])[1][0] == 30


def test_what_was_there_at_its_beginning_is_not_paid_for_again():
    assert budget_trace(1000, 0, [(1000, 10**6, 50), (2000, 10**6 + 50, 90)])[1][0] in range(45, 51)


def test_a_count_that_goes_back_takes_nothing_away():
    assert [n for n, _ in budget_trace(1000, 0, [(1, 100, 9), (1000, 90, 9), (2000, 110, 99)])][:2] == [0, 0]


def test_looking_at_it_changes_nothing():
    looks = [(t, t // 10, 0) for t in range(0, 9000, 100)]
    quiet = budget_trace(200, 3, [(0, 0, 100), (9000, 900, 100)])
    looked = budget_trace(200, 3, [(0, 0, 100), *looks[1:], (9000, 900, 100)])
    assert quiet[-1] == looked[-1]


@given(
    ratio=st.integers(0, 1000),
    per_s=st.integers(0, 50),
    steps=st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 5000), st.integers(0, 50)), max_size=60),
)
def test_retries_never_cost_more_than_was_deposited(ratio, per_s, steps):
    now = firsts = 0
    events = [(1, 0, 0)]
    for dt, n, wanted in steps:
        now, firsts = now + dt, firsts + n
        events.append((1 + now, firsts, wanted))
    granted = sum(n for n, _ in budget_trace(ratio, per_s, events))
    assert granted <= ratio / 1000 * firsts + per_s * now / 1000 + per_s * 10 + 0.001
