"""Tiers and ladders in the configuration: what is refused, and what the plan says."""

from __future__ import annotations

from pathlib import Path

import pytest

from gwcore.config.compile_degrade import budget_s, content_type, escape_of
from gwcore.config.degrade import Ladder, template_parts
from gwcore.config.load import ConfigErrors, load_text

BASE = 'listeners: [{address: "127.0.0.1:9999"}]\nupstreams: {be: {endpoints: ["127.0.0.1:1"]}}\n'


def route(tier: str, degrade: str) -> str:
    return f"{BASE}routes: [{{name: a, upstream: be, tier: {tier}, degrade: {degrade}}}]\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (route("P0", "{steps: [live, {static: {body: x}}]}"), "P0 is never degraded"),
        (route("P0", "{steps: [{cache: local}, live]}"), "P0 is never degraded"),
        (route("P1", "{steps: [live, {static: {body: x}}]}"), "P1 falls to copies, never to a static answer"),
        (route("P1", "{budget: 2s}"), "above the latency that P1 promises, 500ms"),
        (route("P1", "{enforce: true}"), "is for P0"),
        (route("P2", "{steps: [live, {static: {file: nope.json}}]}"), "nope.json cannot be read: No such file"),
        (route("P2", "{steps: [live, {static: {template: true, body: '{{pth}}'}}]}"), "did you mean {{path}}?"),
        (route("P2", "{steps: [live, {static: {template: true}}]}"), "needs a body or a file"),
        (route("P2", "{steps: [live, {static: {body: x, file: y}}]}"), "one of body and file"),
        (route("P2", "{steps: [live, {static: {headers: {Age: '1'}}}]}"), "Age is the gateway's"),
        (route("P2", "{steps: [{static: {body: x}}, live]}"), "must be the last one"),
        (route("P2", "{steps: [{static: {body: x}}]}"), "live is missing"),
        (route("P2", "{steps: [live, live]}"), "live stands there 2 times"),
        (route("P2", "{steps: [lve]}"), "is not a step"),
        (route("P2", "{fresh: 10m, usable: 1m}"), "fresh 10m is above usable 1m"),
        (route("P2", "{on_status: [404]}"), "404 is no failure"),
        (BASE + "routes: [{name: a, respond: {}, degrade: {}}]", "the route answers by itself"),
        (BASE + "routes: [{name: a, respond: {}}]\ntiers: {P1: {availability: 100%, latency: 1s}}", "cannot be promised"),
        (BASE + "routes: [{name: a, respond: {}}]\ndegrade: {P3: {}}", "unknown key; known here: P0, P1, P2"),
        (BASE + "routes: [{name: a, respond: {}}]\ntier_header: Host", "means something else"),
    ],
)
def test_what_is_refused(text: str, says: str):
    with pytest.raises(ConfigErrors) as bad:
        load_text(text)
    assert any(says in str(e) for e in bad.value.errors), [str(e) for e in bad.value.errors]


def test_a_file_is_read_when_the_configuration_is(tmp_path: Path):
    (tmp_path / "banner.json").write_text('{"path": "{{path}}"}')
    text = route("P2", "{steps: [live, {static: {file: banner.json, template: true}}]}")
    ladder = load_text(text, base=tmp_path).config.routes[0].degrade
    assert ladder is not None and ladder.static is not None
    (tmp_path / "banner.json").unlink()
    assert template_parts(ladder.static.content.decode()) == [("", '{"path": "'), ("path", ""), ("", '"}')]
    assert content_type(ladder.static) == "application/json" and escape_of("application/json") == 1
    (tmp_path / "banner.json").write_bytes(b"\xff")
    with pytest.raises(ConfigErrors, match="not UTF-8"):
        load_text(text, base=tmp_path)


def test_a_template_in_parts():
    assert template_parts("{{ query.id }}, {{header.accept-language}}!") == [
        ("query", "id"),
        ("", ", "),
        ("header", "accept-language"),
        ("", "!"),
    ]


def test_a_budget_leaves_time_for_the_fallback():
    assert budget_s(Ladder(), 0.1) == pytest.approx(0.095)
    assert budget_s(Ladder(budget="50ms"), 0.1) == pytest.approx(0.05)  # type: ignore[arg-type]
    assert budget_s(Ladder(), 5.0) == pytest.approx(4.75)
