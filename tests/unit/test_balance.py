"""Which worker accepts for which other: decided from shares of a CPU, without clocks or processes."""

from __future__ import annotations

import os

from gwcore.balance import CALM_LOOKS, Balance, cpu_s


def test_the_least_busy_worker_helps_the_busiest_until_it_is_like_the_others():
    b = Balance()
    assert b.look([0.9, 0.2, 0.1, 0.3]) == ([(0, 2)], [])
    assert b.look([0.9, 0.2, 0.3, 0.3]) == ([], [])  # once is enough
    for _ in range(CALM_LOOKS - 1):
        assert b.look([0.2, 0.2, 0.2, 0.2]) == ([], [])
    assert b.look([0.9, 0.2, 0.2, 0.2]) == ([], [])  # busy again: the count of calm looks starts anew
    for _ in range(CALM_LOOKS - 1):
        assert b.look([0.2, 0.2, 0.2, 0.2]) == ([], [])
    assert b.look([0.2, 0.2, 0.2, 0.2]) == ([], [(0, 2)])
    assert b.loans == {}


def test_an_even_load_and_an_idle_machine_need_no_help():
    b = Balance()
    for shares in ([0.9, 0.8, 0.85, 0.7], [0.2, 0.01, 0.0, 0.0], [0.9], [], [None, None]):
        assert b.look(shares) == ([], [])


def test_nobody_helps_while_it_is_helped_and_two_have_two_helpers():
    b = Balance()
    begun, _ = b.look([0.9, 0.8, 0.05, 0.1])
    assert begun == [(0, 2), (1, 3)]
    assert b.look([0.9, 0.8, 0.05, 0.1]) == ([], [])


def test_a_helper_that_is_gone_or_busier_than_its_lender_helps_no_more():
    b = Balance()
    b.look([0.9, 0.1, 0.2])
    assert b.look([0.9, None, 0.2]) == ([(0, 2)], [(0, 1)])
    assert b.look([0.3, 0.1, 0.6])[1] == [(0, 2)]


def test_a_lender_that_died_keeps_its_helper_until_its_successor_is_judged():
    b = Balance()
    b.look([0.9, 0.1, 0.1])
    for _ in range(CALM_LOOKS - 1):
        assert b.look([None, 0.1, 0.1]) == ([], [])
    assert b.look([None, 0.1, 0.1]) == ([], [(0, 1)])


def test_the_clock_of_a_process():
    assert (cpu_s(os.getpid()) or 0) > 0
    assert cpu_s(2**22 + 1) is None  # beyond the highest number that a process can have
