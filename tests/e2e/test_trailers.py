"""Trailer fields, both ways (B9, C11, U10)."""

from __future__ import annotations

import pytest

from tests.support import Conversation, Upstream, plane, proxy_config, read_all, read_reply

TRAILERS = b"X-Sum: abc\r\nContent-Length: 5\r\nAuthorization: x\r\nHost: b\r\nIf-Match: y\r\nx-forwarded-for: 1\r\nCache-Control: no-store\r\n"


@pytest.fixture
def stage():
    """(plane with a route that passes trailers and one that does not, upstream)"""

    def serve(c: Conversation) -> None:
        while True:
            head = c.head()
            if b"chunked" in head:
                while b"0\r\n" not in c.buffer or not c.buffer.endswith(b"\r\n\r\n"):
                    c.more()
                c.buffer = b""
            c.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\n" + TRAILERS + b"\r\n"
            )

    up = Upstream(serve)
    text = proxy_config(up.address).replace(
        "routes: [", "routes: [{name: pass, match: {prefix: /t}, upstream: be, trailers: true}, "
    )
    with plane(text) as p:
        yield p, up
    up.close()


def post(path: str, te: bool, split: int | None = None) -> bytes:
    return (
        b"POST %s HTTP/1.1\r\nHost: a\r\n%sTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\n"
        % (path.encode(), b"TE: trailers\r\nConnection: TE, close\r\n" if te else b"Connection: close\r\n")
        + TRAILERS
        + b"\r\n"
    )


def test_pass_where_the_route_asks_and_only_what_changes_no_message(stage):
    p, up = stage
    for step in (None, 1):
        with p.connect() as s:
            text = post("/t", True)
            for i in range(0, len(text), step or len(text)):
                s.sendall(text[i : i + (step or len(text))])
            reply = read_all(s)
        assert reply.endswith(b"5\r\nhello\r\n0\r\nX-Sum: abc\r\n\r\n")
        assert b"\r\nTrailer: X-Sum\r\n" in reply
        seen = bytes(up.seen[-1])
        assert seen.endswith(b"c\r\n0\r\nX-Sum: abc\r\n\r\n")
        assert b"\r\nTE: trailers\r\n" in seen
        assert b"\r\nConnection: TE\r\n" in seen


def test_answers_have_none_for_a_client_that_did_not_ask(stage):
    p, up = stage
    with p.connect() as s:
        s.sendall(post("/t", False))
        reply = read_all(s)
    assert reply.endswith(b"\r\n0\r\n\r\n")
    assert b"Trailer:" not in reply
    assert b"\r\nTE:" not in bytes(up.seen[-1])


def test_are_dropped_by_default(stage):
    p, up = stage
    with p.connect() as s:
        s.sendall(post("/x", True))
        reply = read_all(s)
    assert reply.endswith(b"\r\n0\r\n\r\n")
    assert bytes(up.seen[-1]).endswith(b"\r\n0\r\n\r\n")
    assert b"Trailer" not in bytes(up.seen[-1])


def test_http10_clients_get_neither_chunks_nor_trailers(stage):
    p, _ = stage
    with p.connect() as s:
        s.sendall(b"GET /t HTTP/1.0\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
        assert read_all(s).endswith(b"\r\n\r\nhello")


def test_a_section_over_the_limit_is_refused(stage):
    p, _ = stage
    with p.connect() as s:
        s.sendall(b"POST /t HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 5000 + b"\r\n\r\n")
        assert read_reply(s).status == 400
