"""TLS where sockets are slow, clients are odd, and listeners come and go."""

from __future__ import annotations

import _socket
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.e2e.test_tls_upstream import SecureUpstream, answer
from tests.support import get, ok, plane, proxy_config, read_all, read_reply, wait_until
from tests.tls import CA, client_context, issue, listener, secure

RESPOND = "routes: [{respond: {status: 200, body: OK}}]"
GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


@pytest.fixture(params=[0, 2], ids=["inline", "threads"])
def threads(request: pytest.FixtureRequest) -> str:
    return f"\ntls: {{handshake_threads: {request.param}}}"


class Client:
    """TLS by hand, to choose what leaves in which segment."""

    def __init__(self) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_context().wrap_bio(self.incoming, self.outgoing, server_hostname="a.test")
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()

    def handshake(self, s: socket.socket, before: bytes = b"") -> None:
        s.sendall(before + self.outgoing.read())
        while True:
            self.incoming.write(s.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                return
            s.sendall(self.outgoing.read())

    def say(self, s: socket.socket, plain: bytes) -> None:
        self.tls.write(plain)
        s.sendall(self.outgoing.read())


def test_a_hello_in_the_segment_of_the_proxy_header(tmp_path: Path, threads: str) -> None:
    tls = listener(issue(tmp_path, "a.test")) + ", proxy_protocol: on"
    with plane(RESPOND + "\ntrusted_proxies: [127.0.0.0/8]" + threads, listener=tls) as p:
        for _ in range(3):
            with p.connect() as s:
                c = Client()
                c.handshake(s, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
                c.say(s, GET)
                out = b""
                while b"OK" not in out:
                    c.incoming.write(s.recv(65536))
                    with contextlib.suppress(ssl.SSLWantReadError):
                        out += c.tls.read(65536)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_flight_longer_than_the_send_buffer_arrives(tmp_path: Path, threads: str, version: str) -> None:
    authorities = [
        trustme.CA(organization_name="x" * 60).cert_pem.bytes() for _ in range(120)
    ]  # their names stand in the request
    (tmp_path / "ca.pem").write_bytes(b"".join(authorities))
    tls = listener(issue(tmp_path, "a.test"), more=f"client_auth: {{mode: optional, ca: {tmp_path / 'ca.pem'}}}")
    with plane(RESPOND + "\ntimeouts: {tls_handshake: 3s}" + threads, listener=tls) as p:
        p.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        s.settimeout(5)
        s.connect(("127.0.0.1", p.port))
        with secure(s, context=client_context(version=version)) as t:
            t.sendall(GET)
            assert read_reply(t).status == 200


def test_a_body_whose_sender_has_ended_is_not_cut_while_the_session_holds_some_of_it(tmp_path: Path, upstream: Any) -> None:
    go = threading.Event()

    def slow(c: Any) -> None:
        head = c.head()
        go.wait(10)
        n = next(int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:"))
        c.send(ok(b"%d" % len(c.body(n))))

    u = upstream(slow)
    u.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with plane(proxy_config(u.address), listener=listener(issue(tmp_path, "a.test"))) as p:
        for n in (2_000_000, 3_000_000, 3_010_001, 3_100_003):
            go.clear()
            with secure(p.connect()) as s:
                s.sendall(b"POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % n + b"x" * n)
                _socket.socket.shutdown(s, socket.SHUT_WR)
                time.sleep(0.3)
                go.set()
                assert read_reply(s).body == b"%d" % n


@pytest.mark.parametrize("own", [True, False])
def test_who_has_said_close_notify_is_told_the_same(tmp_path: Path, threads: str, own: bool, upstream: Any) -> None:  # T7, U6
    def slow(c: Any) -> None:
        c.head()
        time.sleep(0.2)
        c.send(b"HTTP/1.0 200 OK\r\n\r\nOK")

    text = RESPOND if own else proxy_config(upstream(slow).address)
    with plane(text + threads, listener=listener(issue(tmp_path, "a.test"))) as p, p.connect() as s:
        c = Client()
        c.handshake(s)
        c.tls.write(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
        with contextlib.suppress(ssl.SSLWantReadError):
            c.tls.unwrap()
        s.sendall(c.outgoing.read())
        assert record_sizes(read_all(s))[-1] == 2 + 17  # an alert, its type and its tag


def record_sizes(raw: bytes) -> list[int]:
    sizes = []
    while raw:
        sizes.append(int.from_bytes(raw[3:5], "big"))
        raw = raw[5 + sizes[-1] :]
    return sizes


def test_records_grow_with_the_flow_and_are_small_again_after_a_pause(tmp_path: Path) -> None:
    """The first bytes can be read before all of a long record has come; later ones cost less."""
    body = 300_000
    text = f"routes: [{{respond: {{status: 200, body: '{'x' * body}'}}}}]"
    with plane(text, listener=listener(issue(tmp_path, "a.test"))) as p, p.connect() as s:
        c = Client()
        c.handshake(s)

        def flow() -> list[int]:
            c.say(s, GET)
            s.settimeout(5)
            raw, came, plain = b"", 0, b""
            while came < body:
                data = s.recv(65536)
                raw += data
                c.incoming.write(data)
                with contextlib.suppress(ssl.SSLWantReadError):
                    while True:
                        plain = plain[-4:] + c.tls.read(65536)
                        came += plain.count(b"x", 4 if came else 0)
            return [n for n in record_sizes(raw) if n > 1000]  # without the ticket

        first = flow()
        assert first[:16] == [4096 + 17] * 16 and set(first[16:-1]) == {16384 + 17}
        assert set(flow()[:-1]) == {16384 + 17}  # it goes on
        time.sleep(2.1)
        assert flow()[:16] == [4096 + 17] * 16


def test_a_listener_that_left_the_plan_serves_by_its_last(tmp_path: Path) -> None:
    other = "routes: [" + ", ".join(
        f"{{name: r{i}, match: {{prefix: /{i}}}, respond: {{status: 200, body: {'x' * 20_000}}}}}" for i in range(50)
    )
    tls = listener(issue(tmp_path, "a.test"), issue(tmp_path, "b.test"))
    with plane(RESPOND, listener=tls) as p, secure(p.connect()) as s:
        s.sendall(GET)
        assert read_reply(s).status == 200
        address, p.address, p.listener = p.address, "127.0.0.1:1", ""
        p.reload(other + ", {respond: {status: 200, body: OK}}]")
        with secure(p.connect()) as t:  # still listening
            t.sendall(GET.replace(b"a.test", b"b.test"))
            assert read_reply(t).status == 421
        p.call(lambda: p.plane.unlisten(address))
        assert p.call(p.plane.collect) == 0
        s.sendall(GET)
        assert read_reply(s).status == 200
        s.sendall(GET.replace(b"a.test", b"b.test"))
        assert read_reply(s).status == 421


def test_sessions_to_upstreams_are_not_counted_as_clients(tmp_path: Path) -> None:
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    u = SecureUpstream(answer, CA.issue_cert("127.0.0.1"))
    with plane(proxy_config(u.address, upstream=f"tls: {{ca: {tmp_path / 'ca.pem'}}}")) as p:
        with p.connect() as s:
            s.sendall(get())
            assert read_reply(s).status == 200
        p.reload(RESPOND)
        wait_until(lambda: p.counts()["upstream_connections"] == 0)
        assert p.segment.tls_figures()["sessions"] == 0
    u.close()


NO_THREADS = """
import resource, sys
from pathlib import Path
from tests.support import plane, read_reply
from tests.tls import issue, listener, secure
text = "routes: [{respond: {status: 200, body: OK}}]\\n"

def visit():
    with secure(p.connect()) as s:
        s.sendall(b"GET / HTTP/1.1\\r\\nHost: a.test\\r\\n\\r\\n")
        return read_reply(s).status

with plane(text, listener=listener(issue(Path(sys.argv[1]), "a.test"))) as p:
    assert visit() == 200
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), resource.RLIM_INFINITY))  # no room for a thread's stack
    try:
        p.reload(text + "tls: {handshake_threads: 4}\\n")
    except ValueError as why:
        assert "tls.handshake_threads" in str(why), why
    else:
        raise AssertionError("the plan was taken")
    assert visit() == 200 and p.call(p.plane.collect) == 0
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    p.reload(text + "tls: {handshake_threads: 4}\\n")
    assert visit() == 200
print("good")
"""


@pytest.mark.skipif(bool(os.environ.get("GWCORE_SANITIZED")), reason="the sanitizer takes all the address space")
def test_a_plan_whose_threads_do_not_start_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_THREADS, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and done.stdout == "good\n", done.stdout + done.stderr
