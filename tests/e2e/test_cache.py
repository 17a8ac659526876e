"""The cache on real sockets (CONFORMANCE section 7)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any

import pytest

from tests.support import Conversation, PlaneThread, Reply, Upstream, plane, read_reply, wait_until


class Origin:
    """An upstream that answers with what `say` makes of a request's head, and counts."""

    def __init__(self, upstream: Callable[..., Upstream]):
        self.asked: list[bytes] = []
        self.say: Callable[[bytes], bytes | None] = lambda head: answer("max-age=60")
        self.server = upstream(self.handle)
        self.hold = threading.Event()
        self.hold.set()

    def handle(self, c: Conversation) -> None:
        while True:
            head, _ = c.request()
            self.asked.append(head)
            self.hold.wait(20)
            said = self.say(head)
            if said is None:
                raise EOFError
            c.send(said)
            if b"connection: close" in said.lower():
                raise EOFError


def answer(control: str = "", *fields: str, status: str = "200 OK", body: bytes = b"hello") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    if control:
        lines.append(f"Cache-Control: {control}")
    return "\r\n".join([*lines, *fields, "", ""]).encode() + body


@pytest.fixture
def origin(upstream: Callable[..., Upstream]) -> Origin:
    return Origin(upstream)


def config(origin: Origin, cache: str = "on", extra: str = "") -> str:
    return (
        f"upstreams: {{be: {{endpoints: ['{origin.server.address}'], breaker: off}}}}\n"
        f"routes: [{{name: all, upstream: be, cache: {cache}{extra}}}]\n"
    )


class Client:
    def __init__(self, p: PlaneThread):
        self.p, self.s = p, p.connect()

    def ask(self, path: str = "/", *fields: str, method: str = "GET", host: str = "a", body: bytes = b"") -> Reply:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.s.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        r = read_reply(self.s, to_head=method == "HEAD")
        if r.get("Connection") == "close":
            self.s.close()
            self.s = self.p.connect()
        return r


@contextmanager
def cached(text: str, **kw: Any) -> Iterator[Client]:
    with plane(text, **kw) as p:
        c = Client(p)
        try:
            yield c
        finally:
            c.s.close()


def test_a_fresh_copy_answers(origin: Origin):  # K1 K4 K11
    with cached(config(origin)) as c:
        first, second = c.ask("/x?a=1"), c.ask("/x?a=1")
        assert first.body == second.body == b"hello" and len(origin.asked) == 1
        assert first.get("Cache-Status") == "gwcore; fwd=uri-miss; stored"
        assert (second.get("Cache-Status") or "").startswith("gwcore; hit; ttl=")
        assert second.get("Age") == "0" and second.get("Date") and second.get("Content-Length") == "5"
        assert c.ask("/x?a=2").body == b"hello" and len(origin.asked) == 2
        assert c.ask("/x?a=1", host="b").body == b"hello" and len(origin.asked) == 3
        assert c.ask("/x?a=1", method="HEAD").get("Age") == "0" and len(origin.asked) == 3
        figures = lambda: c.p.segment.snapshot()["routes"]["all"]["cache"]  # noqa: E731
        wait_until(lambda: figures()["hit"] == 2 and figures()["miss"] == 3)


@pytest.mark.parametrize(
    "said",
    [
        answer("no-store, max-age=60"),
        answer("private, max-age=60"),
        answer('private="x", max-age=60'),
        answer(),  # says nothing
        answer("max-age=0"),
        answer("max-age=x"),
        answer("max-age=60", "Vary: *"),
        answer("max-age=60", "Set-Cookie: a=b"),  # K3
        answer("max-age=60", "Age: 60"),
        answer("max-age=60", "Surrogate-Control: no-store"),
        answer("max-age=60", status="206 Partial Content"),
        answer("max-age=60", status="500 Internal Server Error"),
        answer("", "Expires: 0"),
        answer("", "Expires: " + formatdate(time.time() - 5, usegmt=True)),
        answer("s-maxage=0, max-age=60"),
        answer("max-age=0", "CDN-Cache-Control: , nonsense"),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: max-age=60\r\n\r\nhello",  # K8: ends with its connection
    ],
)
def test_what_is_not_kept(origin: Origin, said: bytes):  # K2 K3 K8
    origin.say = lambda head: said
    with cached(config(origin)) as c:
        c.ask("/x")
        c.ask("/x")
        assert len(origin.asked) == 2


@pytest.mark.parametrize(
    "said",
    [
        answer("max-age=60"),
        answer("s-maxage=60, max-age=0"),
        answer("", "Expires: " + formatdate(time.time() + 86400, usegmt=True)),
        answer("no-store", "Surrogate-Control: max-age=60"),
        answer("no-store", "CDN-Cache-Control: max-age=60"),
        answer("max-age=60", status="404 Not Found"),
        answer("max-age=99999999999999999999"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=60\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    ],
)
def test_what_is_kept(origin: Origin, said: bytes):  # K2
    origin.say = lambda head: said
    with cached(config(origin)) as c:
        c.ask("/x")
        r = c.ask("/x")
        assert len(origin.asked) == 1 and r.body == b"hello" and r.get("Content-Length") == "5"
        assert r.get("Surrogate-Control") is None


@pytest.mark.parametrize("field", ["Authorization: Basic eA==", "Cookie: a=b"])
def test_credentials(origin: Origin, field: str):  # K2
    with cached(config(origin)) as c:
        c.ask("/x", field)
        c.ask("/x", field)
        assert len(origin.asked) == 2
        origin.say = lambda head: answer("public, max-age=60")
        c.ask("/y", field)
        c.ask("/y", field)
        assert len(origin.asked) == 3


def test_a_refresh_keeps_nothing_of_one_client(origin: Origin):  # K2
    origin.say = lambda head: answer("public, max-age=1, stale-while-revalidate=60")
    with cached(config(origin)) as c:
        c.ask("/", "Cookie: a=b")
        time.sleep(1.1)
        origin.say = lambda head: answer("max-age=60", body=b"secret")
        assert c.ask("/", "Cookie: a=b").body == b"hello"
        wait_until(lambda: len(origin.asked) == 2 and c.p.counts()["exchanges"] == 0)
        assert c.ask("/").body == b"hello"


def test_a_field_that_the_upstream_does_not_see_makes_no_variant(origin: Origin):  # K9
    origin.say = lambda head: answer("max-age=60", "Vary: Accept-Language", body=b"en" if b"en" in head else b"de")
    with cached(config(origin)) as c:
        r = c.ask("/", "Accept-Language: en", "Connection: keep-alive, Accept-Language")
        assert r.body == b"de" and r.get("Cache-Status") == "gwcore; fwd=bypass"
        assert c.ask("/", "Accept-Language: en").body == b"en"
        for name in ("X-Forwarded-For", "X-Request-ID", "X_Kind"):
            origin.say = lambda head, name=name: answer("max-age=60", f"Vary: {name}")
            assert c.ask(f"/{name}").get("Cache-Status") == "gwcore; fwd=uri-miss"


def test_what_a_trusted_proxy_says_is_part_of_the_key(origin: Origin):  # K1 K9
    with cached(config(origin) + "trusted_proxies: [127.0.0.0/8]\n") as c:
        c.ask("/")
        for field in (
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: b",
            "X-Forwarded-Port: 81",
            "X-Forwarded-Host: " + "b" * 2000,
        ):
            c.ask("/", field)
        assert len(origin.asked) == 5
        c.ask("/", "X-Forwarded-Host: b")
        assert len(origin.asked) == 5


def test_variants(origin: Origin):
    origin.say = lambda head: answer(
        "max-age=60", "Vary: X-Kind, Accept-Encoding", body=b"de" if b"X-Kind: de" in head else b"en"
    )
    with cached(config(origin, "{variants: 2}")) as c:
        assert c.ask("/", "X-Kind: de").body == b"de" and c.ask("/", "X-Kind: en").body == b"en"
        assert c.ask("/", "X-Kind: de").body == b"de" and c.ask("/", "X-Kind: en").body == b"en"
        assert len(origin.asked) == 2
        r = c.ask("/", "X-Kind: fr")
        assert (r.get("Cache-Status") or "").startswith("gwcore; fwd=vary-miss")
        c.ask("/", "X-Kind: fr")
        assert len(origin.asked) == 4  # one more than two variants


def test_conditions_and_ranges(origin: Origin):  # C10
    changed = formatdate(time.time() - 100, usegmt=True)
    origin.say = lambda head: answer("max-age=60", 'ETag: "v1"', f"Last-Modified: {changed}", body=b"0123456789")
    with cached(config(origin)) as c:
        c.ask("/")
        for field in ('If-None-Match: "v1"', 'If-None-Match: "x", W/"v1"', "If-None-Match: *", f"If-Modified-Since: {changed}"):
            r = c.ask("/", field)
            assert r.status == 304 and r.body == b"" and r.get("ETag") == '"v1"' and r.get("Content-Length") is None, field
        assert c.ask("/", 'If-None-Match: "v2"').status == 200
        for given, status, body in (
            ("bytes=0-3", 206, b"0123"),
            ("bytes=8-", 206, b"89"),
            ("bytes=-3", 206, b"789"),
            ("bytes=5-999", 206, b"56789"),
            ("bytes=10-", 416, b""),
            ("bytes=-0", 416, b""),
            ("bytes=3-1", 200, b"0123456789"),
            ("bytes=0-,0-,0-", 200, b"0123456789"),
            ("bytes=-18446744073709551615", 200, b"0123456789"),
            ("lines=1-2", 200, b"0123456789"),
        ):
            r = c.ask("/", f"Range: {given}")
            assert (r.status, r.body) == (status, body), given
        assert c.ask("/", "Range: bytes=0-3", 'If-Range: "v1"').status == 206
        assert c.ask("/", "Range: bytes=0-3", 'If-Range: W/"v1"').status == 200
        assert len(origin.asked) == 1


def test_what_clients_say(origin: Origin):  # K7
    with cached(config(origin)) as c:
        r = c.ask("/", "Cache-Control: only-if-cached")
        assert r.status == 504 and b"not_cached" in r.body
        c.ask("/", "Cache-Control: no-store")
        assert c.ask("/", "Cache-Control: only-if-cached").status == 504
        c.ask("/")
        assert c.ask("/", "Cache-Control: only-if-cached").status == 200 and len(origin.asked) == 2
        c.ask("/", "Cache-Control: no-cache")
        c.ask("/", "Cache-Control: max-age=100, min-fresh=1000")
        assert len(origin.asked) == 4
    with cached(config(origin, "{requests: ignore}")) as c:
        c.ask("/")
        c.ask("/", "Cache-Control: no-cache")
        assert len(origin.asked) == 5


def test_unsafe_methods_invalidate(origin: Origin):  # K6
    with cached(config(origin)) as c:
        c.ask("/x")
        c.ask("/x", method="POST", body=b"a=1")
        c.ask("/x")
        assert len(origin.asked) == 3
        origin.say = lambda head: answer(status="400 Bad Request")
        c.ask("/x", method="DELETE")
        c.ask("/x")
        assert len(origin.asked) == 4


def test_stale_while_it_is_fetched_anew(origin: Origin):  # K7
    origin.say = lambda head: answer("max-age=1, stale-while-revalidate=60", body=b"%d" % len(origin.asked))
    with cached(config(origin)) as c:
        assert c.ask("/").body == b"1"
        time.sleep(1.1)
        origin.hold.clear()
        for _ in range(5):
            r = c.ask("/", 'If-None-Match: "x"', 'If-Range: "x"', "Range: bytes=0-0")
            assert r.body == b"1" and r.get("Age") == "1"
        wait_until(lambda: len(origin.asked) == 2)  # one of them for all
        assert b"If-" not in origin.asked[1] and b"Range" not in origin.asked[1]
        origin.hold.set()
        wait_until(lambda: c.ask("/").body == b"2")
        assert len(origin.asked) == 2
        assert c.p.segment.snapshot()["routes"]["all"]["cache"]["stale"] >= 5


def test_stale_in_place_of_an_error(origin: Origin):  # K7
    origin.say = lambda head: answer("max-age=1, stale-if-error=60")
    with cached(config(origin)) as c:
        c.ask("/")
        time.sleep(1.1)
        origin.say = lambda head: None
        r = c.ask("/")
        assert r.status == 200 and r.body == b"hello" and (r.get("Cache-Status") or "").startswith("gwcore; hit; ttl=-")
        wait_until(lambda: c.p.segment.snapshot()["routes"]["all"]["cache"]["error"] == 1)  # counted behind the answer
    origin.say = lambda head: answer("max-age=1, must-revalidate")
    with cached(config(origin, "{stale_if_error: 60s}")) as c:
        c.ask("/")
        time.sleep(1.1)
        origin.say = lambda head: None
        assert c.ask("/").status == 502


def test_the_ladder_serves_a_copy(origin: Origin):
    origin.say = lambda head: answer("max-age=1")
    with cached(config(origin, extra=", degrade: {steps: [{cache: local}, live]}")) as c:
        c.ask("/")
        time.sleep(1.1)
        origin.say = lambda head: answer(status="503 Service Unavailable")
        r = c.ask("/")
        assert r.status == 200 and r.body == b"hello" and r.get("X-Gwcore-Degraded") == "cache" and r.get("Age") == "1"
        assert c.ask("/other").status == 503
    origin.say = lambda head: answer("max-age=1, stale-if-error=60")
    with cached(config(origin, extra=", tier: P0")) as c:
        c.ask("/")
        time.sleep(1.1)
        origin.say = lambda head: answer(status="503 Service Unavailable")
        assert c.ask("/").status == 503  # P0 never gets a copy that is not fresh


def test_too_large_and_cut_are_not_kept(origin: Origin):  # K8
    origin.say = lambda head: answer("max-age=60", body=b"x" * 3000)
    with cached(config(origin, "{object: 2KiB}")) as c:
        c.ask("/")
        assert len(c.ask("/").body) == 3000 and len(origin.asked) == 2
        origin.say = lambda head: (
            b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"800\r\n"
            + b"y" * 2048
            + b"\r\n800\r\n"
            + b"y" * 2048
            + b"\r\n0\r\n\r\n"
        )
        c.ask("/chunked")
        assert len(c.ask("/chunked").body) == 4096 and len(origin.asked) == 4
    origin.say = lambda head: (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: max-age=60\r\nContent-Length: 10\r\n\r\nhello"
    )
    with cached(config(origin)) as c:
        for _ in range(2):
            with pytest.raises((EOFError, OSError, AssertionError)):
                c.ask("/")
            c.s.close()
            c.s = c.p.connect()
        assert len(origin.asked) == 6


def test_a_large_copy_to_a_slow_reader(origin: Origin):
    body = bytes(range(256)) * 2000
    origin.say = lambda head: answer("max-age=60", body=body)
    with cached(config(origin)) as c:
        c.ask("/")
        with c.p.connect() as s:
            s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
            time.sleep(0.2)
            got = bytearray()
            while got.count(b"HTTP/1.1 200 OK") < 3 or not got.endswith(body):
                got += s.recv(1 << 20)
            assert got.count(body) == 3
        assert len(origin.asked) == 1


def test_tags_are_ours(origin: Origin):
    origin.say = lambda head: answer("max-age=60", "Surrogate-Key: one two")
    with cached(config(origin)) as c:
        assert c.ask("/").get("Surrogate-Key") is None
        assert c.ask("/").get("Surrogate-Key") is None and len(origin.asked) == 1
        assert c.p.copies.purge("tag", b"two") == 1
        c.ask("/")
        assert len(origin.asked) == 2


@pytest.mark.parametrize(
    "field", ["X-Forwarded-Host: evil", "X-Forwarded-Proto: https", "X-HTTP-Method-Override: POST", "X-Original-URL: /evil"]
)
def test_no_unkeyed_field_of_a_stranger_is_passed_or_stored_under_anothers_key(origin: Origin, field: str):  # K9
    """What the gateway answers for is replaced; what it does not know of passes, so an upstream that heeds it must say Vary."""
    with cached(config(origin)) as c:
        c.ask("/", field)
        if field.startswith("X-Forwarded"):
            assert b"evil" not in origin.asked[0] and b"Proto: https" not in origin.asked[0]
        c.ask("/", host="a:81")
        assert len(origin.asked) == 2  # a port is part of what the upstream sees
        c.ask("/", host="A")
        assert len(origin.asked) == 2


def test_a_body_of_a_get_is_never_a_key(origin: Origin):  # K9 B11
    with cached(config(origin)) as c:
        c.ask("/")
        r = c.ask("/", body=b"GET /evil HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (r.get("Cache-Status") or "").startswith("gwcore; fwd=bypass") and len(origin.asked) == 2
        c.ask("/")
        assert len(origin.asked) == 2


def test_clients_that_leave_while_an_answer_is_collected(origin: Origin):
    origin.say = lambda head: answer("max-age=60", body=b"z" * 500_000)
    with plane(config(origin)) as p:
        for n in range(8):
            with p.connect() as s:
                s.sendall(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n)
                if n % 2:
                    s.recv(1000)
