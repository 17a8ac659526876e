"""TLS termination as clients see it (CONFORMANCE section 8)."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gwcore.config.load import load_text
from tests.support import PlaneThread, Upstream, echo_handler, get, ok, plane, proxy_config, read_all, read_reply, wait_until
from tests.tls import CA, OTHER_CA, client_context, issue, listener, secure

RESPOND = "routes: [{respond: {status: 200, body: OK}}]"


@pytest.fixture(params=[0, 2], ids=["inline", "threads"])
def gateway(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., PlaneThread]]:
    """Planes behind TLS for a.test, with handshakes in the worker and in threads; at rest when the test is over."""
    with contextlib.ExitStack() as stack:

        def make(text: str = RESPOND, tls: str = "", more: str = "", faults: str = "{}") -> PlaneThread:
            text += f"\ntls: {{handshake_threads: {request.param}, faults: {faults}}}"
            return stack.enter_context(plane(text, listener=tls or listener(issue(tmp_path, "a.test"), more=more)))

        yield make


def ask(p: PlaneThread, name: str | None = "a.test", request: bytes = b"", **kw: Any) -> Any:
    with secure(p.connect(), name, **kw) as s:
        s.sendall(request or f"GET / HTTP/1.1\r\nHost: {name or 'a.test'}\r\n\r\n".encode())
        return read_reply(s)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_request_is_answered(gateway, version):  # T1
    p = gateway()
    with secure(p.connect(), context=client_context(version=version)) as s:
        assert s.version() == f"TLSv{version}"
        assert s.compression() is None
        for _ in range(3):
            s.sendall(get(Host="a.test").replace(b"Host: a\r\n", b""))
            assert read_reply(s).body == b"OK"


def test_old_versions_are_refused(gateway):  # T1
    p = gateway(more="profile: modern")
    with pytest.raises(ssl.SSLError, match="alert protocol version"):
        secure(p.connect(), context=client_context(version="1.2"))
    wait_until(lambda: p.reasons().get("tls_handshake") == 1)


def test_plain_http_gets_a_plain_refusal(gateway):  # T1
    p = gateway()
    with p.connect() as s:
        s.sendall(get())
        r = read_reply(s)
        assert r.status == 400 and b'"reason":"bad_request"' in r.body
        assert read_all(s) == b""


def test_alpn(gateway):  # T2
    p = gateway()
    c = client_context()
    c.set_alpn_protocols(["h2", "http/1.1"])
    with secure(p.connect(), context=c) as s:
        assert s.selected_alpn_protocol() == "http/1.1"
    c = client_context()
    c.set_alpn_protocols(["h2"])
    with pytest.raises(ssl.SSLError, match="no application protocol"):
        secure(p.connect(), context=c)


def subject(s: ssl.SSLSocket) -> set[str]:
    return {v for _, v in s.getpeercert()["subjectAltName"]}


def test_the_name_chooses_the_certificate(gateway, tmp_path):  # T3
    tls = listener(*(issue(tmp_path, *n) for n in [("a.test",), ("b.test", "c.test"), ("*.d.test",)]))
    p = gateway(tls=tls)
    for name, want in [("a.test", "a.test"), ("C.test", "c.test"), ("x.d.test", "*.d.test")]:
        with secure(p.connect(), name) as s:
            assert want in subject(s)
    for unknown in ("e.test", "x.y.d.test", None):
        c = client_context()
        c.check_hostname = False
        with secure(p.connect(), unknown, c) as s:
            assert subject(s) == {"a.test"}


def test_an_unknown_name_can_be_refused(gateway):  # T3
    p = gateway(more="unknown_name: refuse")
    assert ask(p).status == 200
    with pytest.raises(ssl.SSLError, match="unrecognized name"):
        ask(p, "b.test")
    assert ask(p, None).status == 200


def test_rsa_and_ecdsa_side_by_side(gateway, tmp_path):
    p = gateway(tls=listener(issue(tmp_path, "a.test", rsa=True), issue(tmp_path, "a.test")))
    for cipher, kind in [("ECDHE-RSA-AES128-GCM-SHA256", "RSA"), ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDSA")]:
        c = client_context(version="1.2")
        c.set_ciphers(cipher)
        with secure(p.connect(), context=c) as s:
            assert kind in s.cipher()[0]


@pytest.mark.parametrize(
    ("name", "host", "status"),
    [
        ("a.test", "a.test", 200),
        ("a.test", "A.TEST:443", 200),
        ("a.test", "b.test", 421),
        ("b.test", "c.test", 200),
        ("b.test", "a.test", 421),
        ("a.test", "unknown.test", 421),
        (None, "a.test", 200),
        (None, "unknown.test", 200),
        (None, "b.test", 421),
    ],
)
def test_hosts_of_another_certificate_are_misdirected(gateway, tmp_path, name, host, status):  # T3
    p = gateway(tls=listener(issue(tmp_path, "a.test"), issue(tmp_path, "b.test", "c.test")))
    r = ask(p, name, f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert r.status == status
    if status == 421:
        assert b'"reason":"misdirected"' in r.body


def test_large_bodies_both_ways(gateway, upstream):
    u = upstream(echo_handler)
    p = gateway(proxy_config(u.address))
    body = bytes(range(256)) * 12_000
    with secure(p.connect()) as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert read_reply(s, timeout=20).body.endswith(body)


def test_a_slow_reader_holds_the_upstream_back(gateway, upstream):
    sent = 0

    def handler(c: Any) -> None:
        nonlocal sent
        c.request()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        for _ in range(500):
            c.send(bytes(100_000))
            sent += 100_000

    p = gateway(proxy_config(upstream(handler).address))
    raw = p.connect()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    with secure(raw) as s:
        s.sendall(get().replace(b"Host: a\r\n", b"Host: a.test\r\n"))
        wait_until(lambda: p.counts()["buffer_bytes"] > 30_000)
        before = -1
        while before != sent:
            before = sent
            threading.Event().wait(0.3)
        assert sent < 20_000_000 and p.counts()["buffer_bytes"] < 400_000
        got = len(read_reply(s, to_head=True).rest)
        while got < 50_000_000:
            got += len(s.recv(1 << 20))


def test_every_split_of_a_handshake_and_request_gives_the_same(gateway):  # B15
    """The client's bytes go through a pipe that hands them on one at a time."""
    p = gateway()
    out, into = ssl.MemoryBIO(), ssl.MemoryBIO()
    o = client_context().wrap_bio(out, into, server_hostname="a.test")
    with p.connect() as s:

        def move(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    for b in into.read():
                        s.sendall(bytes([b]))
                    data = s.recv(65536)
                    assert data
                    out.write(data)

        move(o.do_handshake)
        o.write(get().replace(b"Host: a\r\n", b"Host: a.test\r\n"))
        assert b"200 OK" in move(lambda: o.read(65536))


def test_an_abort_at_every_byte_of_a_handshake_leaves_nothing(gateway):
    p = gateway()
    into = ssl.MemoryBIO()
    o = client_context().wrap_bio(ssl.MemoryBIO(), into, server_hostname="a.test")
    with pytest.raises(ssl.SSLWantReadError):
        o.do_handshake()
    hello = into.read()
    for n in range(0, len(hello), 3):
        with p.connect() as s:
            s.sendall(hello[:n])
            if n % 2:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    p.at_rest()


def test_rubbish_ends_with_an_alert(gateway):
    p = gateway()
    for text in (
        b"\x16\x03\x01\x00\x05hello",
        b"\x16\x03\x01\xff\xff" + bytes(20000),
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x80\x2e\x01\x00\x02",
        bytes(100),
    ):
        with p.connect() as s:
            s.sendall(text)
            s.shutdown(socket.SHUT_WR)
            read_all(s)
    assert ask(p).status == 200


def test_a_handshake_has_a_time_limit(gateway, tmp_path):  # T7
    p = gateway(RESPOND + "\ntimeouts: {tls_handshake: 300ms}")
    with p.connect() as s:
        s.sendall(b"\x16\x03\x01")
        read_all(s)
    wait_until(lambda: p.reasons().get("tls_handshake_timeout") == 1)


def test_close_notify_is_sent_and_a_cut_has_none(gateway, upstream):  # T7, U5
    def handler(c: Any) -> None:
        head, _ = c.request()
        c.send(ok(b"x") if b"whole" in head else b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    p = gateway(proxy_config(upstream(handler).address))
    with secure(p.connect()) as s:
        s.sendall(b"GET /whole HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        assert s.recv(65536).endswith(b"x")
        assert s.recv(10) == b""
    with secure(p.connect(), suppress_ragged_eofs=False) as s:
        s.sendall(b"GET /half HTTP/1.1\r\nHost: a.test\r\n\r\n")
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            while s.recv(65536):
                pass


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_sessions_are_resumed_but_never_across_names(gateway, tmp_path, version):  # T4
    p = gateway(tls=listener(issue(tmp_path, "a.test"), issue(tmp_path, "b.test", "c.test")))
    c = client_context(version=version)

    def visit(name: str, session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession]:
        with secure(p.connect(), name, c, **({"session": session} if session else {})) as s:
            s.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            assert read_reply(s).status == 200
            return bool(s.session_reused), s.session

    reused, session = visit("a.test", None)
    assert not reused
    assert visit("a.test", session)[0]
    _, session = visit("b.test", None)
    assert visit("b.test", session)[0]
    assert not visit("a.test", session)[0]
    assert not visit("c.test", session)[0]


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_resumed_session_brings_the_ticket_for_the_next(gateway, version):
    """With TLS 1.3, whose clients use a ticket once: without a new one every second visit was a full handshake."""
    p = gateway()
    c = client_context(version=version)
    session, reused = None, []
    for _ in range(4):
        with secure(p.connect(), "a.test", c, **({"session": session} if session else {})) as s:
            s.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert read_reply(s).status == 200
            session = s.session
            reused.append(bool(s.session_reused))
    assert reused == [False, True, True, True]
    assert p.segment.tls_figures()["tickets_issued"] == (4 if version == "1.3" else 1)


def test_client_certificates(gateway, tmp_path):
    ca = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(ca)
    for mode, bare in (("optional", True), ("require", False)):
        p = gateway(more=f"client_auth: {{mode: {mode}, ca: {ca}}}")
        assert ask(p, context=client_context(identity=CA.issue_cert("client"))).status == 200
        if bare:
            assert ask(p).status == 200
        else:
            with pytest.raises((ssl.SSLError, ConnectionResetError, EOFError)):
                ask(p)
        with pytest.raises((ssl.SSLError, ConnectionResetError, EOFError)):
            ask(p, context=client_context(identity=OTHER_CA.issue_cert("stranger")))
        wait_until(lambda p=p, n=1 + (not bare): p.reasons().get("tls_client_cert") == n)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_client_certificates_are_no_further_from_the_authority_than_depth_says(gateway, tmp_path, depth):
    ca = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(ca)
    p = gateway(more=f"client_auth: {{mode: require, ca: {ca}, depth: {depth}}}")
    issuer = CA
    for between in range(4):
        context = client_context(identity=issuer.issue_cert("client"))
        if between <= depth:
            assert ask(p, context=context).status == 200
        else:
            with pytest.raises((ssl.SSLError, ConnectionResetError, EOFError)):
                ask(p, context=context)
        issuer = issuer.create_child_ca()
    wait_until(lambda: p.reasons().get("tls_client_cert") == 3 - depth)


def test_the_upstream_is_told_who_the_client_is_and_nobody_can_claim_it(tmp_path, upstream):  # F10, C12
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    u = upstream(echo_handler)
    log = tmp_path / "log"
    tls = listener(issue(tmp_path, "a.test"), more=f"client_auth: {{mode: optional, ca: {tmp_path / 'ca.pem'}}}")
    with plane(proxy_config(u.address), listener=tls, log=str(log)) as p:
        request = b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Gwcore-Client-Subject: CN=admin\r\n\r\n"
        assert b"X-Gwcore-Client" not in ask(p, request=request).body
        alias = request.replace(b"X-Gwcore-Client-Subject", b"X_Gwcore_Client-Subject")  # one name to WSGI and CGI
        assert b"CN=admin" not in ask(p, request=alias).body
        evil = CA.issue_cert("client.test", common_name="a\r\nX-Admin: 1, O=ü", organization_name="Acme")
        context = client_context(identity=evil)
        for _ in range(2):
            body = ask(p, request=request, context=context).body
            subject = next(x for x in body.split(b"\r\n") if x.startswith(b"X-Gwcore-Client-Subject: "))
            assert b"O=Acme" in subject and b"\\0D\\0A" in subject and b"CN=admin" not in body and b"\r\nX-Admin" not in body
            assert b"X-Gwcore-Client-Fingerprint: sha256=" in body
    lines = [json.loads(x) for x in log.read_text().splitlines()]
    assert lines[0]["tls"] == "TLSv1.3" and lines[0]["tls_cipher"].startswith("TLS_") and lines[0]["tls_client"] == ""
    assert "O=Acme" in lines[2]["tls_client"]


def test_a_session_without_a_client_certificate_opens_no_door_that_wants_one(gateway, tmp_path):  # T4
    ca = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(ca)
    open_, closed = gateway(), gateway(more=f"client_auth: {{mode: require, ca: {ca}}}")
    c = client_context(version="1.2")
    with secure(open_.connect(), context=c) as s:
        session = s.session
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        secure(closed.connect(), context=c, session=session)


def test_a_reload_takes_new_certificates_and_leaves_connections(gateway, tmp_path):  # T9
    p = gateway()
    with secure(p.connect()) as s:
        first = s.getpeercert(True)
        issue(tmp_path, "a.test")
        p.reload(RESPOND)
        s.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert read_reply(s).status == 200
        with secure(p.connect()) as t:
            assert t.getpeercert(True) != first


@pytest.mark.parametrize("fault", ["fail", "stall", "cut"])
def test_handshakes_are_spoilt_where_that_is_asked_for(gateway, fault, monkeypatch):
    with pytest.raises(Exception, match="faults are for tests"):
        load_text(f"listeners: [{{address: '127.0.0.1:1'}}]\n{RESPOND}\ntls: {{faults: {{{fault}: 1}}}}")
    monkeypatch.setenv("GWCORE_CHAOS", "1")
    limit = "300ms" if fault == "stall" else "10s"
    p = gateway(RESPOND + f"\ntimeouts: {{tls_handshake: {limit}}}", faults=f"{{{fault}: 0.5}}")
    good = bad = 0
    for _ in range(40):
        try:
            assert ask(p).status == 200
            good += 1
        except (OSError, EOFError):
            bad += 1
    assert good > 5 and bad > 5
    wait_until(lambda: p.reasons()["tls_handshake_timeout" if fault == "stall" else "fault_injected"] == bad)


def test_a_refusal_before_the_handshake_is_a_close_not_plain_text(gateway):
    p = gateway(RESPOND + "\nlimits: {connections_per_client: 1}")
    with secure(p.connect()) as s:
        with p.connect() as t:
            assert read_all(t) == b""
        wait_until(lambda: p.reasons().get("connection_limit") == 1)
        s.sendall(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")  # HTTP/1.0 need not name a host
        assert read_reply(s).status == 200


def test_websockets_over_tls(gateway, upstream):
    def handler(c: Any) -> None:
        c.head()
        c.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        while True:
            c.buffer = b""
            c.more()
            c.send(c.buffer)

    p = gateway(proxy_config(upstream(handler).address).replace("upstream: be}", "upstream: be, upgrade: [websocket]}"))
    with secure(p.connect()) as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert read_reply(s, to_head=True).status == 101
        for n in (1, 1000, 100_000):
            s.sendall(b"x" * n)
            got = 0
            while got < n:
                got += len(s.recv(65536))


def test_proxy_protocol_comes_before_the_handshake(tmp_path):
    tls = listener(issue(tmp_path, "a.test")) + ", proxy_protocol: on"
    with plane(RESPOND + "\ntrusted_proxies: [127.0.0.0/8]", listener=tls) as p, p.connect() as raw:
        raw.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        with secure(raw) as s:
            s.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert read_reply(s).status == 200


def test_upstream_sees_https(gateway, upstream: Callable[..., Upstream]):
    u = upstream(echo_handler)
    p = gateway(proxy_config(u.address))
    body = ask(p, request=b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-Proto: http\r\n\r\n").body
    assert b"X-Forwarded-Proto: https\r\n" in body and b"X-Forwarded-Proto: http\r\n" not in body
