"""Limits, deadlines and own answers as a client meets them."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

from tests.support import Upstream, echo_handler, get, ok, plane, proxy_config, read_all, read_reply, wait_until

DEAD = "127.0.0.1:1"


@pytest.fixture
def echo():
    up = Upstream(echo_handler)
    yield up
    up.close()


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri_too_long"),
        (b"GET /" + b"a" * 40000, 414, "uri_too_long"),  # told before the line ends
        (get(X="a" * 40000), 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40000, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n", 431, "too_many_headers"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 120, 431, "too_many_headers"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", 413, "body_too_large"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"x" * 300, 400, "bad_framing"),
    ],
)
def test_everything_that_can_grow_has_a_limit(echo, text, status, reason):
    """R11, L3: and the refusal comes while the message is still being read."""
    with plane(proxy_config(echo.address)) as p, p.connect() as s:
        s.sendall(text)
        reply = read_reply(s)
        assert (reply.status, json.loads(reply.body)["reason"]) == (status, reason)
        assert reply.get("Connection") == "close"
        assert read_all(s) == b""
    assert not any(echo.seen) or reason == "bad_framing"


def test_99_fields_and_a_head_at_the_limit_pass(echo):
    # R11
    with plane(proxy_config(echo.address)) as p, p.connect() as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 99 + b"\r\n")
        assert read_reply(s).status == 200
        head = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
        s.sendall(head + b"a" * (32768 - len(head) - 4) + b"\r\n\r\n")
        assert read_reply(s).status == 200


@pytest.mark.parametrize("host", ["EXAMPLE.com", "example.com.", "example.com:80", "eXample.COM.:8080"])
def test_hosts_are_compared_in_one_form(host):
    # F7
    with plane("routes: [{match: {host: example.com}, respond: {body: it}}, {respond: {body: other}}]\n") as p, p.connect() as s:
        s.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert read_reply(s).body == b"it"
        s.sendall(b"GET / HTTP/1.1\r\nHost: \r\n\r\n")
        assert read_reply(s).body == b"other"


def test_repeated_fields_keep_their_order(echo):
    # F8
    with plane(proxy_config(echo.address)) as p, p.connect() as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Role: b\r\nX-Other: 1\r\nX-Role: a\r\n\r\n")
        body = read_reply(s).body
        assert body.index(b"X-Role: b") < body.index(b"X-Other: 1") < body.index(b"X-Role: a")
        s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic YTph\r\nAuthorization: Basic YjpI\r\n\r\n")
        assert json.loads(read_reply(s).body)["reason"] == "bad_header"


@pytest.mark.parametrize("end", ["fin", "reset"])
@pytest.mark.parametrize("framing", [b"Content-Length: 10\r\n\r\nabcd", b"Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n"])
def test_a_body_cut_short_never_looks_whole(end, framing):
    # B13
    ended: list[bytes] = []

    def serve(c):
        try:
            while True:
                c.more()
        finally:
            ended.append(bytes(c.record))

    up = Upstream(serve)
    with plane(proxy_config(up.address)) as p:
        s = p.connect()
        s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing)
        wait_until(lambda: up.seen and up.seen[0].endswith((b"abcd", b"abcd\r\n")))
        if end == "reset":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        s.close()
        wait_until(lambda: ended)
        assert not ended[0].endswith(b"0\r\n\r\n")
        assert p.segment.snapshot()["upstreams"]["be"]["reuses"] == 0
        wait_until(lambda: p.reasons() == {"client_closed": 1})
    up.close()


def test_nothing_of_a_request_reaches_heads_or_log_unescaped(echo, tmp_path):
    # C12
    log = tmp_path / "log"
    text = (
        f"upstreams: {{be: {{endpoints: ['{echo.address}']}}}}\n"
        "routes: [{match: {prefix: /old}, upstream: be, rewrite: {strip_prefix: /old, replace_prefix: /new}}]\n"
    )
    with plane(text, log=str(log)) as p, p.connect() as s:
        s.sendall(get("/old/%0d%0aX:%20y/%22%5c/%c3%a9"))
        body = read_reply(s).body
        assert body.startswith(b"GET /new/%0d%0aX:%20y/%22%5c/%c3%a9 HTTP/1.1\r\n")
        s.sendall(b'GET /old/"\\ HTTP/1.1\r\nHost: a\r\n\r\n')
        assert read_reply(s).status == 400
    lines = log.read_bytes().splitlines()
    assert len(lines) == 2 and all(isinstance(json.loads(line), dict) for line in lines)


def test_upstream_failures_have_names_of_their_own():
    # U9
    silent = socket.create_server(("127.0.0.1", 0))
    silent_address = f"127.0.0.1:{silent.getsockname()[1]}"
    gone = Upstream(lambda c: c.head())
    cases = [
        (proxy_config(DEAD), 502, "connect_refused", None),
        (proxy_config("no.such.host.invalid:80"), 502, "dns_failed", None),
        (
            proxy_config("{address: '127.0.0.1:9', weight: 0}".replace("'", '"')).replace("['{", "[{").replace("}']", "}]"),
            503,
            "no_endpoint",
            "1",
        ),
        (proxy_config(gone.address), 502, "upstream_reset", None),
        (proxy_config(silent_address, upstream="timeouts: {response: 100ms}"), 504, "response_timeout", None),
    ]
    for text, status, reason, retry_after in cases:
        with plane(text) as p, p.connect() as s:
            s.sendall(get())
            reply = read_reply(s)
            assert (reply.status, json.loads(reply.body)["reason"], reply.get("Retry-After")) == (status, reason, retry_after)
            assert f'details="{reason}"' in (reply.get("Proxy-Status") or "")
    silent.close()
    gone.close()


def test_a_final_answer_to_expect_leaves_nothing_out_of_step():
    """U11: the upstream answers at once and never reads the body."""

    def serve(c):
        while True:
            c.head()
            c.send(ok(b"no"))

    up = Upstream(serve)
    with plane(proxy_config(up.address)) as p:
        with p.connect() as s:
            s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 44\r\nExpect: 100-continue\r\n\r\n")
            reply = read_reply(s)
            while reply.status == 100:
                reply = read_reply(s, buffer=reply.rest)
            assert reply.body == b"no"
            s.sendall(b"GET /evil HTTP/1.1\r\nHost: a\r\nX: 0123456\r\n\r\n"[:44].ljust(44, b"x"))
            s.sendall(get("/next"))
            wait_until(lambda: sum(x.count(b"/next") for x in up.seen) <= 1)
        wait_until(lambda: p.counts()["connections"] == 0)
        with p.connect() as s:
            s.sendall(get("/after"))
            assert read_reply(s).body == b"no"
        assert not any(b"GET /evil" in x.split(b"\r\n\r\n", 1)[0] for x in up.seen)
    up.close()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_errors_are_problem_documents(method):
    # L1
    with plane(proxy_config(DEAD)) as p, p.connect() as s:
        s.sendall(get("/x").replace(b"GET", method.encode()))
        reply = read_reply(s, to_head=method == "HEAD")
        assert reply.status == 502 and reply.get("Content-Type") == "application/problem+json"
        assert reply.get("Proxy-Status") == 'gwcore; error=connection_refused; details="connect_refused"'
        assert reply.get("Date") and int(reply.get("Content-Length") or 0) > 0
        if method == "GET":
            body = json.loads(reply.body)
            assert body["status"] == 502 and body["title"] == "Bad Gateway" and len(body["request_id"]) == 24
        s.sendall(get("/x"))  # nothing of a body stood behind the answer to HEAD
        assert read_reply(s, buffer=reply.rest).status == 502


@pytest.mark.parametrize(
    "text", [b"\0", b"G(T / HTTP/1.1\r\n", b"GET / HTTP/3.0\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_an_error_at_any_stage_of_a_head_is_an_answer_and_a_line(text, tmp_path):
    # L2
    log = tmp_path / "log"
    with plane("routes: [{respond: {body: x}}]\n", log=str(log)) as p, p.connect() as s:
        s.sendall(text)
        reply = read_reply(s)
        assert reply.status in (400, 505) and json.loads(reply.body)["reason"]
        read_all(s)
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["reason"] == json.loads(reply.body)["reason"]


def test_a_byte_now_and_then_extends_no_deadline(echo):
    # L4
    extra = "timeouts: {header: 300ms, body_idle: 10s}\nlimits: {body_min_rate: 1000B/s, body_rate_grace: 300ms}\n"
    with plane(proxy_config(echo.address, extra=extra)) as p:
        for begin, reason in (
            (b"", "header_timeout"),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n", "body_too_slow"),
        ):
            with p.connect() as s:
                s.sendall(begin)
                s.settimeout(0.02)
                out = b""
                deadline = time.monotonic() + 5
                for byte in get(X="a" * 900):
                    try:
                        s.sendall(bytes([byte]))
                        out += s.recv(4096)
                    except TimeoutError:
                        pass
                    except OSError:
                        break
                    if out or time.monotonic() > deadline:
                        break
                assert b" 408 " in out.split(b"\r\n")[0] and reason.encode() in out


def test_an_early_answer_is_read_before_the_connection_closes():
    """L6: the client is in the middle of a body that nobody wants; a reset would eat the answer."""
    with plane("routes: [{match: {path: /only}, respond: {body: x}}]\nlimits: {body_bytes: 1KiB}\n") as p:
        for _ in range(10):
            with p.connect() as s:
                s.sendall(b"POST /only HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100000)
                time.sleep(0.01)
                s.sendall(b"x" * 50000)
                assert read_reply(s).status == 413


@pytest.mark.parametrize(
    "body", [b"3e9\r\n", b"0003e9;a=b\r\n", b"fffff\r\n", b"1\r\nx\r\n3e8\r\n", b"1f4\r\n" + b"x" * 500 + b"\r\n1f5\r\n"]
)
@pytest.mark.parametrize("apart", [False, True])
def test_a_chunk_that_would_be_too_much_is_refused_at_its_size(echo, body, apart):
    """Nothing of it is waited for."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with plane(proxy_config(echo.address, extra="limits: {body_bytes: 1000}\n")) as p:
        for _ in range(2):  # with a new connection to the upstream, and with one that is kept
            with p.connect() as s:
                s.sendall(head + b"3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n")
                assert read_reply(s).status == 200
                s.sendall(head if apart else head + body)
                if apart:
                    time.sleep(0.02)
                    s.sendall(body)
                reply = read_reply(s)
                assert reply.status == 413 and json.loads(reply.body)["reason"] == "body_too_large"
        assert p.reasons() == {"body_too_large": 2}


def test_a_chunk_of_an_answer_may_be_of_any_size(upstream):
    """No limit is set to answers: what came of the chunk passes, in chunks of our own, and is cut when it is."""

    def serve(c):
        c.head()
        c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\n" + b"x" * 1000)

    with plane(proxy_config(upstream(serve).address, extra="limits: {body_bytes: 100}\n")) as p, p.connect() as s:
        s.sendall(get())
        raw = read_all(s)
        assert raw.count(b"x" * 1000) == 1 and b"7fffffff" not in raw and not raw.endswith(b"0\r\n\r\n")
        assert p.reasons() == {"response_truncated": 1}


def test_without_memory_for_it_a_request_is_told_so(echo):
    """buffers.total is used up: by long heads that never end, then by short ones."""
    with (
        plane(proxy_config(echo.address, extra="buffers: {total: 1MiB}\ntimeouts: {header: 10m}\n")) as p,
        contextlib.ExitStack() as stack,
    ):

        def begun(n: int) -> bool:
            s = stack.enter_context(p.connect())
            s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * n)
            try:
                assert read_reply(s, timeout=0.05).status == 503
            except TimeoutError:
                return True
            return False

        for n in (17000, 500):
            while begun(n):
                pass
        assert p.reasons() == {"buffer_limit": 2}
        for more in (b"", get(), b"GET"):
            with p.connect() as s:
                s.sendall(get() + more)
                reply = read_reply(s)
                assert reply.status == 503 and json.loads(reply.body)["reason"] == "buffer_limit"
        stack.close()
        wait_until(lambda: p.counts()["connections"] == 0)
        with p.connect() as s:
            s.sendall(get())
            assert read_reply(s).status == 200
