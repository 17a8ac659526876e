"""TLS to upstreams (CONFORMANCE T8), and what a bad one comes to."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support import Conversation, Upstream, get, ok, plane, proxy_config, read_reply, wait_until
from tests.tls import CA, OTHER_CA

LeafCert = trustme.LeafCert


class SecureUpstream(Upstream):
    """An upstream behind TLS; `handshakes` has (server name, resumed, client's subject) of each."""

    def __init__(self, handler: Callable[[Conversation], None], cert: LeafCert, *, want: bool = False, version: Any = None):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cert.configure_cert(self.context)
        if version:
            self.context.maximum_version = version
        if want:
            CA.configure_trust(self.context)
            self.context.verify_mode = ssl.CERT_REQUIRED
        self.handshakes: list[tuple[str | None, bool, Any]] = []
        self.names: list[str | None] = []
        self.context.sni_callback = lambda s, name, c: self.names.append(name)
        super().__init__(handler)

    def _serve(self, s: socket.socket, record: bytearray) -> None:
        with contextlib.suppress(OSError):
            s = self.context.wrap_socket(s, server_side=True)
            self.handshakes.append((self.names[-1] if self.names else None, bool(s.session_reused), s.getpeercert()))
            super()._serve(s, record)


def answer(c: Conversation) -> None:
    while True:
        head, body = c.request()
        c.send(ok(head + body))


@pytest.fixture
def secure() -> Iterator[Callable[..., SecureUpstream]]:
    made: list[SecureUpstream] = []

    def make(handler: Callable[[Conversation], None] = answer, *names: str, ca: trustme.CA = CA, **kw: Any) -> SecureUpstream:
        made.append(SecureUpstream(handler, ca.issue_cert(*(names or ("127.0.0.1",))), **kw))
        return made[-1]

    yield make
    for u in made:
        u.close()


@pytest.fixture
def ca(tmp_path: Path) -> str:
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")


def config(u: Upstream, tls: str, more: str = "") -> str:
    return proxy_config(u.address, upstream=f"tls: {tls}{', ' + more if more else ''}")


def ask(p: Any, request: bytes = b"") -> Any:
    with p.connect() as s:
        s.sendall(request or get())
        return read_reply(s)


def test_a_request_goes_over_tls_and_the_connection_is_reused(secure, ca):
    u = secure()
    with plane(config(u, f"{{ca: {ca}}}")) as p:
        for _ in range(5):
            assert ask(p).status == 200
        assert len(u.seen) == 1 and u.handshakes[0][0] is None
        cell = p.segment.snapshot()["upstreams"]["be"]
        assert cell["tls_full"] == 1 and cell["reuses"] == 4


def test_large_bodies_both_ways(secure, ca):
    u = secure()
    body = bytes(range(256)) * 8000
    with plane(config(u, f"{{ca: {ca}}}")) as p:
        r = ask(p, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert r.body.endswith(body)


@pytest.mark.parametrize(
    ("names", "tls", "reason"),
    [
        (("127.0.0.1",), "{ca: CA}", ""),
        (("other.test",), "{ca: CA}", "upstream_tls_verify"),
        (("other.test",), "{ca: CA, name: other.test}", ""),
        (("*.other.test",), "{ca: CA, name: a.other.test}", ""),
        (("*.other.test",), "{ca: CA, name: a.b.other.test}", "upstream_tls_verify"),
        (("other.test",), "{ca: CA, verify: off}", ""),
        (("127.0.0.1",), "on", "upstream_tls_verify"),
        (("127.0.0.1",), "{verify: off}", ""),
    ],
)
def test_the_certificate_is_verified(secure, ca, names, tls, reason):  # T8
    u = secure(answer, *names)
    with plane(config(u, tls.replace("CA", ca))) as p:
        r = ask(p)
        if reason:
            assert r.status == 502 and f'"reason":"{reason}"'.encode() in r.body and not any(u.seen)
        else:
            assert r.status == 200


def test_a_stranger_with_the_right_name_is_refused(secure, ca):  # T8
    u = secure(answer, "127.0.0.1", ca=OTHER_CA)
    with plane(config(u, f"{{ca: {ca}}}")) as p:
        assert b"upstream_tls_verify" in ask(p).body


def test_the_server_name_is_sent(secure, ca):
    u = secure(answer, "a.test", "b.test")
    with plane(config(u, f"{{ca: {ca}, name: a.test}}")) as p:
        assert ask(p).status == 200 and u.names == ["a.test"]
    with plane(config(u, f"{{ca: {ca}, name: a.test, sni: b.test}}")) as p:
        assert ask(p).status == 200 and u.names == ["a.test", "b.test"]


def test_our_certificate_is_shown(secure, ca, tmp_path):
    own = CA.issue_cert("gateway.test")
    own.private_key_pem.write_to_path(tmp_path / "own.key")
    (tmp_path / "own.pem").write_bytes(b"".join(c.bytes() for c in own.cert_chain_pems))
    u = secure(answer, want=True)
    with plane(config(u, f"{{ca: {ca}, cert: {tmp_path / 'own.pem'}, key: {tmp_path / 'own.key'}}}")) as p:
        assert ask(p).status == 200
        assert ("DNS", "gateway.test") in u.handshakes[0][2]["subjectAltName"]
    with plane(config(u, f"{{ca: {ca}}}")) as p:
        assert ask(p).status == 502


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, None])
def test_sessions_are_resumed_by_endpoint(secure, ca, version):
    def once(c: Conversation) -> None:
        c.request()
        c.send(ok(b"x", b"Connection: close\r\n"))

    u = secure(once, version=version)
    with plane(config(u, f"{{ca: {ca}}}")) as p:
        for _ in range(4):
            assert ask(p).status == 200
        assert [h[1] for h in u.handshakes] == [False, True, True, True]
        assert p.segment.snapshot()["upstreams"]["be"]["tls_resumed"] == 3


def test_another_tls_identity_is_another_connection(secure, ca):
    u = secure(answer, "127.0.0.1", "a.test")
    with plane(config(u, f"{{ca: {ca}}}")) as p:
        assert ask(p).status == 200
        p.reload(config(u, f"{{ca: {ca}, name: a.test}}"))
        assert ask(p).status == 200
        assert len(u.seen) == 2 and [h[1] for h in u.handshakes] == [False, False]
        p.reload(config(u, f"{{ca: {ca}, name: a.test}}"))
        assert ask(p).status == 200 and len(u.seen) == 2


def test_faults_of_a_handshake_have_reasons(upstream, ca):
    def plain(c: Conversation) -> None:
        c.more()
        c.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    def reset(c: Conversation) -> None:
        c.more()
        c.reset()

    for handler in (plain, reset, lambda c: c.more()):
        with plane(config(upstream(handler), f"{{ca: {ca}}}")) as p:
            r = ask(p)
            assert r.status == 502 and b'"reason":"upstream_tls"' in r.body
    silent = upstream(lambda c: (c.more(), time.sleep(5)))
    with plane(config(silent, f"{{ca: {ca}}}", "timeouts: {tls: 200ms, connect: 100ms}, retry: {attempts: 0}")) as p:
        r = ask(p)
        assert r.status == 504 and b"connect_timeout" in r.body


def test_a_cut_answer_that_ends_with_the_connection_is_cut(secure, ca):  # U5, U6, T7
    def cut(c: Conversation) -> None:
        c.request()
        c.send(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
        c.s._sslobj = None  # FIN without close_notify
        socket.socket.close(c.s)

    def whole(c: Conversation) -> None:
        c.request()
        c.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        with contextlib.suppress(OSError):
            c.s.unwrap()

    with plane(config(secure(whole), f"{{ca: {ca}}}")) as p:
        assert ask(p).body == b"all of it"
    with plane(config(secure(cut), f"{{ca: {ca}}}")) as p:
        with pytest.raises((EOFError, ConnectionResetError)):
            ask(p)
        wait_until(lambda: p.reasons().get("response_truncated") == 1)


def test_a_client_that_leaves_during_the_handshake_leaves_nothing(upstream, ca):
    silent = upstream(lambda c: (c.more(), time.sleep(1)))
    with plane(config(silent, f"{{ca: {ca}}}")) as p:
        for _ in range(5):
            with p.connect() as s:
                s.sendall(get())
                wait_until(lambda: p.counts()["upstream_connections"] == 1)
            wait_until(lambda: p.counts()["upstream_connections"] == 0)


def test_proxy_protocol_comes_before_tls(ca):
    cert = CA.issue_cert("127.0.0.1")
    seen = []

    class Proxied(SecureUpstream):
        def _serve(self, s: socket.socket, record: bytearray) -> None:
            line = b""
            while not line.endswith(b"\r\n"):
                line += s.recv(1)
            seen.append(line)
            super()._serve(s, record)

    u = Proxied(answer, cert)
    with plane(config(u, f"{{ca: {ca}}}", "proxy_protocol: v1, pool: {granularity: template}")) as p:
        assert ask(p).status == 200
        assert seen[0].startswith(b"PROXY TCP4 127.0.0.1 ")
        assert not bytes(u.seen[0]).startswith(b"PROXY")
    u.close()


def test_warm_connections_have_their_tls(secure, ca):
    u = secure()
    with plane(config(u, f"{{ca: {ca}}}", "pool: {min_idle: 2}")) as p:
        wait_until(lambda: p.counts()["pooled"] == 2)
        assert ask(p).status == 200
        assert len(u.handshakes) == 2


def test_authorities_are_looked_for_where_distributions_keep_them(tmp_path, monkeypatch):
    from gwcore._speedups import crypto
    from gwcore.config import certs
    from gwcore.config.tls import UpstreamTls

    said: list[str] = []
    monkeypatch.setattr(crypto, "authorities", lambda: (str(tmp_path / "none.pem"), str(tmp_path / "none")))
    CA.cert_pem.write_to_path(tmp_path / "bundle.pem")
    monkeypatch.setattr(certs, "AUTHORITIES", (str(tmp_path / "nothere.pem"), str(tmp_path / "bundle.pem")))
    assert certs.read_upstream(UpstreamTls(), lambda _, text: said.append(text)).client_ca == CA.cert_pem.bytes()
    monkeypatch.setattr(certs, "AUTHORITIES", (str(tmp_path / "nothere.pem"),))
    certs.read_upstream(UpstreamTls(), lambda _, text: said.append(text))
    assert len(said) == 1 and "install ca-certificates" in said[0]
    certs.read_upstream(UpstreamTls(verify=False), lambda _, text: said.append(text))
    assert len(said) == 1
