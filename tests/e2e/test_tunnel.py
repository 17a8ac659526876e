"""Upgrade tunnels (C4, C5, R9)."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from tests.support import Conversation, Upstream, get, ok, plane, proxy_config, read_all, read_reply, wait_until

ASK = get("/ws", Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Key="x")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Up: 1\r\n\r\n"


def echo(c: Conversation) -> None:
    """Agrees, then sends everything back until the client has finished, and then a last word."""
    head = c.head()
    if b"Upgrade: websocket" not in head:
        c.send(ok(b"plain"))
        return
    c.send(SWITCH + b"early")
    data = c.buffer
    while True:
        if data:
            c.send(data)
        data = c.s.recv(65536)
        c.record += data
        if not data:
            c.send(b"bye")
            return


@pytest.fixture
def stage():
    up = Upstream(echo)
    with plane(proxy_config(up.address)) as p:
        yield p, up
    up.close()


def read_exactly(s: socket.socket, n: int) -> bytes:
    out = b""
    while len(out) < n:
        data = s.recv(65536)
        assert data, out
        out += data
    return out


def begin(p) -> socket.socket:
    s = p.connect()
    s.sendall(ASK)
    reply = read_reply(s)
    assert reply.status == 101
    assert reply.rest + read_exactly(s, 5 - len(reply.rest)) == b"early"
    return s


def test_bytes_go_both_ways_and_each_end_finishes_by_itself(stage):
    p, up = stage
    with begin(p) as s:
        assert p.segment.snapshot()["workers"][0]["tunnels"] == 1
        s.sendall(b"hello")
        assert read_exactly(s, 5) == b"hello"
        s.shutdown(socket.SHUT_WR)
        assert read_all(s) == b"bye"
    head = bytes(up.seen[0])
    assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in head and b"Sec-WebSocket-Key: x" in head
    p.at_rest()
    snapshot = p.segment.snapshot()
    assert snapshot["workers"][0]["tunnels"] == 0 and snapshot["workers"][0]["tunnels_opened"] == 1
    assert snapshot["upstreams"]["be"]["closed"]["tunnel"] == 1
    assert snapshot["routes"]["all"]["requests"]["1xx"] == 1 and snapshot["routes"]["all"]["seconds"]["count"] == 0
    assert p.reasons() == {}


def test_the_answer_is_made_anew(stage):
    p, _ = stage
    with p.connect() as s:
        s.sendall(ASK)
        reply = read_reply(s)
        assert reply.get("Upgrade") == "websocket" and reply.get("Connection") == "Upgrade" and reply.get("X-Up") == "1"


def test_bytes_sent_early_wait_for_the_101(stage):
    p, _ = stage
    with p.connect() as s:
        s.sendall(ASK + b"ping")
        reply = read_reply(s)
        assert reply.status == 101
        assert reply.rest + read_exactly(s, 9 - len(reply.rest)) == b"earlyping"


def test_much_data_against_slow_readers(stage):
    p, _ = stage
    size = 4 << 20
    with begin(p) as s:
        blob = bytes(range(256)) * (size // 256)
        writer = threading.Thread(target=s.sendall, args=(blob,))
        writer.start()
        time.sleep(0.3)  # nobody reads yet: what the gateway holds stays bounded
        assert p.counts()["buffer_bytes"] < 600_000
        assert read_exactly(s, size) == blob
        writer.join()


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/", Upgrade="websocket"),  # not named by Connection
        get("/", Connection="Upgrade", Upgrade="h2c", HTTP2_Settings="x"),
        get("/", Connection="Upgrade", Upgrade="TLS/1.0"),
        get("/", Connection="Upgrade", Upgrade="websocket, h2c"),
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi",
        b"GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)
def test_everything_else_goes_as_plain_http(stage, request_bytes):
    p, up = stage
    with p.connect() as s:
        s.sendall(request_bytes)
        assert read_reply(s).body == b"plain"
    seen = bytes(up.seen[-1]).lower()
    assert b"upgrade" not in seen and b"http2-settings" not in seen


def test_a_route_may_forbid_it_or_allow_another():
    def serve(c: Conversation) -> None:
        head = c.head()
        c.send(SWITCH.replace(b"websocket", b"raw/1") if b"Upgrade: raw/1" in head else ok(b"plain"))
        c.s.recv(1)

    up = Upstream(serve)
    text = (
        f"upstreams: {{be: {{endpoints: ['{up.address}']}}}}\n"
        "routes: [{match: {path: /no}, upstream: be, upgrade: off}, {upstream: be, upgrade: [raw/1]}]\n"
    )
    with plane(text) as p:
        for path, token, status in (("/no", "websocket", 200), ("/x", "websocket", 200), ("/x", "RAW/1", 101)):
            with p.connect() as s:
                s.sendall(get(path, Connection="upgrade", Upgrade=token))
                assert read_reply(s).status == status
    up.close()


@pytest.mark.parametrize(
    "answer",
    [
        SWITCH.replace(b"websocket", b"other"),
        SWITCH.replace(b"Upgrade: websocket\r\n", b""),
        SWITCH.replace(b"Connection: Upgrade\r\n", b""),
        SWITCH.replace(b"Upgrade: websocket", b"Upgrade: websocket, h2c"),
    ],
)
def test_a_101_that_does_not_agree_is_502(answer):
    up = Upstream(lambda c: (c.head(), c.send(answer), c.s.recv(1)))
    with plane(proxy_config(up.address)) as p:
        with p.connect() as s:
            s.sendall(ASK)
            reply = read_reply(s)
        assert reply.status == 502 and json.loads(reply.body)["reason"] == "upgrade_failed"
    up.close()


def test_a_101_that_nobody_asked_for_is_502():
    up = Upstream(lambda c: (c.head(), c.send(SWITCH), c.s.recv(1)))
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        s.sendall(get())
        assert json.loads(read_reply(s).body)["reason"] == "upgrade_failed"
    up.close()


def test_another_answer_is_plain_http_and_the_next_request_is_read_as_one():
    def serve(c: Conversation) -> None:
        while True:
            c.request()
            c.send(ok(b"no"))

    up = Upstream(serve)
    with plane(proxy_config(up.address)) as p:
        with p.connect() as s:
            s.sendall(ASK + get("/next"))
            first = read_reply(s)
            second = read_reply(s, buffer=first.rest)
            assert (first.body, second.body) == (b"no", b"no")
        assert bytes(up.seen[0]).count(b"GET ") == 2
    up.close()


def test_a_quiet_tunnel_is_closed(stage):
    _, up = stage
    with plane(proxy_config(up.address, extra="timeouts: {tunnel_idle: 300ms}\n")) as p:
        with begin(p) as s:
            for _ in range(3):
                time.sleep(0.15)
                s.sendall(b"x")
                assert read_exactly(s, 1) == b"x"
            assert read_all(s) == b""
        assert p.reasons() == {"tunnel_idle": 1}


@pytest.mark.parametrize("who", ["client", "upstream"])
def test_a_reset_ends_both_ends(stage, who):
    p, up = stage
    s = begin(p)
    end = s if who == "client" else up.open[-1]
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    if who == "upstream":
        end.shutdown(socket.SHUT_RD)  # its thread sits in recv
    end.close()
    wait_until(lambda: p.counts()["connections"] == 0)
    s.close()
    assert p.reasons() == {"client_closed" if who == "client" else "upstream_reset": 1}


def test_a_tunnel_keeps_no_plan_and_outlives_its_upstream(tmp_path):
    up = Upstream(echo)
    other = Upstream(echo)
    log = tmp_path / "log"
    with plane(proxy_config(up.address), log=str(log)) as p:
        with begin(p) as s:
            p.reload(proxy_config(other.address))
            p.reload(proxy_config(other.address).replace("be", "new"))
            assert p.call(lambda: p.plane.collect()) == 0  # no old plan is in use
            s.sendall(b"still here")
            assert read_exactly(s, 10) == b"still here"
        wait_until(lambda: p.counts()["connections"] == 0)
        p.call(lambda: p.plane.collect())
    line = json.loads(log.read_text().splitlines()[0])
    assert (line["status"], line["route"], line["upstream"], line["reason"] in ("-", "client_closed")) == (101, "all", "be", True)
    up.close()
    other.close()
