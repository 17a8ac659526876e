"""Connections on both sides: what is bounded, what is given back, when an end is noticed."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from tests.support import get, ok, plane, proxy_config, read_all, read_reply, wait_until

LONG_BYTES = 66560  # BUF_LONG of buffer.pxd


def test_pipelined_requests_wait_in_one_buffer(upstream):
    """L3: while a request runs, no more is read of those behind it than one buffer holds; the client's socket fills up."""
    go = threading.Event()

    def serve(c):
        while True:
            c.request()
            go.wait(20)
            c.send(ok())

    up = upstream(serve)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.settimeout(0.5)
        sent, text = 0, get("/again") * 100
        with contextlib.suppress(TimeoutError):
            while sent < 50_000_000:
                sent += s.send(text)
        assert sent < 50_000_000, "the client was never stopped"
        counts = p.counts()
        assert counts["buffers"] <= 3 and counts["buffer_bytes"] <= LONG_BYTES + 2 * 1024, counts  # one, and the request's note
        assert counts["exchanges"] == 1 and sum(x.count(b"GET /again") for x in up.seen) == 1
        go.set()
        rest = b""
        for _ in range(1000):  # and they are answered in order once it goes on
            reply = read_reply(s, buffer=rest)
            assert reply.status == 200
            rest = reply.rest
        assert p.counts()["buffer_bytes"] <= LONG_BYTES + 2 * 1024


@pytest.mark.parametrize("end", ["fin", "reset"])
@pytest.mark.parametrize("field", ["", "Connection: close\r\n"])
def test_a_client_that_leaves_while_its_upload_is_held_back_is_noticed(upstream, end, field):
    """L8: nobody reads its body, so only the kernel can tell; `timeouts.write` would come much later."""
    stop = threading.Event()

    def serve(c):
        c.head()
        stop.wait(20)

    up = upstream(serve)
    with plane(proxy_config(up.address, upstream="timeouts: {write: 60s, response: 60s}")) as p:
        s = p.connect()
        s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n%sContent-Length: 60000000\r\n\r\n" % field.encode())
        block = bytes(65536)
        sent = 0
        while p.counts()["buffer_bytes"] < 40_000:  # the upstream takes no more
            s.sendall(block)
            sent += len(block)
            assert sent < 55_000_000
        s.sendall(bytes(1000))
        if end == "reset":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        s.close()
        wait_until(lambda: p.counts()["exchanges"] == 0, 3)
        assert p.reasons() == {"client_closed": 1}
        p.at_rest()
    stop.set()


def test_a_whole_body_and_a_fin_are_a_request(upstream):
    """With `Connection: close` the client may end its side behind the body, though nobody has read that yet."""
    go = threading.Event()

    def serve(c):
        head = c.head()
        go.wait(20)
        c.body(int(head.lower().split(b"content-length: ")[1].split(b"\r")[0]))
        c.send(ok(b"all of it"))

    size = 8_000_000
    up = upstream(serve)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
        threading.Timer(0.3, go.set).start()
        s.sendall(bytes(size))
        s.shutdown(socket.SHUT_WR)
        assert read_reply(s).body == b"all of it"


def test_idle_connections_hold_no_buffer(upstream):
    """After a request and an answer of many buffers, and half a head that became whole, a connection that waits has its struct alone."""

    def serve(c):
        while True:
            _, body = c.request()
            c.send(ok(body))

    up = upstream(serve)
    with plane(proxy_config(up.address)) as p:
        clients = [p.connect() for _ in range(50)]
        for s in clients:
            s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nX-Cookie: ")
        wait_until(lambda: p.counts()["buffers"] == len(clients))
        for s in clients:
            threading.Thread(
                target=s.sendall, args=(b"x" * 5000 + b"\r\nContent-Length: 300000\r\n\r\n" + bytes(300000),)
            ).start()
        for s in clients:
            assert len(read_reply(s).body) == 300000
        wait_until(lambda: p.counts()["exchanges"] == 0)
        counts = p.counts()
        assert counts["connections"] == len(clients) and counts["buffers"] == counts["buffer_bytes"] == 0
        for s in clients:
            s.close()


LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_bytes_behind_a_last_request_do_not_reset_its_answer(upstream, version):
    """Nobody reads them, and a close over unread bytes would send RST."""
    asked, go = threading.Event(), threading.Event()

    def serve(c):
        c.request()
        asked.set()
        go.wait(20)
        c.send(ok(b"x" * 1000))

    up = upstream(serve)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.sendall(LAST.replace(b"1.1", version.encode()))
        assert asked.wait(5)
        s.sendall(b"stray bytes" * 100)
        go.set()
        assert read_all(s).endswith(b"x" * 1000)


def test_a_client_that_resets_its_last_request_is_noticed(upstream):
    """Its connection is not registered at once, because most such answers come sooner than that pays."""
    stop, asked = threading.Event(), threading.Event()

    def serve(c):
        c.request()
        asked.set()
        stop.wait(20)

    up = upstream(serve)
    with plane(proxy_config(up.address, upstream="timeouts: {response: 60s}")) as p:
        s = p.connect()
        s.sendall(LAST)
        assert asked.wait(5)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        s.close()
        wait_until(lambda: p.counts()["exchanges"] == 0, 5)
        assert p.reasons() == {"client_closed": 1}
        stop.set()


def test_a_last_answer_that_the_client_takes_slowly_comes_whole(upstream):
    """The socket takes a part of it: from there on the rest needs events, which nobody had asked for."""
    body = bytes(range(256)) * 40_000

    def serve(c):
        c.request()
        c.send(ok(body))

    up = upstream(serve)
    for extra in ("", "buffers: {splice: off}\n"):
        with plane(proxy_config(up.address, extra=extra)) as p, p.connect() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            s.sendall(LAST)
            time.sleep(0.3)
            assert read_all(s, 20).endswith(body[-70_000:])
