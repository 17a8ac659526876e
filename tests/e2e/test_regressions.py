"""Failures that a hostile reading found, each as small as it can be shown."""

from __future__ import annotations

import json
import socket
import threading
import time

from tests.support import Upstream, echo_handler, get, ok, plane, proxy_config, read_all, read_reply, wait_until


def test_a_retry_with_nobody_left_to_try_ends():
    """It went round in the worker for ever: the reason may be retried, and no attempt was counted."""
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    filler = [socket.socket() for _ in range(4)]
    for s in filler:
        s.setblocking(False)
        s.connect_ex(full.getsockname())
    time.sleep(0.05)
    address = f"127.0.0.1:{full.getsockname()[1]}"
    with plane(proxy_config(address, upstream="timeouts: {connect: 300ms}")) as p, p.connect() as s:
        s.sendall(get())
        wait_until(lambda: p.counts()["upstream_connections"] == 1)
        p.reload(proxy_config("no-such-host.invalid:80", upstream="timeouts: {connect: 300ms}"))
        reply = read_reply(s)
        assert reply.status in (502, 504) and json.loads(reply.body)["reason"] in ("dns_failed", "connect_timeout")
    for s in (*filler, full):
        s.close()


def test_an_answer_that_comes_with_the_connection_is_read():
    def serve(c) -> None:
        c.send(b"HTTP/1.1 503 busy\r\nContent-Length: 4\r\n\r\nbusy")
        time.sleep(1)

    up = Upstream(serve)
    with plane(proxy_config(up.address)) as p:
        for _ in range(10):
            with p.connect() as s:
                s.sendall(get())
                assert read_reply(s, timeout=3).status in (502, 503)
    up.close()


def test_a_crowd_behind_a_body_is_answered():
    up = Upstream(echo_handler)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        n = 3000
        s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n")
        time.sleep(0.05)
        writer = threading.Thread(target=s.sendall, args=(b"x" * 20000 + get() * n,))
        writer.start()
        rest = b""
        for _ in range(n + 1):
            reply = read_reply(s, buffer=rest)
            assert reply.status == 200
            rest = reply.rest
        writer.join()
    up.close()


def test_refused_connections_do_not_count_against_the_limit():
    with plane("routes: [{respond: {body: x}}]\nlimits: {connections: 4}\ntimeouts: {linger: 5s}\n") as p:
        busy = [p.connect() for _ in range(4)]
        for s in busy:
            s.sendall(b"GET / HTTP/1.1\r\n")  # in the middle of a head: not idle, so not shed
        wait_until(lambda: p.counts()["connections"] == 4)
        for _ in range(10):
            with p.connect() as s:
                assert read_reply(s).status == 503
        for s in busy[:3]:
            s.close()
        wait_until(lambda: p.counts()["connections"] == 1)
        with p.connect() as s:
            s.sendall(get())
            assert read_reply(s).status == 200
        busy[3].close()


def test_bytes_of_pipelined_requests_count_once():
    with plane("routes: [{name: r, respond: {body: x}}]\n") as p:
        with p.connect() as s:
            s.sendall(get() * 50)
            rest = b""
            for _ in range(50):
                reply = read_reply(s, buffer=rest)
                rest = reply.rest
        wait_until(lambda: p.segment.snapshot()["routes"]["r"]["requests"]["2xx"] == 50)  # the last is counted behind its answer
        assert p.segment.snapshot()["routes"]["r"]["bytes_in"] == 50 * len(get())


def test_trailers_do_not_go_round_the_edits_of_a_route():
    up = Upstream(serve_chunked)
    text = proxy_config(up.address).replace(
        "upstream: be}", "upstream: be, trailers: true, request_headers: {remove: [X-User], set: {X-Role: guest}}}"
    )
    with plane(text) as p, p.connect() as s:
        s.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-User: root\r\nX-Role: admin\r\nX-T: 1\r\n\r\n"
        )
        assert read_reply(s).status == 200
    assert b"root" not in up.seen[0] and b"admin" not in up.seen[0] and b"X-T: 1" in up.seen[0]
    up.close()


def serve_chunked(c) -> None:
    c.head()
    while not c.buffer.endswith(b"0\r\nX-T: 1\r\n\r\n"):
        c.more()
    c.send(ok())


def test_connection_cannot_name_date_or_content_fields_away():
    up = Upstream(
        lambda c: (
            c.head(),
            c.send(b"HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2020 15:18:03 GMT\r\nConnection: Date\r\nContent-Length: 0\r\n\r\n"),
        )
    )
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.sendall(get(Connection="Content-Disposition, close", Content_Disposition="x"))
        assert b"Date: Tue, 24 Nov 2020" in read_all(s)
    assert b"Content-Disposition: x" in up.seen[0]
    up.close()


def test_a_stalled_client_is_cut_though_the_upstream_trickles():
    def serve(c) -> None:
        c.head()
        c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        big = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        for _ in range(8):
            c.send(big)
        while True:
            c.send(b"1\r\nx\r\n")
            time.sleep(0.05)

    up = Upstream(serve)
    with plane(proxy_config(up.address, extra="timeouts: {client_write: 400ms}\n")) as p, p.connect() as s:
        s.sendall(get())
        wait_until(lambda: p.reasons() == {"client_write_timeout": 1})
    up.close()
