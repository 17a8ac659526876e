"""Large answers move by splice(2): same bytes, same ends, and no byte of one client's answer in another's."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import pytest

from tests.support import Upstream, get, ok, plane, proxy_config, read_reply, wait_until

BODY = os.urandom(3 << 20)


def pipes() -> int:
    """Pipes that this process has open."""
    n = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            n += os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
    return n


@pytest.fixture
def big():
    def serve(c):
        while True:
            head, _ = c.request()
            c.send(ok(BODY) if b"/big" in head else ok(b"small"))

    up = Upstream(serve)
    yield up
    up.close()


@pytest.mark.parametrize("splice", ["64KiB", "off"])
def test_bytes_are_the_same_and_the_connection_is_used_again(big, splice):
    with plane(proxy_config(big.address, extra=f"buffers: {{splice: {splice}}}\n")) as p, p.connect() as s:
        before = pipes()
        for _ in range(3):
            s.sendall(get("/big") + get("/small"))
            reply = read_reply(s)
            assert reply.body == BODY
            assert read_reply(s, buffer=reply.rest).body == b"small"
        assert (pipes() > before) == (splice != "off")
        stats = p.segment.snapshot()["upstreams"]["be"]
        assert (stats["opens"], stats["reuses"]) == (1, 5)


@pytest.mark.parametrize("splice", ["64KiB", "off"])
def test_large_uploads_arrive_as_they_are(upstream, splice):
    got = []

    def serve(c):
        while True:
            got.append(c.request()[1])
            c.send(ok(b"thanks"))

    with plane(proxy_config(upstream(serve).address, extra=f"buffers: {{splice: {splice}}}\n")) as p, p.connect() as s:
        before = pipes()
        for _ in range(3):
            s.sendall(b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY + get("/next"))
            reply = read_reply(s)
            assert reply.body == b"thanks" and read_reply(s, buffer=reply.rest).body == b"thanks"
        assert got == [BODY, b""] * 3
        assert (pipes() > before) == (splice != "off")


def test_an_upload_to_a_slow_reader_is_held_back(upstream):
    def serve(c):
        c.head()
        time.sleep(0.5)
        c.body(40 << 20)
        c.send(ok(b"thanks"))

    with plane(proxy_config(upstream(serve).address)) as p, p.connect() as s:
        s.settimeout(20)
        s.sendall(b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (40 << 20))
        threading.Thread(target=s.sendall, args=(bytes(40 << 20),), daemon=True).start()
        most = 0
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            most = max(most, p.counts()["buffer_bytes"])
        assert read_reply(s, timeout=20).body == b"thanks"
        assert most < 600_000


def test_many_at_once_share_few_pipes(big):
    with plane(proxy_config(big.address), workers=4) as p:
        socks = [p.connect() for _ in range(20)]
        for s in socks:
            s.sendall(get("/big"))
        for s in socks:
            assert read_reply(s).body == BODY
            s.close()


def test_a_slow_reader_stops_the_upstream_and_is_cut_in_the_end():
    up = Upstream(lambda c: (c.head(), c.send(ok(bytes(32 << 20)))))  # more than sockets and a pipe hold
    with plane(proxy_config(up.address, extra="timeouts: {client_write: 400ms}\n")) as p, p.connect() as s:
        s.sendall(get("/big"))
        wait_until(lambda: p.reasons() == {"client_write_timeout": 1})
        assert p.counts()["buffer_bytes"] < 200_000
    up.close()


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_a_truncated_answer_is_cut_and_its_pipe_not_used_again(big, how):
    def serve(c):
        c.head()
        c.send(ok(BODY)[:-1000])
        time.sleep(0.1)
        if how == "reset":
            c.reset()

    short = Upstream(serve)
    text = (
        proxy_config(short.address)
        .replace("upstreams: {", f"upstreams: {{big: {{endpoints: ['{big.address}']}}, ")
        .replace("routes: [", "routes: [{match: {path: /big}, upstream: big}, ")
    )
    with plane(text) as p:
        for _ in range(3):
            with p.connect() as s:
                s.sendall(get("/cut"))
                with pytest.raises((EOFError, ConnectionResetError)):
                    read_reply(s)
            with p.connect() as s:
                s.sendall(get("/big"))
                assert read_reply(s).body == BODY
        assert p.reasons() == {"response_truncated": 3}
    short.close()


def test_a_client_that_leaves_leaves_nothing_in_a_pipe(big):
    with plane(proxy_config(big.address)) as p:
        for i in range(8):
            s = p.connect()
            s.sendall(get("/big"))
            s.recv(100_000 * i + 1)
            s.close()
        with p.connect() as s:
            s.sendall(get("/big"))
            assert read_reply(s).body == BODY


def test_bytes_behind_the_answer_end_the_connection(big):
    def serve(c):
        while True:
            c.head()
            c.send(ok(BODY) + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    up = Upstream(serve)
    with plane(proxy_config(up.address)) as p, p.connect() as s:
        for _ in range(2):
            s.sendall(get("/big"))
            reply = read_reply(s)
            assert reply.body == BODY and reply.rest == b""
        assert p.segment.snapshot()["upstreams"]["be"]["reuses"] == 0
    up.close()
