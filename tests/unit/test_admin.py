"""The admin interface without a gateway: who may do what, what is shown, what never is."""

from __future__ import annotations

import asyncio
import json
import re
import time
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from gwcore._speedups.breakers import Breakers
from gwcore._speedups.copystore import CopyStore
from gwcore._speedups.shm import Segment

from gwcore.admin import client, metrics
from gwcore.admin.endpoints import endpoints
from gwcore.admin.figures import Opens, connection_figures
from gwcore.admin.server import build_app
from gwcore.cli import main
from gwcore.compensation import Compensation
from gwcore.config.load import load_text
from gwcore.crew import Plan, Slot
from gwcore.events import Events
from gwcore.health import HealthChecks
from gwcore.sla import Attainment

SECRET = "do-not-tell-anyone"
CONFIG = """
listeners: [{address: "127.0.0.1:8080"}]
upstreams: {be: {endpoints: ["127.0.0.1:9"]}}
routes: [{name: all, upstream: be}]
admin: {address: "127.0.0.1:9901", token: "%s"}
"""


class Gateway(SimpleNamespace):
    """As much of a supervisor as the admin interface sees."""

    def take_events(self):
        for event in self.breakers.events():
            self.events.note(event)

    async def reload(self):
        self.reloaded += 1
        return {"ok": self.good, "version": 2, "errors": [] if self.good else ["gw.yaml:1:1: no"], "warnings": []}


@pytest.fixture
def gateway():
    def make(token: str = "", routes: int = 1) -> Gateway:
        segment = Segment.create(2)
        for i in range(routes):
            segment.slot("route", f"r{i}")
        segment.slot("upstream", "be")
        crew = SimpleNamespace(slots=[Slot(0, pid=11), Slot(1, pid=12)], plan=Plan(1, -1), elders=[], copies=None)
        g = Gateway(
            loaded=load_text(CONFIG % token), config=load_text(CONFIG % token).config, config_path="/etc/gw.yaml", segment=segment, breakers=Breakers(segment), events=Events(),
            crew=crew, discovery=SimpleNamespace(status=dict), tickets=SimpleNamespace(status=dict), certs=SimpleNamespace(status=list), health=SimpleNamespace(watched={}, tallies={}), state="serving", opens=Opens(), attainment=Attainment(), started=1.0, upgrades=0, reloads={"ok": 0, "refused": 0}, last_reload={}, reloaded=0, good=True,
        )  # fmt: skip
        g.compensation = Compensation(g)
        return g

    return make


def ask(gateway: Gateway, path: str, method: str = "GET", query: str = "", **fields: str) -> tuple[int, str]:
    """Status and text of one request to the application."""
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    headers = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in fields.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": headers,
    }
    scope |= {
        "http_version": "1.1",
        "scheme": "http",
        "server": ("a", 1),
        "client": ("b", 2),
        "root_path": "",
        "asgi": {"version": "3.0"},
    }
    asyncio.run(build_app(gateway)(scope, receive, send))
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:]).decode()


def test_sessions_are_forgotten(gateway):
    g = gateway()
    assert ask(g, "/sessions/forget", "POST", origin="http://evil")[0] == 403
    assert ask(g, "/sessions/forget", "POST") == (200, '{"ok":true}')
    assert ask(g, "/sessions/forget")[0] == 405
    assert ask(gateway("t" * 16), "/sessions/forget", "POST")[0] == 401


def test_the_probes(gateway):
    g = gateway()
    assert ask(g, "/healthz") == (200, "ok\n")
    assert ask(g, "/readyz") == (200, "ready\n")
    for state in ("starting", "leaving", "draining"):
        g.state = state
        assert ask(g, "/readyz") == (503, f"{state}\n")
        assert ask(g, "/healthz")[0] == 200


@pytest.mark.parametrize("path, method", [("/metrics", "GET"), ("/status", "GET"), ("/reload", "POST")])
def test_a_token_is_asked_for_everywhere_but_at_the_probes(gateway, path, method):
    g = gateway(SECRET)
    for wrong in ("", "Bearer", "Bearer x", f"bearer {SECRET}", SECRET, f"Bearer {SECRET} ", "Bearer \xff\xfe"):
        assert ask(g, path, method, authorization=wrong)[0] == 401, wrong
    assert ask(g, path, method)[0] == 401
    assert g.reloaded == 0
    assert ask(g, path, method, authorization=f"Bearer {SECRET}")[0] == 200
    assert ask(g, "/readyz")[0] == ask(g, "/healthz")[0] == 200


def test_a_page_in_a_browser_may_not_reload(gateway):
    g = gateway()
    assert ask(g, "/reload", "POST", origin="http://evil.example")[0] == 403
    assert ask(g, "/reload", "POST", origin="null")[0] == 403
    assert ask(g, "/reload", "POST", sec_fetch_site="cross-site")[0] == 403
    assert ask(g, "/reload")[0] == 405
    assert g.reloaded == 0
    assert ask(g, "/reload", "POST")[0] == 200 and g.reloaded == 1


def test_a_refused_reload_says_why(gateway):
    g = gateway()
    g.good = False
    status, text = ask(g, "/reload", "POST")
    assert status == 422 and json.loads(text)["errors"] == ["gw.yaml:1:1: no"]


def test_no_secret_is_shown(gateway):
    g = gateway(SECRET)
    for path in ("/status", "/metrics"):
        status, text = ask(g, path, authorization=f"Bearer {SECRET}")
        assert status == 200 and SECRET not in text


def test_status_is_whole(gateway):
    status = json.loads(ask(gateway(), "/status")[1])
    assert {"version", "pid", "uptime_s", "state", "ready", "config", "plan", "listeners", "warnings", "last_reload", "workers", "workers_draining",
            "reasons", "routes", "upstreams"} <= set(status)  # fmt: skip
    assert [w["pid"] for w in status["workers"]] == [11, 12]
    assert status["upstreams"]["be"]["reuse_ratio"] == status["upstreams"]["be"]["requests_per_connection"] == 0


def test_opens_per_second_are_those_of_the_last_ten():
    opens = Opens()
    assert opens.per_second() == {}
    for second in range(31):
        opens.note(float(second), {"be": second * second, "new": 0} if second > 20 else {"be": second * second})
    assert opens.per_second() == {"be": (30 * 30 - 20 * 20) / 10, "new": 0}


def test_connections_opened_ahead_are_no_requests():
    rtt = {"count": 4, "sum": 0.004, "squares": 4 * 0.001**2 + 4e-8, "variation": 0.0004}
    figures = connection_figures({"opens": 10, "warmed": 4, "raced": 1, "reuses": 15, "rtt": rtt}, 0.5)
    assert figures["requests_per_connection"] == 2 and figures["reuse_ratio"] == 0.75 and figures["opens_per_second"] == 0.5
    assert figures["rtt_mean_seconds"] == 0.001 and figures["rtt_deviation_seconds"] == figures["rtt_variation_seconds"] == 0.0001
    unused = connection_figures({"opens": 4, "warmed": 4, "raced": 0, "reuses": 0, "rtt": dict.fromkeys(rtt, 0)})
    assert set(unused.values()) == {0}


def families(text: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", text))


def test_metrics_are_named_as_promised(gateway):
    text = ask(gateway(), "/metrics")[1]
    kinds = families(text)
    for name, kind in kinds.items():
        assert name.startswith("gwcore_"), name
        assert (kind == "counter") == name.endswith("_total"), name
        assert kind != "histogram" or name.endswith("_seconds"), name
        assert f"# HELP {name} " in text
    assert {
        "gwcore_requests_total",
        "gwcore_failures_total",
        "gwcore_request_seconds",
        "gwcore_upstream_seconds",
        "gwcore_connections",
    } <= set(kinds)


def test_histograms_are_cumulative_and_end_at_infinity(gateway):
    edges = re.findall(r'gwcore_request_seconds_bucket\{le="([^"]+)",route="r0"\} (\S+)', ask(gateway(), "/metrics")[1])
    values = [float(n) for _, n in edges]
    assert edges[-1][0] == "+Inf" and values == sorted(values)
    assert [float(e) for e, _ in edges] == sorted(float(e) for e, _ in edges)


def test_series_are_capped(gateway):
    text = ask(gateway(routes=1500), "/metrics")[1]
    assert sum(not line.startswith("#") for line in text.splitlines()) <= 10_000
    assert 'route="r0"' in text and 'route="other"' in text and 'route="r1499"' not in text


def entry(n: int) -> dict:
    return {"requests": {"2xx": n}, "seconds": {"count": n, "sum": n / 2, "buckets": [[0.1, n], [0.2, 2 * n]]}}


def test_folding_adds_up_and_loses_nothing():
    entries = {f"r{i}": entry(i) for i in range(10)}
    size = 1 + 2 + 3
    assert metrics.fold(entries, 11 * size) == entries
    folded = metrics.fold(entries, 4 * size)
    assert list(folded) == ["r0", "r1", "r2", "other"]
    assert folded["other"] == entry(sum(range(3, 10)))
    assert metrics.fold({}, 10) == {}


def test_folding_never_moves_an_entry_that_had_its_own_series():
    entries = {f"r{i}": entry(1) for i in range(5)}
    first = metrics.fold(entries, 24)
    entries |= {"new": entry(1), "other": entry(7)}
    second = metrics.fold(entries, 24)
    assert set(first) <= set(second) | {"other"}
    assert all(second[name] == first[name] for name in first if name != "other")
    assert second["other"]["requests"]["2xx"] >= 7


def test_each_endpoint_has_a_state_a_reason_and_a_since(gateway):
    async def story() -> None:
        g = gateway()
        text = (
            CONFIG.replace('["127.0.0.1:9"]', '["127.0.0.1:9", {address: "127.0.0.1:8", weight: 0}, "127.0.0.1:7", "b.test:6"]')
            % ""
        )
        g.config = load_text(text).config
        g.discovery = SimpleNamespace(status=lambda: {"b.test": {"failure": "no such name"}})
        g.health = HealthChecks(g.segment, lambda _: [], lambda _: None)
        g.health.use(g.config)
        assert g.health.drain("be", "127.0.0.1:7", True)
        told = {name: (e["state"], e["reason"]) for name, e in endpoints(g)["be"].items()}
        assert told == {
            "127.0.0.1:9": ("up", "not checked"),
            "127.0.0.1:8": ("draining", "weight 0"),
            "127.0.0.1:7": ("draining", "taken out by the admin interface"),
            "b.test:6": ("unresolved", "no such name"),
        }
        tally = g.health.tallies["be", "127.0.0.1:9"]
        tally.failed, tally.last = 3, "connect refused"
        tally.move("down")
        assert (
            endpoints(g)["be"]["127.0.0.1:9"]["reason"]
            == "3 checks failed, last: connect refused; panic, so it gets requests all the same"
        )
        tally.failed = 0
        tally.move("back")
        e = endpoints(g)["be"]["127.0.0.1:9"]
        assert (e["state"], e["reason"]) == ("up", "slow start 10 %") and abs(e["since"] - time.time()) < 60
        text = metrics.render(g).decode()
        assert 'gwcore_endpoint_up{endpoint="127.0.0.1:9",upstream="be"} 1.0' in text
        assert 'gwcore_endpoint_up{endpoint="127.0.0.1:7",upstream="be"} 0.0' in text
        g.health.stop()

    asyncio.run(story())


def test_an_ejected_endpoint_says_what_was_held_against_it(gateway):
    async def story() -> None:
        g = gateway()
        text = CONFIG.replace('["127.0.0.1:9"]', '["127.0.0.1:9", "127.0.0.1:8", "127.0.0.1:7"], health: {panic: 0.3}') % ""
        g.config = load_text(text).config
        g.health = HealthChecks(g.segment, lambda _: [], g.events.note)
        g.health.use(g.config)
        figures = {
            "127.0.0.1:9": {
                "state": "open",
                "why": "failures",
                "failure_ratio": 0.9,
                "since_s": 3.0,
                "forced": None,
                "open_remaining_s": 2.0,
            },
            "127.0.0.1:8": {"state": "closed", "failure_ratio": 0.01},
        }
        g.breakers = SimpleNamespace(snapshot=lambda _, place: figures.get(place), events=list)
        event = {"at": 1.0, "event": "breaker", "upstream": "be", "endpoint": "127.0.0.1:9", "from": "closed", "to": "open"}
        g.events.note({**event, "reason": "failures", "failure_ratio": 0.87, "calls": 40.2})
        told = endpoints(g)["be"]["127.0.0.1:9"]
        assert told["state"] == "ejected"
        assert told["reason"] == "failures: 87 % of 40 calls failed, siblings 1 %; next try in 2.0 s"
        assert abs(told["since"] - time.time() + 3) < 1
        figures["127.0.0.1:9"].update(state="half_open")
        assert endpoints(g)["be"]["127.0.0.1:9"]["reason"].endswith("; probing")
        figures["127.0.0.1:9"].update(state="open", forced="open")
        for name in ("127.0.0.1:8", "127.0.0.1:7"):
            g.health.tallies["be", name].move("down")
        assert (
            endpoints(g)["be"]["127.0.0.1:9"]["reason"]
            == "forced open by the admin interface; panic, so it gets requests all the same"
        )
        g.health.stop()

    asyncio.run(story())


def test_an_endpoint_is_drained_and_taken_back(gateway):
    g = gateway()
    g.health = HealthChecks(g.segment, lambda _: [], lambda _: None)
    g.health.use(g.config)
    where = "upstream=be&endpoint=127.0.0.1:9"
    assert ask(g, "/endpoints/drain", "POST", where, origin="http://evil")[0] == 403
    assert ask(g, "/endpoints/drain", "POST", "upstream=be&endpoint=1.2.3.4:5")[0] == 404
    assert ask(g, "/endpoints/drain", "POST", where)[0] == 200
    assert endpoints(g)["be"]["127.0.0.1:9"]["state"] == "draining"
    assert ask(g, "/endpoints/undrain", "POST", where)[0] == 200
    assert endpoints(g)["be"]["127.0.0.1:9"]["state"] == "up"


# ---- copies ----


@pytest.fixture
def caching(gateway):
    g = gateway(SECRET)
    g.crew.copies = CopyStore.create(1 << 20, 2)
    for url, tags in (("http://a/x", b"one"), ("http://a/x?y=1", b"one two"), ("https://b/", b"two")):
        key = b"route\0" + url.encode()
        assert g.crew.copies.put(key, b"body", b"", tags, url=(6, len(url))) == "stored"
    return g


def purged(g, query: str) -> tuple[int, str]:
    return ask(g, "/cache/purge", "POST", query, authorization=f"Bearer {SECRET}")


@pytest.mark.parametrize(
    ("query", "n"),
    [
        ("url=http://a/x", 1),
        ("url=HTTP://A/x%23part", 1),
        ("url=https://b", 1),
        ("url=http://a/", 0),
        ("prefix=http://a/x", 2),
        ("tag=one&tag=two", 3),
        ("prefix=", 3),
    ],
)
def test_copies_are_purged_by_address_prefix_and_tag(caching, query, n):
    status, text = purged(caching, query)
    assert status == 200 and json.loads(text) == {"ok": True, "purged": n}
    assert caching.crew.copies.figures()["copies"] == 3 - n


@pytest.mark.parametrize("query", ["", "url=a/x", "path=/x", "tag=one&path=/x", "url="])
def test_a_purge_that_is_not_understood_purges_nothing(caching, query):
    assert purged(caching, query)[0] == 400
    assert caching.crew.copies.figures()["copies"] == 3


def test_a_purge_needs_the_token_and_no_browser(caching, gateway):
    assert ask(caching, "/cache/purge", "POST", "prefix=")[0] == 401
    assert ask(caching, "/cache/purge", "POST", "prefix=", authorization=f"Bearer {SECRET}", origin="http://evil")[0] == 403
    assert ask(gateway(), "/cache/purge", "POST", "prefix=")[0] == 404


def test_figures_of_copies_are_in_status_and_metrics(caching, gateway):
    assert json.loads(ask(caching, "/cache", authorization=f"Bearer {SECRET}")[1])["copies"] == 3
    assert json.loads(ask(caching, "/status", authorization=f"Bearer {SECRET}")[1])["cache"]["results"]["stored"] == 3
    text = ask(caching, "/metrics", authorization=f"Bearer {SECRET}")[1]
    assert "gwcore_cache_copies 3.0" in text and 'gwcore_cache_copies_total{event="stored"} 3.0' in text
    assert json.loads(ask(gateway(), "/cache")[1]) == {} and "gwcore_cache_copies" not in ask(gateway(), "/metrics")[1]


def test_commands_purge_and_show_copies(caching, monkeypatch, tmp_path):
    """`gwcore cache`, with the admin interface in this process."""
    path = tmp_path / "gw.yaml"
    path.write_text(CONFIG % SECRET)

    def here(admin, what: str, method: str = "GET") -> tuple[int, str]:
        route, _, query = what.partition("?")
        return ask(caching, route, method, query, authorization=f"Bearer {admin.token}")

    monkeypatch.setattr(client, "ask", here)
    cli = CliRunner()
    result = cli.invoke(main, ["cache", "stats", "-c", str(path)])
    assert result.exit_code == 0 and result.output.startswith("copies     3 in "), result.output
    result = cli.invoke(main, ["cache", "purge", "-c", str(path), "--url", "http://a/x?y=1", "--tag", "two"])
    assert (result.exit_code, result.output) == (0, "2 copies purged\n")
    result = cli.invoke(main, ["cache", "stats", "--json", "-c", str(path)])
    assert json.loads(result.output)["copies"] == 1
    assert cli.invoke(main, ["cache", "purge", "-c", str(path), "--url", "nowhere"]).exit_code == 1
    assert cli.invoke(main, ["cache", "purge", "-c", str(path)]).exit_code == 2
