"""Requests through a real data plane on real sockets. Each test ends with everything given back (support.plane)."""

from __future__ import annotations

import socket
import time

import pytest

from tests.support import SLACK, echo_handler, get, ok, plane, proxy_config, read_all, read_reply, wait_until


def test_get_is_proxied_and_the_connection_reused(upstream):
    up = upstream(echo_handler)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        for _ in range(3):
            s.sendall(get("/x?y=1"))
            r = read_reply(s)
            assert r.status == 200 and r.body.startswith(b"GET /x?y=1 HTTP/1.1\r\nHost: a\r\n")
        assert len(up.seen) == 1
        u = p.segment.snapshot()["upstreams"]["be"]
        assert (u["opens"], u["reuses"]) == (1, 2)


def test_forwarding_fields_are_ours(upstream):
    # F10, C8: a stranger's are replaced
    up = upstream(echo_handler)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.sendall(
            get(
                "/",
                X_Forwarded_For="1.2.3.4",
                X_Real_IP="6.6.6.6",
                X_Request_ID="mine",
                Forwarded="for=1.2.3.4",
                X_Gwcore_Tier="P0",
            )
        )
        seen = read_reply(s).body.decode()
        assert "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n" in seen
        assert "1.2.3.4" not in seen and "6.6.6.6" not in seen and "mine" not in seen and "Tier" not in seen
        assert "Via: 1.1 gwcore-" in seen and "X-Request-ID: " in seen


def test_trusted_proxies_are_appended_to(upstream):
    up = upstream(echo_handler)
    with plane(proxy_config(up.address, extra="trusted_proxies: [127.0.0.0/8]")) as p, p.connect() as s:
        s.sendall(get("/", X_Forwarded_For="1.2.3.4", X_Request_ID="mine-1", X_Forwarded_Proto="https"))
        seen = read_reply(s).body.decode()
        assert "X-Forwarded-For: 1.2.3.4, 127.0.0.1\r\n" in seen and "X-Request-ID: mine-1\r\n" in seen
        assert "X-Forwarded-Proto: https\r\n" in seen and "X-Forwarded-Proto: http\r\n" not in seen


@pytest.mark.parametrize("size", [0, 1, 5000, 70_000, 3_000_000])
def test_bodies_of_any_size_pass_both_ways(upstream, size):
    def handler(c):
        while True:
            _, body = c.request()
            c.send(ok(body))

    up = upstream(handler)
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        s.sendall(data)
        assert read_reply(s).body == data
        s.sendall(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(0, size, 10_007):
            part = data[i : i + 10_007]
            s.sendall(b"%x;ext=1\r\n" % len(part) + part + b"\r\n")
        s.sendall(b"0\r\nX-Trailer: dropped\r\n\r\n")
        assert read_reply(s).body == data


def test_chunked_and_close_delimited_answers(upstream):
    def handler(c):
        c.request()
        c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n")
        c.request()
        c.send(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")

    up = upstream(handler)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        for body in (b"abcde", b"until the end"):
            s.sendall(get())
            r = read_reply(s)
            assert r.body == body and r.get("Transfer-Encoding") == "chunked" and r.get("X") is None


def test_http10_client_gets_no_chunks(upstream):
    def handler(c):
        c.request()
        c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    up = upstream(handler)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        text = read_all(s)
        assert b"Transfer-Encoding" not in text and text.endswith(b"\r\n\r\nabc") and b"Connection: close" in text
        assert b"HTTP/1.1\r\n" in up.seen[0].split(b"\r\n", 1)[0] + b"\r\n" and b"Host: be\r\n" in up.seen[0]


def test_pipelined_requests_are_answered_in_order(upstream):
    # B12
    up = upstream(echo_handler)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.sendall(get("/1") + get("/2") + b"POST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + get("/4"))
        rest = b""
        for path in (b"/1", b"/2", b"/3", b"/4"):
            r = read_reply(s, buffer=rest)
            rest = r.rest
            assert path + b" HTTP/1.1" in r.body
        assert rest == b""


def test_head_204_304_have_no_body(upstream):
    # U3
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: x\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ]

    def handler(c):
        for a in answers:
            c.request()
            c.send(a)
        time.sleep(0.2)

    up = upstream(handler)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.sendall(get().replace(b"GET", b"HEAD"))
        assert read_reply(s, to_head=True).get("Content-Length") == "100"
        for status in (304, 204):
            s.sendall(get())
            assert read_reply(s).status == status


def test_expect_100_is_answered_once_the_upstream_is_there(upstream):
    # B14
    def handler(c):
        head, body = c.request()
        assert b"Expect" not in head
        c.send(ok(body))

    up = upstream(handler)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 5\r\n\r\n")
        assert read_reply(s).status == 100
        s.sendall(b"12345")
        assert read_reply(s).body == b"12345"


def test_interim_answers_pass_to_http11_only(upstream):
    # C6
    def handler(c):
        while True:
            c.request()
            c.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + ok(b"end"))

    up = upstream(handler)
    with plane(proxy_config(up.address)) as p:
        with p.connect() as s:
            s.sendall(get())
            first = read_reply(s)
            assert first.status == 103 and first.get("Link") == "</x>"
            assert read_reply(s, buffer=first.rest).body == b"end"
        with p.connect() as s:
            s.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert read_all(s).startswith(b"HTTP/1.1 200")


def test_early_answer_passes_and_the_rest_of_the_body_is_no_request(upstream):
    # U7, B11
    def handler(c):
        c.head()
        c.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
        time.sleep(0.3)

    up = upstream(handler)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\n" + b"GET /evil HTTP/1.1\r\n")
        r = read_reply(s)
        assert r.status == 413 and r.body == b"big"
        s.sendall(b"Host: a\r\n\r\n" + b"x" * 9)
        s.sendall(get("/good"))
        assert read_reply(s).status in (200, 413)
        assert not any(b"GET /evil" in bytes(x).split(b"\r\n\r\n", 1)[0] for x in up.seen)


def test_truncated_answers_are_cut(upstream):
    # U5
    def handler(c):
        head = c.head()
        if b"/length" in head:
            c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1234")
        elif b"/chunk" in head:
            c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12")
        elif b"/head" in head:
            c.send(b"HTTP/1.1 200 OK\r\nContent-Le")

    up = upstream(handler)
    with plane(proxy_config(up.address)) as p:
        for path in ("/length", "/chunk"):
            with p.connect() as s:
                s.sendall(get(path))
                text = read_all(s)
                assert not text.endswith(b"0\r\n\r\n")
        with p.connect() as s:
            s.sendall(get("/head"))
            r = read_reply(s)
            assert (
                r.status == 502
                and b'"reason":"upstream_reset"' in r.body
                and r.get("Proxy-Status") == 'gwcore; error=connection_terminated; details="upstream_reset"'
            )
        wait_until(lambda: p.reasons() == {"response_truncated": 2, "upstream_reset": 1})


def test_bytes_behind_an_answer_close_the_upstream_connection(upstream):
    # U4
    def handler(c):
        c.request()
        c.send(ok(b"ok") + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        time.sleep(0.2)

    up = upstream(handler)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        for _ in range(2):
            s.sendall(get())
            r = read_reply(s)
            assert r.body == b"ok" and r.rest == b""
        assert len(up.seen) == 2


def test_a_stale_connection_is_replaced_for_safe_requests_only(upstream):
    # U8: the upstream closes when the second request arrives
    def handler(c):
        c.request()
        c.send(ok())
        c.request()

    up = upstream(handler)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.sendall(get("/1"))
        assert read_reply(s).status == 200
        s.sendall(get("/2"))
        assert read_reply(s).status == 200 and len(up.seen) == 2
        s.sendall(b"POST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        r = read_reply(s)
        assert r.status == 502 and len(up.seen) == 2
        assert sum(bytes(x).count(b"POST /3") for x in up.seen) == 1


def test_an_idle_connection_that_closed_is_not_used(upstream):
    # U12
    def handler(c):
        c.request()
        c.send(ok())

    up = upstream(handler)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        for _ in range(3):
            s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
            assert read_reply(s).status == 200
            wait_until(lambda: p.counts()["pooled"] == 0)
        assert p.segment.snapshot()["upstreams"]["be"]["closed"]["peer"] == 3


def test_connect_refused_names_its_reason():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with plane(proxy_config(f"127.0.0.1:{port}")) as p, p.connect() as s:
        s.sendall(get())
        r = read_reply(s)
        assert r.status == 502 and b"connect_refused" in r.body and r.get("Content-Type") == "application/problem+json"
        wait_until(lambda: p.reasons() == {"connect_refused": 1})


def test_another_endpoint_is_tried_when_one_cannot_be_connected(upstream):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    up = upstream(echo_handler)
    with plane(proxy_config(f"127.0.0.1:{port}", up.address, upstream="balance: round_robin")) as p, p.connect() as s:
        for _ in range(4):
            s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
            assert read_reply(s).status == 200


def test_response_timeout(upstream):
    up = upstream(lambda c: (c.request(), time.sleep(3)))
    with plane(proxy_config(up.address, upstream="timeouts: {response: 100ms}")) as p, p.connect() as s:
        s.sendall(get())
        r = read_reply(s)
        assert r.status == 504 and b"response_timeout" in r.body


def test_idle_answer_is_cut(upstream):
    def handler(c):
        c.request()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n1")
        time.sleep(3)

    up = upstream(handler)
    with plane(proxy_config(up.address, upstream="timeouts: {idle: 100ms}")) as p, p.connect() as s:
        s.sendall(get())
        assert read_all(s).endswith(b"\r\n\r\n1")
        wait_until(lambda: p.reasons() == {"response_idle": 1})


def test_header_and_body_timeouts(upstream):
    up = upstream(echo_handler)
    with plane(proxy_config(up.address, extra="timeouts: {header: 100ms, body_idle: 100ms, keepalive: 200ms}")) as p:
        with p.connect() as s:
            s.sendall(b"GET / HT")
            r = read_reply(s)
            assert r.status == 408 and b"header_timeout" in r.body
        with p.connect() as s:
            s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n1")
            r = read_reply(s)
            assert r.status == 408 and b"body_timeout" in r.body
        with p.connect() as s:
            s.sendall(get())
            read_reply(s)
            assert read_all(s) == b""  # idle: closed silently


def test_full_pool_queues_and_refuses_with_reasons(upstream):
    def handler(c):
        while True:
            c.request()
            time.sleep(0.15 * SLACK)
            c.send(ok())

    up = upstream(handler)
    config = proxy_config(
        up.address, upstream=f"pool: {{max_connections: 1, queue: {{size: 2, timeout: {int(250 * SLACK)}ms, order: fifo}}}}"
    )
    with plane(config) as p:
        socks = []
        for _ in range(4):
            s = p.connect()
            s.sendall(get())
            socks.append(s)
            time.sleep(0.02)
        answers = [read_reply(s) for s in socks]
        assert [r.status for r in answers] == [200, 200, 503, 503]
        assert b"queue_timeout" in answers[2].body and b"queue_full" in answers[3].body and answers[3].get("Retry-After") == "1"
        assert len(up.seen) == 1
        for s in socks:
            s.close()


def test_clients_that_leave_take_nothing_with_them(upstream):
    def handler(c):
        while True:
            c.request()
            time.sleep(0.1)
            c.send(ok(b"x" * 100_000))

    up = upstream(handler)
    with plane(proxy_config(up.address, upstream="pool: {max_connections: 2}")) as p:
        socks = [p.connect() for _ in range(8)]
        for s in socks:
            s.sendall(get())
        time.sleep(0.05)
        for i, s in enumerate(socks):
            if i % 2:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            s.close()
        for text in (b"GE", b"GET / HTTP/1.1\r\nHost: a\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n123"):
            with p.connect() as s:
                s.sendall(text)
                time.sleep(0.02)
        wait_until(lambda: p.reasons().get("client_closed", 0) >= 8)


def test_a_slow_reader_holds_no_more_than_the_watermark(upstream):
    # L5
    def handler(c):
        c.request()
        c.send(ok(b"x" * 20_000_000))
        time.sleep(1)

    up = upstream(handler)
    with plane(proxy_config(up.address)) as p:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", p.port))
        s.sendall(get())
        time.sleep(0.3)
        assert 0 < p.counts()["buffer_bytes"] <= 400_000
        got = len(read_reply(s, to_head=True).rest)
        while got < 20_000_000:
            got += len(s.recv(1 << 20))
        s.close()


def test_reload_closes_nothing_and_keeps_the_pool(upstream):
    up = upstream(echo_handler)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.sendall(get())
        read_reply(s)
        for i in range(20):
            p.reload(proxy_config(up.address, extra=f"limits: {{header_count: {50 + i}}}"))
            s.sendall(get(f"/{i}"))
            assert read_reply(s).status == 200
        assert len(up.seen) == 1
        s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 80 + b"\r\n")
        assert read_reply(s).status == 431


def test_removed_endpoint_lets_its_requests_finish(upstream):
    def slow(c):
        c.request()
        time.sleep(0.3)
        c.send(ok(b"old"))
        time.sleep(0.5)

    old, new = upstream(slow), upstream(echo_handler)
    with plane(proxy_config(old.address)) as p, p.connect() as a, p.connect() as b:
        a.sendall(get())
        time.sleep(0.05)
        p.reload(proxy_config(new.address))
        b.sendall(get())
        assert b"GET /" in read_reply(b).body
        assert read_reply(a).body == b"old"
        wait_until(lambda: p.call(p.plane.collect) == 0)
        wait_until(lambda: p.segment.snapshot()["upstreams"]["be"]["closed"]["drain"] == 1)


def test_drain_answers_what_is_under_way(upstream):
    # L7
    def slow(c):
        c.request()
        time.sleep(0.2)
        c.send(ok())

    up = upstream(slow)
    with plane(proxy_config(up.address)) as p, p.connect() as s, p.connect() as idle:
        s.sendall(get())
        wait_until(lambda: p.counts()["exchanges"] == 1)
        p.call(p.plane.begin_drain)
        r = read_reply(s)
        assert r.status == 200 and r.get("Connection") == "close"
        assert read_all(s) == b""
        assert p.call(lambda: p.plane.close_idle(0)) == 0
        assert read_all(idle) == b""


def test_own_answer_discards_the_body_it_did_not_read():
    # B11
    with plane("routes: [{match: {path: /x}, respond: {body: OK}}]") as p, p.connect() as s:
        s.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 31\r\n\r\nGET /evil")
        assert read_reply(s).body == b"OK"
        s.sendall(b" HTTP/1.1\r\nHost: a\r\n\r\n" + get("/x"))
        r = read_reply(s)
        assert r.status == 200 and r.body == b"OK" and r.rest == b""


def test_log_line_has_every_field(upstream, tmp_path):
    import json

    up = upstream(echo_handler)
    path = tmp_path / "log"
    with plane(proxy_config(up.address, extra="access_log: {flush: 10ms}"), log=str(path)) as p, p.connect() as s:
        s.sendall(b"GET /a%22b?secret=1 HTTP/1.1\r\nHost: a\r\nAuthorization: Basic xyz\r\n\r\n")
        read_reply(s)
        s.sendall(b"BAD\r\n\r\n")
        read_all(s)
        wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") == 2)
    first, second = map(json.loads, path.read_text().splitlines())
    assert list(first) == [
        "ts",
        "id",
        "client",
        "method",
        "path",
        "status",
        "reason",
        "route",
        "upstream",
        "endpoint",
        "attempts",
        "bytes_in",
        "bytes_out",
        "t_queue_ms",
        "t_connect_ms",
        "t_first_byte_ms",
        "t_total_ms",
        "tls",
        "degraded",
        "tier",
    ]
    assert (
        first["path"] == "/a%22b"
        and first["status"] == 200
        and first["reason"] == "-"
        and first["upstream"] == "be"
        and first["attempts"] == 1
    )
    assert second["status"] in (400, 501) and list(second) == list(first)
    assert "secret" not in path.read_text() and "xyz" not in path.read_text()


def test_a_full_log_blocks_when_asked_to(upstream, tmp_path):
    """access_log.full: block. A pipe that nobody reads fills the ring; requests wait, and go on when it is read."""
    import os
    import threading

    up = upstream(echo_handler)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    path = "/" + "x" * 700
    try:
        with plane(proxy_config(up.address, extra="access_log: {full: block, flush: 1ms}"), log=str(fifo)) as p, p.connect() as s:
            answered = 0
            s.settimeout(0.5 * SLACK)
            try:
                for _ in range(1500):
                    s.sendall(get(path))
                    read_reply(s, timeout=0.5)
                    answered += 1
            except TimeoutError:
                pass
            assert 300 < answered < 1400
            assert p.segment.snapshot()["workers"][0]["log_dropped"] == 0
            os.set_blocking(reader, True)
            threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reader, 65536), b"")], daemon=True).start()
            assert read_reply(s).status == 200
    finally:
        pass
