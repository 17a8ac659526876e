"""The figures of bench/resilience: what counts as lost, when a fault is detected, when all is well again."""

from __future__ import annotations

import pytest

from bench.resilience import report
from bench.resilience.figures import figures
from bench.resilience.scenarios import HANG, SCENARIOS
from bench.resilience.world import Request, requests


def plan(outcomes: str, start: float = 0.0, step: float = 0.1) -> list[Request]:
    """A request every `step`: `+` ok, `-` failed, `x` refused, `.` left; they reach endpoint 1."""
    out = []
    for i, c in enumerate(outcomes):
        r = Request(start + i * step, 0.5, c == ".")
        r.status = 200 if c == "+" else 503
        if c != "x":
            r.reached.append((r.due, 1))
        out.append(r)
    return out


def test_refused_is_what_no_endpoint_saw():
    s = SCENARIOS["all-503"]
    f = figures(s, plan("--xx" + "x" * 16 + "xx++" * 5), 2.0, 2.0)
    assert (f.sent, f.failed, f.refused) == (40, 2, 28)
    assert f.refused_good == 10  # those after the fault
    assert f.lost == 12
    assert f.detect_s == pytest.approx(0.2)
    assert f.recover_s is None  # every second has some


def test_recovered_when_no_second_has_more_than_a_few():
    s = SCENARIOS["all-503"]
    f = figures(s, plan("x" * 20 + "x" * 10 + "+" * 40), 2.0, 5.0)
    assert 1 <= f.recover_s <= 2
    assert figures(s, plan("x" * 20 + "+" * 50), 2.0, 5.0).recover_s == 0


def test_one_sick_endpoint_is_detected_when_it_gets_nothing():
    s = SCENARIOS["one-500"]
    p = plan("+" * 50)
    for r in p[:12]:
        r.reached = [(r.due, 0)]
    assert figures(s, p, 5.0, 0.0).detect_s == pytest.approx(1.1)
    for r in p:
        r.reached = [(r.due, 0)]
    assert figures(s, p, 5.0, 0.0).detect_s is None


def test_who_leaves_and_who_waits_too_long():
    p = plan("+.+")
    p[2].took = 11
    assert [r.outcome for r in p] == ["ok", "left", "failed"]


def test_a_refused_request_is_as_good_as_the_endpoints_were():
    assert SCENARIOS["one-500"].chance(1, 60, 0.5) == 0.9
    assert SCENARIOS["one-hangs"].chance(1, 60, 0.5) == 0.9
    assert SCENARIOS["all-503"].chance(1, 60, 0.5) == 0
    assert SCENARIOS["all-503"].chance(61, 60, 0.5) == 1
    assert SCENARIOS["errors-30"].chance(1, 60, 0.2) == 0
    assert SCENARIOS["errors-30"].chance(1, 60, 0.4) == 1
    assert SCENARIOS["partition"].does(1, 60, 3, 0.5)[0] == HANG
    assert SCENARIOS["regime"].does(100, 60, 3, 0.5)[1] == SCENARIOS["regime"].does(1, 60, 3, 0.5)[1]


def test_every_gateway_gets_the_same_requests():
    s = SCENARIOS["cancels"]
    a, b = requests(s, 5, 10, 5), requests(s, 5, 10, 5)
    assert a == b
    assert 1500 < len(a) < 2500
    assert all(0 <= r.due < 10 for r in a if r.leaves)


def test_the_check_names_what_is_over_and_who_is_ahead(capsys):
    own = {"lost": 300.0, "failed": 100, "refused_good": 200.0, "detect_s": 0.3, "recover_s": 6.0}
    good = {"all-503": {"gateways": {"gwcore": own, "envoy": {**own, "lost": 295.0}}}}
    assert report.check(good) == 0
    assert "no peer is ahead" in capsys.readouterr().out
    bad = {"all-503": {"gateways": {"gwcore": {**own, "failed": 500, "recover_s": None}, "envoy": {**own, "lost": 20.0}}}}
    assert report.check(bad) == 1
    told = capsys.readouterr().out
    assert "failed 500, at most 120" in told
    assert "recover_s none, at most 10" in told
    assert "envoy is ahead of gwcore: lost 20 to 300" in told
