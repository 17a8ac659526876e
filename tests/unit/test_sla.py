"""Windows of kept promises, against a count by hand; their state file; the operator's switch; commands."""

from __future__ import annotations

import json
import random

import pytest
from click.testing import CliRunner

from gwcore import sla
from gwcore.admin import client
from gwcore.cli import main
from gwcore.config.tiers import Tiers
from gwcore.sla import WINDOWS, Attainment, figures, read_state, table, write_state
from tests.unit.test_admin import CONFIG, SECRET, ask, gateway  # noqa: F401

TIERS = Tiers()


def counts(met: int = 0, late: int = 0, degraded: int = 0, failed: int = 0, tier: str = "P1", route: str = "r") -> dict:
    return {route: {tier: {"met": met, "late": late, "degraded": degraded, "failed": failed}}}


def test_figures():
    f = figures([990, 0, 0, 10], "P2", 0.99)
    assert (f["attainment"], f["burn_rate"], f["budget_left"]) == (0.99, 1.0, 0.0)
    f = figures([0, 0, 10, 0], "P2", 0.99)
    assert (f["attainment"], f["degraded"], f["budget_left"]) == (1.0, 1.0, 1.0)
    assert figures([0, 0, 10, 0], "P0", 0.99)["attainment"] == 0.0
    assert figures([0, 0, 0, 0], "P1", 0.99)["attainment"] is None
    assert figures([5, 5, 0, 0], "P1", 0.99)["burn_rate"] == 50.0


@pytest.mark.parametrize("seed", range(5))
def test_a_window_is_off_by_a_note_at_most(seed: int):
    rng = random.Random(seed)
    a, total, history = Attainment(), 0, []
    now = 1e9
    for _ in range(3000):
        now += rng.choice((1, 15, 40, 400))
        total += rng.randrange(10)
        if a.due(now):
            a.note(now, counts(met=total))
        history.append((now, total))
    a.take(now, counts(met=total))
    for name, (span, between) in WINDOWS.items():
        got = a.window(name)["r", "P1"][0]
        slack = between + 15 + 400
        longest = total - max((n for at, n in history if at <= now - span - slack), default=0)
        shortest = total - max((n for at, n in history if at <= now - span + slack), default=history[0][1])
        assert shortest <= got <= longest, name
        assert len(a.notes[name]) <= span / between + 2


def test_a_route_that_comes_later_and_the_clock_set_back():
    a = Attainment()
    a.note(1000, counts(met=10))
    a.note(1020, {**counts(met=10), **counts(failed=3, route="new")})
    assert a.window("5m") == {("new", "P1"): [0, 0, 0, 3]}  # what was there before the first note is not within a window
    a.note(500, counts(met=30))
    a.take(510, counts(met=35))
    assert a.window("1h")["r", "P1"] == [5, 0, 0, 0]


def test_state_outlives_a_restart(tmp_path):
    path = str(tmp_path / "sla.json")
    a = Attainment()
    assert read_state(a, path) == ""
    a.note(1000, counts())
    a.note(1100, counts(met=90, failed=10))
    assert write_state(a, path) == ""
    b = Attainment()
    assert read_state(b, path) == ""
    b.note(1200, counts(met=5, tier="P2"))  # another gateway counts from 0
    b.take(1300, {"r": {"P1": {"met": 10}, "P2": {"met": 5}}})
    assert b.window("1h") == {("r", "P1"): [100, 0, 0, 10], ("r", "P2"): [5, 0, 0, 0]}
    for bad in (
        "",
        "{}",
        '{"version": 1, "keys": [["r"]], "now": [], "notes": {}, "at": 1}',
        "[1]",
        '{"version":1,"keys":[],"now":[-1],"notes":{},"at":1}',
    ):
        (tmp_path / "bad").write_text(bad)
        c = Attainment()
        assert "is passed over" in read_state(c, str(tmp_path / "bad")) and not c.keys
    assert "cannot be written" in write_state(a, str(tmp_path / "no" / "sla.json"))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["bad", "sla.json"]


def test_the_table():
    a = Attainment()
    a.note(0, {})
    assert table(a.report(TIERS)) == "no requests yet"
    a.take(10, counts(met=999, failed=1))
    lines = table(a.report(TIERS), "1h").splitlines()
    assert len(lines) == 3 and lines[1].split()[:3] == ["P1", "(all)", "1h"] and "99.900%" in lines[2]


def test_the_switch(gateway):  # noqa: F811
    g = gateway()
    assert ask(g, "/degrade", "POST", "upstream=be&for=10m")[0] == 200
    assert ask(g, "/degrade", "POST", "tier=P2&for=1h")[0] == 200
    assert [(k, n) for k, n, _ in g.segment.switches()] == [("upstream", "be"), ("tier", "P2")]
    assert ask(g, "/degrade", "POST", "upstream=be&for=20m")[0] == 200
    on = json.loads(ask(g, "/status")[1])["degrade"]
    assert [(x["kind"], x["name"]) for x in on] == [("upstream", "be"), ("tier", "P2")] and 1190 < on[0]["remaining_s"] <= 1200
    assert 'gwcore_degrade_switched{kind="tier",name="P2"} 1.0' in ask(g, "/metrics")[1]
    assert ask(g, "/degrade", "POST", "upstream=be&state=off")[0] == 200
    assert len(json.loads(ask(g, "/status")[1])["degrade"]) == 1
    assert [e["event"] for e in g.events.list()] == ["degrade_switched"] * 4
    for query, status in (
        ("", 422), ("tier=P2", 422), ("tier=P2&for=0", 422), ("tier=P2&for=8d", 422), ("tier=P2&upstream=be&for=1m", 422),
        ("tier=P2&for=1m&state=off", 422), ("tier=P0&for=1m", 404), ("tier=P7&for=1m", 404), ("route=no&for=1m", 404), ("route=all&for=1m", 404),
        ("upstream=no&for=1m", 404), ("tier=P2&for=soon", 422),
    ):  # fmt: skip
        assert ask(g, "/degrade", "POST", query)[0] == status, query
    assert ask(g, "/degrade", "POST", "tier=P2&for=1m", origin="http://evil")[0] == 403
    assert ask(gateway(SECRET), "/degrade", "POST", "tier=P2&for=1m")[0] == 401


def test_commands(gateway, monkeypatch, tmp_path):  # noqa: F811
    g = gateway()
    path = tmp_path / "gw.yaml"
    path.write_text(CONFIG % "")

    def here(admin, what: str, method: str = "GET") -> tuple[int, str]:
        route, _, query = what.partition("?")
        return ask(g, route, method, query)

    monkeypatch.setattr(client, "ask", here)
    cli = CliRunner()
    g.attainment.note(0, {})

    def run(*args: str) -> tuple[int, str]:
        result = cli.invoke(main, [*args, "-c", str(path)])
        return result.exit_code, "".join(x for x in result.output.splitlines(True) if not x.startswith('{"serial"'))  # an event

    assert run("sla") == (0, "no requests yet\n")
    assert json.loads(run("sla", "--json")[1])["tiers"]["P0"]["availability"] == 0.9999
    assert run("degrade") == (0, "nothing is switched\n")
    assert run("degrade", "--tier", "P2", "--for", "2h") == (0, "tier P2: for 2h\n")
    assert run("degrade", "--tier", "P2", "--off") == (0, "nothing is switched\n")
    assert run("degrade", "--tier", "P2")[0] == 2 and run("degrade", "--tier", "P2", "--upstream", "be", "--off")[0] == 2
    assert sla.OUTCOMES == ("met", "late", "degraded", "failed")
