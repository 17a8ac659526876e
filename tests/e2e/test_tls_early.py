"""Early data (0-RTT): answered before the handshake is over, once, and only where a copy does no harm (CONFORMANCE T6, RFC 8470)."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gwcore._speedups.shm import Segment

from gwcore.config.load import ConfigErrors, load_text
from tests.early_client import ACCEPTED, REJECTED, EarlyClient, Line, allow_more, allowed, make_older
from tests.redis_server import RedisServer, redis_server
from tests.support import PlaneThread, Upstream, ok, plane, proxy_config, read_reply, wait_until
from tests.tls import CA, client_context, issue, listener, secure

SECRET = "s" * 40
GET = b"GET /early HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST /early HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello"
ON = "sessions: store, early_data: on"
Make = Callable[..., PlaneThread]


@pytest.fixture
def backend(upstream: Callable[..., Upstream]) -> Upstream:
    def handler(c: Any) -> None:
        while True:
            head, _ = c.request()
            if b"/wait" in head:
                time.sleep(0.5)
            c.send(ok(b"x" * 300000 if b"/long" in head else b"hello"))

    return upstream(handler)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as r:
        yield r


@pytest.fixture
def machine(tmp_path: Path, backend: Upstream) -> Iterator[Make]:
    """Planes in front of the same upstream, each on a machine of its own if not told otherwise."""
    with contextlib.ExitStack() as stack:

        def make(
            redis: str = "", tls: str = ON, more: str = "", deadline: str = "2s", to: Upstream = backend, **kw: Any
        ) -> PlaneThread:
            shared = f", redis: on, secret: {SECRET}" if redis else ""
            text = f"tls: {{sessions: {{cache: 800{shared}}}}}\n"
            text += f"redis: {{url: '{redis}', deadline: {deadline}}}\n" if redis else ""
            return stack.enter_context(
                plane(
                    proxy_config(to.address, extra=text + more),
                    listener=listener(issue(tmp_path, "a.test"), more=tls),
                    address="127.0.0.1:1",
                    **kw,
                )
            )

        yield make


@pytest.fixture
def client() -> EarlyClient:
    return EarlyClient()


def figures(p: PlaneThread) -> dict[str, int]:
    return p.segment.tls_figures()["early_data"]


def heads(backend: Upstream, path: bytes = b"/early") -> list[bytes]:
    """Of the requests for a path that have reached the upstream."""
    requests = b"".join(bytes(r) for r in backend.seen).split(b"\r\n\r\n")
    return [r for r in requests if b" " + path + b" HTTP" in r]


def marks(head: bytes) -> list[bytes]:
    return [line for line in head.split(b"\r\n") if line.lower().startswith(b"early-data")]


def come_again(p: PlaneThread, client: EarlyClient, early: bytes, session: Any = None) -> Line:
    line = client.again(p.connect(), session or client.session(p.connect()), early)
    line.send_flight()
    return line


def test_the_answer_comes_before_the_handshake_is_over(machine, client, backend):  # T6
    p = machine()
    request = b"GET /early HTTP/1.1\r\nHost: a.test\r\nEarly-Data: 0\r\nEARLY-DATA: x\r\n\r\n"
    with come_again(p, client, request) as line:
        assert line.reply().status == 200 and line.speaker.early == ACCEPTED
        assert p.segment.tls_figures()["resumed"]["local"] == 0  # Finished is here
        assert marks(heads(backend)[0]) == [b"Early-Data: 1"]
        line.release()
        assert line.ask(b"GET /late HTTP/1.1\r\nHost: a.test\r\n\r\n").status == 200
        assert marks(heads(backend, b"/late")[0]) == []
    assert figures(p) == {"accepted": 1, "refused": 0} and p.segment.tls_figures()["resumed"]["local"] == 1
    assert p.segment.tls_figures()["failed"] == 0


@pytest.mark.parametrize(
    "request_",
    [
        POST,
        POST.replace(b"POST", b"PUT"),
        b"DELETE /early HTTP/1.1\r\nHost: a.test\r\n\r\n",
        POST.replace(b"POST", b"GET"),
        b"GET /early HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET /early HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)
def test_what_is_not_safe_is_to_come_later(machine, client, backend, request_):  # T6
    p = machine()
    with come_again(p, client, request_) as line:
        reply = line.reply()
        assert reply.status == 425 and json.loads(reply.body)["reason"] == "too_early"
        line.release()
        assert heads(backend) == []
        assert line.ask(request_).status == 200  # on the same connection
        assert marks(heads(backend)[0]) == []
    assert p.reasons()["too_early"] == 1


@pytest.mark.parametrize("request_", [GET, GET.replace(b"GET", b"HEAD"), GET.replace(b"GET", b"OPTIONS")])
def test_what_is_safe_is_served(machine, client, backend, request_):
    p = machine()
    with come_again(p, client, request_) as line:
        if request_.startswith(b"HEAD"):
            assert read_reply(line, to_head=True).status == 200
        else:
            assert line.reply().status == 200
    assert len(heads(backend)) == 1


def replay(p: PlaneThread, flight: bytes) -> None:
    """Send a copy of a first flight; nothing of its early data is answered."""
    with p.connect() as s:
        s.sendall(flight)
        s.settimeout(0.5)
        came = b""
        with contextlib.suppress(OSError):
            while data := s.recv(65536):
                came += data
        assert came


@pytest.mark.parametrize("where", ["same worker", "other worker", "first copy in front"])
def test_a_copy_of_the_flight_reaches_nobody(machine, client, backend, where):  # T6
    segment = Segment.create(2, 800)
    a, b = machine(segment=segment), machine(segment=segment, number=1)
    session = client.session(a.connect())
    with client.again(b.connect(), session, GET) as line:
        if where == "first copy in front":
            with a.connect() as s:
                s.sendall(line.speaker.flight)
                wait_until(lambda: len(heads(backend)) == 1)
            line.send_flight()
            line.finish()
            assert line.speaker.early == REJECTED
            assert line.ask(GET).status == 200  # the client's own decision
            assert [marks(h) for h in heads(backend)] == [[b"Early-Data: 1"], []]
            assert figures(a) == {"accepted": 1, "refused": 1}
            return
        line.send_flight()
        assert line.reply().status == 200
        line.release()
        for _ in range(3):
            replay(b if where == "same worker" else a, line.speaker.flight)
    assert len(heads(backend)) == 1 and figures(a)["accepted"] == 1


def test_of_many_copies_at_once_one_is_served(machine, client, backend):
    segment = Segment.create(2, 800)
    a, b = machine(segment=segment), machine(segment=segment, number=1)
    for n in range(1, 11):
        flight = client.again(socket.socket(), client.session(a.connect()), GET).speaker.flight
        socks = [p.connect() for p in (a, b) * 4]
        threads = [threading.Thread(target=s.sendall, args=(flight,)) for s in socks]
        for t in threads:
            t.start()
        for s, t in zip(socks, threads, strict=True):
            t.join()
            s.settimeout(5)
            assert s.recv(1)
        wait_until(lambda n=n: len(heads(backend)) == n)
        for s in socks:
            s.close()
    assert figures(a)["accepted"] == 10 == len(heads(backend))


def shared_session(client: EarlyClient, p: PlaneThread) -> Any:
    written = p.segment.tls_figures()["redis"]["written"]
    session = client.session(p.connect())
    wait_until(lambda: p.segment.tls_figures()["redis"]["written"] > written)
    return session


@pytest.mark.parametrize("first", ["made it", "other"])
def test_a_fleet_takes_it_once(machine, client, backend, redis, first):
    a, b = machine(redis.url), machine(redis.url)
    session = shared_session(client, a)
    p = a if first == "made it" else b
    with client.again(p.connect(), session, GET) as line:
        line.send_flight()
        assert line.reply().status == 200 and line.speaker.early == ACCEPTED
        line.release()
        for q in (a, b, a, b):
            replay(q, line.speaker.flight)
        assert line.ask(b"GET /late HTTP/1.1\r\nHost: a.test\r\n\r\n").status == 200
    assert len(heads(backend)) == 1
    assert figures(a)["accepted"] + figures(b)["accepted"] == 1
    assert p.segment.tls_figures()["resumed"]["redis"] == 1
    wait_until(lambda: p.segment.tls_figures()["redis"]["written"] >= 1)  # the session that came of it
    again = shared_session(client, b)
    with client.again(b.connect(), again, GET) as line:
        line.send_flight()
        assert line.reply().status == 200 and line.speaker.early == ACCEPTED


def test_a_cluster_of_redis_takes_it_once(machine, client, backend):
    with redis_server(cluster=True) as r:
        a, b = (machine(r.url, deadline="2s, cluster: on") for _ in range(2))
        with client.again(b.connect(), shared_session(client, a), GET) as line:
            line.send_flight()
            assert line.reply().status == 200 and line.speaker.early == ACCEPTED
            line.release()
            replay(a, line.speaker.flight)
        assert len(heads(backend)) == 1


def test_of_many_copies_at_once_in_a_fleet_one_is_served(machine, client, backend, redis):
    a, b = machine(redis.url), machine(redis.url)
    for n in range(1, 6):
        flight = client.again(socket.socket(), shared_session(client, a), GET).speaker.flight
        socks = [p.connect() for p in (a, b) * 4]
        for s in socks:
            s.sendall(flight)
        for s in socks:
            s.settimeout(5)
            assert s.recv(1)
        wait_until(lambda n=n: len(heads(backend)) == n)
        for s in socks:
            s.close()
    assert figures(a)["accepted"] + figures(b)["accepted"] == 5 == len(heads(backend))


@pytest.mark.parametrize("how", ["stopped", "silent", "deleted"])
def test_without_a_word_of_redis_there_is_no_early_data(machine, client, backend, redis, how):
    a = machine(redis.url, deadline="100ms")
    session = shared_session(client, a)
    if how == "stopped":
        redis.stop()
    elif how == "silent":
        redis.command("CLIENT", "PAUSE", "60000", "ALL")
    else:
        redis.command("FLUSHALL")
    with client.again(a.connect(), session, GET) as line:
        line.send_flight()
        line.finish()
        assert line.speaker.early == REJECTED and line.speaker.resumed  # by this machine's copy
        assert heads(backend) == []
        assert line.ask(GET).status == 200
    f = a.segment.tls_figures()
    assert (
        f["early_data"] == {"accepted": 0, "refused": 1}
        and f["failed"] == 0
        and f["resumed"] == {"ticket": 0, "local": 1, "redis": 0}
    )


def test_a_flight_of_another_time_is_not_taken(machine, client, backend):
    """The client says how old its session is; what is sent on later than it was made does not fit. (Here the other way round, which is quicker.)"""
    p = machine()
    session = client.session(p.connect())
    make_older(session, 60)
    with client.again(p.connect(), session, GET) as line:
        line.send_flight()
        line.finish()
        assert line.speaker.early == REJECTED and line.speaker.resumed and heads(backend) == []
        assert line.ask(GET).status == 200


def test_too_much_of_it_ends_the_connection(machine, client, backend):
    p = machine()
    session = client.session(p.connect())
    assert allowed(session) == 16384
    allow_more(session, 1 << 20)
    with client.again(p.connect(), session, GET + b"GET /" + b"x" * 17000) as line, pytest.raises((ConnectionError, EOFError)):
        line.send_flight()
        while line.recv():
            pass
        raise EOFError
    wait_until(lambda: p.segment.tls_figures()["failed"] == 1)


def test_all_that_is_allowed_is_taken(machine, client, backend):
    p = machine()
    request = GET.replace(b"\r\n\r\n", b"".join(b"\r\nX-Pad: " + b"x" * 1000 for _ in range(7)) + b"\r\n\r\n")
    pipelined = (request * 3)[:16384]
    with come_again(p, client, pipelined) as line:
        replies = [line.reply().status]
        replies.append(line.reply().status)
        line.release()
        line.speaker.say((request * 3)[16384:])
        line.release()
        replies.append(line.reply().status)
    assert replies == [200] * 3
    assert [len(marks(h)) for h in heads(backend)] == [1, 1, 0]  # the third was whole after the handshake only


def test_byte_by_byte(machine, client, backend):
    p = machine()
    with client.again(p.connect(), client.session(p.connect()), GET * 2) as line:
        for i in range(len(line.speaker.flight)):
            line.s.sendall(line.speaker.flight[i : i + 1])
            if not i % 8:
                time.sleep(0.001)
        assert line.reply().status == 200 == line.reply().status
        held = line.held
        for i in range(len(held)):
            line.s.sendall(held[i : i + 1])
            time.sleep(0.001)
        line.held = b""
        assert line.ask(GET).status == 200
    assert len(heads(backend)) == 3 and figures(p)["accepted"] == 1


def test_a_head_that_the_handshake_cuts_in_two(machine, client, backend):
    p = machine()
    with come_again(p, client, GET[:20]) as line:
        line.finish()
        line.speaker.say(GET[20:])
        line.release()
        assert line.reply().status == 200
    assert marks(heads(backend)[0]) == []


def test_a_head_of_many_records(machine, client, backend):
    p = machine()
    session = client.session(p.connect())
    line = client.again(p.connect(), session, GET[:5])
    with line:
        line.send_flight()
        for i in range(5, len(GET)):
            line.speaker.say_early(GET[i : i + 1])
            line.s.sendall(line.speaker.out())
            time.sleep(0.001)
        assert line.reply().status == 200
    assert marks(heads(backend)[0]) == [b"Early-Data: 1"]


def test_a_long_answer(machine, client):
    p = machine()
    with come_again(p, client, GET.replace(b"/early", b"/long")) as line:
        assert len(line.reply().body) == 300000
        line.release()
        assert line.ask(GET).status == 200


def test_the_handshake_ends_while_the_answer_is_waited_for(machine, client, backend):
    p = machine()
    with come_again(p, client, GET.replace(b"/early", b"/wait")) as line:
        while not line.speaker.done:
            line.speaker.hear(line.s.recv(65536))
        line.release()
        wait_until(lambda: p.segment.tls_figures()["resumed"]["local"] == 1)
        assert p.counts()["exchanges"] == 1
        assert line.reply().status == 200
        assert line.ask(GET).status == 200


@pytest.mark.parametrize("early", [GET, GET[:9]])
def test_its_time_limit_stands(machine, client, early):
    p = machine(more="timeouts: {tls_handshake: 500ms, linger: 100ms}")
    with come_again(p, client, early) as line:
        if early == GET:
            assert line.reply().status == 200
        with contextlib.suppress(ConnectionError):
            while line.recv():
                pass
    wait_until(lambda: p.reasons().get("tls_handshake_timeout") == 1)


def test_the_last_answer_is_whole(machine, client):
    p = machine(more="timeouts: {linger: 300ms}")
    with come_again(p, client, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as line:
        reply = line.reply()
        assert reply.status == 200 and reply.get("Connection") == "close"
        line.release()
        with contextlib.suppress(ConnectionError):
            assert not line.recv()
        assert line.speaker.told_of_the_end


def test_an_upstreams_425_passes(machine, client, upstream):
    def handler(c: Any) -> None:
        while True:
            head, _ = c.request()
            c.send(b"HTTP/1.1 425 Too Early\r\nContent-Length: 0\r\n\r\n" if b"Early-Data: 1" in head else ok())

    p = machine(to=upstream(handler))
    with come_again(p, client, GET) as line:
        assert line.reply().status == 425
        line.release()
        assert line.ask(GET).status == 200
    assert p.reasons().get("too_early", 0) == 0


def test_who_says_that_it_came_early_is_believed(machine, backend):
    """A proxy before this one may have taken it in early data: the mark passes, once, whatever its value and on whatever connection (RFC 8470 5.1)."""
    p = machine()
    with secure(p.connect(), "a.test", client_context()) as s:
        s.sendall(GET.replace(b"\r\n\r\n", b"\r\nEarly-Data: 1\r\nearly-data: 0\r\nConnection: early-data\r\n\r\n"))
        assert read_reply(s).status == 200
    assert marks(heads(backend)[0]) == [b"Early-Data: 1"]


def test_off_it_is_skipped(machine, client, backend):  # T6
    segment = Segment.create(2, 800)
    on, off = machine(segment=segment), machine(segment=segment, number=1, tls="sessions: store")
    with client.again(off.connect(), client.session(on.connect()), GET) as line:
        line.send_flight()
        line.finish()
        assert line.speaker.early == REJECTED and line.speaker.resumed
        assert line.ask(GET.replace(b"/early", b"/late")).status == 200
    assert heads(backend) == [] and figures(on) == {"accepted": 0, "refused": 1}
    assert allowed(client.session(off.connect())) == 0


def test_a_reload_to_threads_takes_none(tmp_path, client):
    """Handshakes in threads refuse it; so do those that a plan with threads began before."""
    text = "routes: [{respond: {status: 200, body: OK}}]\n"
    tls = listener(issue(tmp_path, "a.test"), more=ON)
    with plane(text, listener=listener(issue(tmp_path, "a.test"), more="sessions: store")) as p:
        p.reload(text + "tls: {handshake_threads: 2}\n")
        p.listener = f", {tls}"
        p.reload(text)
        with come_again(p, client, GET) as line:
            line.finish()
            assert line.speaker.early == REJECTED and line.speaker.resumed
            assert line.ask(GET).status == 200


def test_a_client_certificate_is_known_at_once(machine, client, backend, tmp_path):
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    own = CA.issue_cert("client.test")
    own.private_key_pem.write_to_path(tmp_path / "own.key")
    own.cert_chain_pems[0].write_to_path(tmp_path / "own.pem")
    p = machine(tls=f"{ON}, client_auth: {{mode: require, ca: {tmp_path / 'ca.pem'}}}")
    known = EarlyClient(cert=str(tmp_path / "own.pem"), key=str(tmp_path / "own.key"))
    with come_again(p, known, GET) as line:
        assert line.reply().status == 200 and line.speaker.early == ACCEPTED
        line.release()
    assert b"X-Gwcore-Client-Fingerprint: sha256=" in heads(backend)[0]


@pytest.mark.parametrize("shared", [False, True], ids=["store", "redis"])
def test_a_hello_that_must_be_said_again_brings_none(machine, client, backend, redis, shared):
    """HelloRetryRequest: early data that came is skipped, never opened, and its copy as well (RFC 8446 4.2.10)."""
    p = machine(redis.url) if shared else machine()
    session = shared_session(client, p) if shared else client.session(p.connect())
    with EarlyClient(groups="P-521:X25519").again(p.connect(), session, GET) as line:
        line.send_flight()
        line.finish()
        assert line.speaker.early == REJECTED and line.speaker.resumed and heads(backend) == []
        assert line.ask(GET).status == 200
        replay(p, line.speaker.flight)
    assert [marks(h) for h in heads(backend)] == [[]]
    assert figures(p) == {"accepted": 0, "refused": 1}


def test_keys_change_after_early_data(machine, client, backend):
    p = machine()
    with come_again(p, client, GET) as line:
        assert line.reply().status == 200
        line.release()
        for _ in range(3):
            line.speaker.change_keys()
            assert len(line.ask(GET.replace(b"/early", b"/long")).body) == 300000
    assert p.segment.tls_figures()["failed"] == 0


def test_a_wrong_end_of_the_handshake_is_a_failure(machine, client):
    p = machine()
    for spoil in (slice(30, 31), slice(-1, None)):
        with come_again(p, client, GET) as line:
            assert line.reply().status == 200
            held = bytearray(line.held)
            held[spoil] = bytes([held[spoil][0] ^ 1])
            line.s.sendall(held)
            with contextlib.suppress(ConnectionError):
                while line.recv():
                    pass
    wait_until(lambda: p.segment.tls_figures()["failed"] == 2)
    assert p.reasons()["tls_handshake"] == 2


@pytest.mark.parametrize("path", [b"/early", b"/wait"])
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_clients_that_leave_at_any_byte_leave_nothing(machine, client, how, path):
    p = machine(more="timeouts: {linger: 100ms}")
    n, step = 0, 1 if path == b"/early" else 40
    while True:
        line = client.again(p.connect(), client.session(p.connect()), GET.replace(b"/early", path))
        flight = line.speaker.flight
        with line:
            line.s.sendall(flight[: n + 1])
            if n >= len(flight):  # then in the second flight
                while not line.speaker.done:
                    line.speaker.hear(line.s.recv(65536))
                held = line.speaker.out()
                if n - len(flight) >= len(held):
                    break
                line.s.sendall(held[: n - len(flight) + 1])
            if how == "rst":
                line.s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        n += step
    p.at_rest()
    assert n > 400


def test_openssls_own_client(machine, tmp_path, backend):
    p = machine()
    first, early, session = tmp_path / "first", tmp_path / "early", tmp_path / "session"
    first.write_bytes(GET.replace(b"/early", b"/first"))
    early.write_bytes(GET)
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{p.port}", "-servername", "a.test", "-alpn", "http/1.1", "-ign_eof"]

    def run(*more: str) -> str:
        with subprocess.Popen([*command, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as s:
            assert s.stdin
            s.stdin.write(first.read_bytes().replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            s.stdin.flush()
            out, _ = s.communicate(timeout=20)
            return out.decode(errors="replace")

    assert "200 OK" in run("-sess_out", str(session))
    out = run("-sess_in", str(session), "-early_data", str(early))
    assert "Early data was accepted" in out, out
    assert [marks(h) for h in heads(backend)] == [[b"Early-Data: 1"]]
    out = run("-sess_in", str(session), "-early_data", str(early))
    assert "Early data was rejected" in out and len(heads(backend)) == 1, out


@pytest.mark.parametrize(
    ("tls", "more", "want"),
    [
        ("early_data: on", "", "needs sessions: store"),
        ("early_data: on, sessions: off", "", "needs sessions: store"),
        (f"{ON}, versions: ['1.2']", "", "needs TLS 1.3"),
        (ON, "tls: {handshake_threads: 1}", "tls.handshake_threads"),
        (ON, "tls: {crypto: {asynchronous: on}}", "tls.crypto.asynchronous"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, tls, more, want):
    entry = listener(issue(tmp_path, "a.test"), more=tls)
    with pytest.raises(ConfigErrors, match=want):
        load_text(f"listeners: [{{address: '127.0.0.1:1', {entry}}}]\nroutes: [{{respond: {{status: 200}}}}]\n{more}")
