"""Active checks: how verdicts come about, what a check asks for and what it says when it fails, against real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gwcore._speedups.shm import Segment

from gwcore.checks import Checker, CheckFailed, same_name
from gwcore.config import certs
from gwcore.config.health import Health, status_range
from gwcore.config.load import ConfigErrors, load_text
from gwcore.config.places import places
from gwcore.health import HealthChecks, Tally, attempt
from tests.support import SLACK, free_port
from tests.tls import CA, OTHER_CA

# ---- verdicts


def verdicts(text: str, **settings: Any) -> list[str]:
    """The state after each check; `+` passes, `-` fails."""
    tally, health = Tally(), Health(**settings)
    out = []
    for c in text:
        tally.note("" if c == "+" else "status 500", health)
        out.append(tally.state)
    return out


def test_three_failures_in_a_row_are_down_and_two_passes_up_again():
    assert verdicts("+--+---++") == ["up", "up", "up", "up", "up", "up", "down", "down", "back"]
    assert verdicts("--+") == ["unknown", "unknown", "up"]
    assert verdicts("---+-++-") == ["unknown", "unknown", "down", "down", "down", "down", "back", "back"]
    assert verdicts("-+", fall=1, rise=1) == ["down", "back"]


def test_a_reason_says_how_many_and_why():
    tally, health = Tally(), Health()
    for why in ("connect refused", "status 500", "status 503"):
        tally.note(why, health)
    assert tally.reason() == "3 checks failed, last: status 503"
    tally.note("", health)
    assert tally.reason() == "1 passed since the last: status 503"
    tally.note("", health)
    assert (tally.state, tally.reason(), tally.checks, tally.failures) == ("back", "checks pass", 5, 3)


# ---- configuration


def upstream(health: str, more: str = "", endpoint: str = "127.0.0.1:1") -> Any:
    text = f"listeners: [{{address: '127.0.0.1:1'}}]\nroutes: [{{upstream: u}}]\nupstreams: {{u: {{endpoints: ['{endpoint}'], health: {health}{more}}}}}"
    return load_text(text).config.upstreams["u"]


def test_a_path_makes_it_http():
    assert upstream("{path: /healthz}").health.kind == "http"
    assert upstream("{type: tcp}").health.kind == "tcp"
    assert upstream("{interval: 1s}").health.kind == ""
    assert upstream("off").health is None
    assert upstream("{type: http}").health.ranges == [range(200, 400)]
    assert upstream("{path: /, status: [200, 300-301]}").health.ranges == [range(200, 201), range(300, 302)]
    assert upstream("{path: /, status: 204}").health.status == ["204"]


@pytest.mark.parametrize(
    ("health", "word"),
    [
        ("{path: healthz}", "begins with /"),
        ("{path: '/a b'}", "no path"),
        ("{path: '/', host: \"a\\r\\nX: y\"}", "no host"),
        ("{path: /, status: [2xx]}", "200-299"),
        ("{path: /, status: [300-200]}", "200-299"),
        ("{path: /, status: []}", "at least 1"),
        ("{type: tcp, path: /}", "for checks of type http"),
        ("{type: tls}", "needs tls of the upstream"),
        ("{path: /, method: HEAD, body: ok}", "no body"),
        ("{path: /, fall: 0}", "greater than or equal to 1"),
        ("{path: /, interval: 1ms}", "50ms|greater"),
        ("{pth: /}", "did you mean path"),
    ],
)
def test_what_makes_no_sense_is_refused(health, word):
    import re

    with pytest.raises(ConfigErrors) as refused:
        upstream(health)
    assert re.search(word, str(refused.value.errors[0])), refused.value.errors


@pytest.mark.parametrize("text", ["", "20", "600", "200-", "-200", "200-30", "abc", "2000"])
def test_no_status(text):
    with pytest.raises(ValueError, match="is no status"):
        status_range(text)


def test_names_of_certificates():
    assert same_name(["a.test"], "A.test.")
    assert same_name(["*.test"], "a.test")
    assert not same_name(["*.test"], "b.a.test")
    assert not same_name(["*.test"], "test")
    assert same_name(["127.0.0.1"], "127.0.0.1")
    assert not same_name(["*.0.0.1"], "127.0.0.1")
    assert not same_name([], "a.test")


# ---- checks

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


def says(answer: bytes, *, then: bool = True) -> Handler:
    """An upstream that answers one request, then closes (or not)."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError):
            handler.asked.append(await reader.readuntil(b"\r\n\r\n"))  # type: ignore[attr-defined]
        writer.write(answer)
        if then:
            await writer.drain()
            writer.close()
        else:
            with contextlib.suppress(asyncio.CancelledError):
                await reader.read()

    handler.asked = []  # type: ignore[attr-defined]
    return handler


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await reader.read()
    writer.close()


async def blunt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.test ESMTP\r\n" * 100)
    writer.close()


def check(
    handler: Handler | None, health: str, more: str = "", context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> str:
    """One check of an upstream: why it failed."""

    async def run() -> str:
        port = free_port()
        server = await asyncio.start_server(handler, "127.0.0.1", port, ssl=context) if handler else None
        u = upstream(health, more, f"{host}:{port}")
        checker = Checker(u, u._material or certs.Material())
        try:
            return await attempt(checker, places("u", u, lambda _: ["127.0.0.1"])[0])
        finally:
            if server:
                server.close()

    return asyncio.run(run())


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("answer", "health", "why"),
    [
        (OK, "{path: /}", ""),
        (OK, "{path: /, body: ok}", ""),
        (OK, "{path: /, body: fine}", "no 'fine' in the body of status 200"),
        (OK, "{path: /, status: 204}", "status 200"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "{path: /}", "status 503"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "{path: /, status: [500-599]}", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, "{path: /, body: ok}", ""),
        (b"HTTP/1.0 200 OK\r\n\r\nabc ok", "{path: /, body: ok}", ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", "{path: /, body: ok}", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", "{path: /}", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "{path: /, method: HEAD}", ""),
        (b"SSH-2.0-OpenSSH\r\n", "{path: /}", "the answer is not HTTP/1.1"),
        (b"", "{path: /}", "closed without an answer"),
        (b"HTTP/1.1 20", "{path: /}", "closed without an answer"),
        (OK, "{type: tcp}", ""),
    ],
)
def test_answers(answer, health, why):
    got = check(says(answer), health)
    assert got.startswith(why) and bool(got) == bool(why), got


def test_an_endless_body_is_not_read_for_ever():
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"x" * 4096)
                await writer.drain()

    assert check(endless, "{path: /, body: ok}").startswith("no 'ok' in the body")


def test_what_is_sent():
    handler = says(OK)
    assert check(handler, "{path: /live?x=1, host: a.example}") == ""
    assert handler.asked[0].startswith(b"GET /live?x=1 HTTP/1.1\r\nHost: a.example\r\n")  # type: ignore[attr-defined]
    handler = says(OK)
    assert check(handler, "{path: /}", ", host: b.example") == ""
    assert b"\r\nHost: b.example\r\n" in handler.asked[0]  # type: ignore[attr-defined]
    handler = says(OK)
    assert check(handler, "{path: /, method: HEAD}", ", proxy_protocol: v1, pool: {granularity: template}") == ""
    assert handler.asked[0].startswith(b"PROXY UNKNOWN\r\nHEAD / HTTP/1.1\r\nHost: 127.0.0.1:")  # type: ignore[attr-defined]


@pytest.mark.parametrize("health", ["{path: /, timeout: 50ms}", "{path: /, timeout: 50ms, body: x}"])
def test_silence_is_a_timeout(health):
    assert check(silent, health) == "answer timeout"
    assert check(says(OK[:30], then=False), health).startswith("answer timeout")


def test_nobody_there():
    assert check(None, "{type: tcp}") == "connect refused"


def test_a_unix_socket(tmp_path: Path):
    async def run() -> list[str]:
        path = tmp_path / "s"
        u = upstream("{path: /}", endpoint=f"unix:{path}")
        place = places("u", u, lambda _: [])[0]
        checker = Checker(u, certs.Material())
        before = await attempt(checker, place)
        async with await asyncio.start_unix_server(says(OK), path):
            return [before, await attempt(checker, place)]

    assert asyncio.run(run()) == ["no such file or directory", ""] or asyncio.run(run())[1] == ""


def test_a_name_without_addresses():
    u = upstream("{path: /}", endpoint="be.test:80")
    place = places("u", u, lambda _: [])[0]
    assert asyncio.run(attempt(Checker(u, certs.Material()), place)) == "be.test does not resolve"


def test_the_other_family_is_tried():
    async def run() -> str:
        port = free_port()
        async with await asyncio.start_server(says(OK), "127.0.0.1", port):
            u = upstream("{path: /}", endpoint=f"be.test:{port}")
            place = places("u", u, lambda _: ["::1", "127.0.0.1"])[0]
            assert place.ip == "::1"
            assert place.other == "127.0.0.1"
            return await attempt(Checker(u, certs.Material()), place)

    assert asyncio.run(run()) == ""


def server_context(*names: str, ca: Any = CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    return context


def test_tls(tmp_path: Path):
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = f", tls: {{ca: {tmp_path}/ca.pem"
    for health in ("{path: /}", "{type: tls}"):
        assert check(says(OK), health, tls + "}", server_context("127.0.0.1")) == ""
        assert check(says(OK), health, tls + "}", server_context("a.test"), host="a.test") == ""
        assert check(says(OK), health, tls + ", name: a.test}", server_context("a.test")) == ""
        assert check(says(OK), health, tls + ", name: a.test, sni: b.test}", server_context("*.test")) == ""
        assert (
            check(says(OK), health, tls + "}", server_context("a.test"))
            == "tls: the certificate is for a.test, not for 127.0.0.1"
        )
        assert "certificate not verified" in check(says(OK), health, tls + "}", server_context("127.0.0.1", ca=OTHER_CA))
        assert check(says(OK), health, ", tls: {verify: off}", server_context("x", ca=OTHER_CA)) == ""
    assert check(blunt, "{type: tls}", tls + "}") == "tls: wrong version number"
    assert check(silent, "{type: tls, timeout: 100ms}", tls + "}") == "tls handshake timeout"
    assert check(silent, "{type: tcp}", tls + "}") == ""


def test_tls_with_a_certificate_of_ours(tmp_path: Path):
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    ours = CA.issue_cert("gateway.test")
    ours.private_key_pem.write_to_path(tmp_path / "k.pem")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "c.pem")
    context = server_context("127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    CA.configure_trust(context)
    tls = f", tls: {{ca: {tmp_path}/ca.pem"
    assert check(says(OK), "{path: /}", f"{tls}, cert: {tmp_path}/c.pem, key: {tmp_path}/k.pem}}", context) == ""
    assert check(says(OK), "{path: /}", tls + "}", context) != ""


# ---- all of them

TWO = """
listeners: [{address: '127.0.0.1:1'}]
routes: [{upstream: u}]
upstreams: {u: {endpoints: [%s], health: {path: /, interval: 50ms, timeout: 1s%s}}}
"""


class World:
    """Upstreams that answer what `answers` says by their port, and checks of them."""

    def __init__(self) -> None:
        self.answers: dict[int, bytes] = {}
        self.asked: dict[int, int] = {}
        self.events: list[dict[str, Any]] = []
        self.hints: list[tuple[str, bool]] = []
        self.segment = Segment.create(1)
        self.checks = HealthChecks(
            self.segment, lambda _: ["127.0.0.1"], self.events.append, lambda _, place, back: self.hints.append((place, back))
        )

    async def start(self, n: int) -> list[int]:
        ports = [free_port() for _ in range(n)]
        for port in ports:
            self.answers[port] = OK
            self.asked[port] = 0

            async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int = port) -> None:
                await reader.readuntil(b"\r\n\r\n")
                self.asked[port] += 1
                writer.write(self.answers[port])
                writer.close()

            await asyncio.start_server(handler, "127.0.0.1", port)
        return ports

    def use(self, ports: list[int], more: str = "") -> None:
        self.checks.use(load_text(TWO % (", ".join(f"'127.0.0.1:{p}'" for p in ports), more)).config)

    def state(self, port: int) -> str:
        return self.segment.health(self.segment.slot("endpoint", f"u|127.0.0.1:{port}"))[0]

    async def until(self, good: Callable[[], Any]) -> None:
        async with asyncio.timeout(5 * SLACK):
            while not good():
                await asyncio.sleep(0.05)


def world(test: Callable[[World], Any]) -> None:
    async def run() -> None:
        w = World()
        await test(w)
        w.checks.stop()

    asyncio.run(run())


BAD = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"


def test_down_and_up_again_in_the_segment():
    async def story(w: World) -> None:
        a, b = await w.start(2)
        w.use([a, b])
        await w.until(lambda: w.state(a) == w.state(b) == "up")
        w.answers[a] = BAD
        await w.until(lambda: w.state(a) == "down")
        assert w.state(b) == "up"
        (event,) = w.events
        assert event.pop("at") > 0
        assert event == {
            "event": "health",
            "upstream": "u",
            "endpoint": f"127.0.0.1:{a}",
            "from": "up",
            "to": "down",
            "reason": "checks_failed",
            "detail": "3 checks failed, last: status 500",
        }
        assert w.hints == []
        w.answers[a] = OK
        await w.until(lambda: w.state(a) == "back")
        assert [(e["to"], e["detail"]) for e in w.events[1:]] == [("up", "2 checks passed")]
        assert w.hints == [(f"127.0.0.1:{a}", False), (f"127.0.0.1:{a}", True)]

    world(story)


def test_a_reload_keeps_verdicts_and_ends_what_is_gone():
    async def story(w: World) -> None:
        a, b = await w.start(2)
        w.answers[a] = BAD
        w.use([a, b])
        await w.until(lambda: w.state(a) == "down" and w.state(b) == "up")
        failures = w.checks.tallies["u", f"127.0.0.1:{a}"].failures
        w.use([b, a], ", fall: 5")  # other settings, other order
        assert w.state(a) == "down"
        assert w.checks.tallies["u", f"127.0.0.1:{a}"].failures >= failures
        w.use([b])
        assert w.state(a) == "unknown"
        assert [k[1] for k in w.checks.tallies] == [f"127.0.0.1:{b}"]
        await asyncio.sleep(0.02)
        asked = w.asked[a]
        now = w.asked[b]
        await w.until(lambda: w.asked[b] > now + 3)
        assert w.asked[a] == asked
        w.use([a])
        assert w.state(a) == "unknown"

    world(story)


def test_checks_that_are_switched_off_leave_no_verdict():
    async def story(w: World) -> None:
        (a,) = await w.start(1)
        w.answers[a] = BAD
        w.use([a])
        await w.until(lambda: w.state(a) == "down")
        w.checks.use(load_text((TWO % (f"'127.0.0.1:{a}'", "")).replace("path: /, ", "")).config)
        assert w.state(a) == "unknown"

    world(story)


def test_drain_outlives_a_reload_and_an_upgrade():
    async def story(w: World) -> None:
        a, b = await w.start(2)
        w.use([a, b])
        slot = w.segment.slot("endpoint", f"u|127.0.0.1:{a}")
        assert w.checks.drain("u", f"127.0.0.1:{a}", True)
        assert not w.checks.drain("u", "127.0.0.1:1", True)
        assert not w.checks.drain("x", f"127.0.0.1:{a}", True)
        w.use([a, b])
        assert w.segment.health(slot)[2]
        w.answers[b] = BAD
        await w.until(lambda: w.state(b) == "down")
        heir = HealthChecks(Segment.create(1), lambda _: [], print)
        heir.adopt(w.checks.legacy())
        heir.use(load_text(TWO % (f"'127.0.0.1:{a}', '127.0.0.1:{b}'", "")).config)
        assert heir.segment.health(heir.segment.slot("endpoint", f"u|127.0.0.1:{a}"))[2]
        assert heir.segment.health(heir.segment.slot("endpoint", f"u|127.0.0.1:{b}"))[0] == "down"
        heir.stop()
        assert w.checks.drain("u", f"127.0.0.1:{a}", False)
        assert not w.segment.health(slot)[2]

    world(story)


def test_never_more_checks_at_once_than_allowed(monkeypatch):
    async def story(w: World) -> None:
        running = peak = 0

        async def slow(self: Checker, place: Any) -> None:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0.05)
            running -= 1
            raise CheckFailed("no")

        monkeypatch.setattr(Checker, "run", slow)
        ports = list(range(2000, 2300))
        w.use(ports)
        await w.until(lambda: all(t.failures > 2 for t in w.checks.tallies.values()))
        assert peak == 64
        w.checks.stop()
        await asyncio.sleep(0)
        assert not any(w.segment.health(i)[0] == "up" for i in range(300))

    world(story)


def test_intervals_have_jitter(monkeypatch):
    """Sleeps lie within the interval's bounds, and are not alike."""
    slept: list[float] = []

    async def story(w: World) -> None:
        async def quick(self: Checker, place: Any) -> None:
            pass

        real = asyncio.sleep

        async def sleep(s: float) -> None:
            slept.append(s)
            await real(0)

        monkeypatch.setattr(Checker, "run", quick)
        w.use([2000], ", jitter: 0.5")
        monkeypatch.setattr("gwcore.health.asyncio.sleep", sleep)
        while len(slept) < 200:
            await real(0)
        monkeypatch.undo()

    world(story)
    later = [s for s in slept[1:] if s]
    assert all(s <= 0.05 * 1.5 for s in later)
    assert max(later) > 0.06 and min(later) < 0.04 and len(set(later)) > 50


def test_an_endpoint_without_a_slot_of_its_own_stays_unknown():
    segment = Segment.create(1)
    assert not segment.set_health(2047, "down")
    assert segment.health(2047) == ("unknown", 0, False)
    assert segment.set_health(2046, "back", 5, True)
    assert segment.health(2046) == ("back", 5, True)
    with pytest.raises(IndexError):
        segment.set_health(2048, "up")
