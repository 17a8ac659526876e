"""Who the client is: PROXY protocol on both sides, X-Forwarded-For and Forwarded (C8)."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path

import pytest
from gwcore._speedups.origin import origin_of
from gwcore._speedups.proxyproto import parse

from tests.support import Upstream, echo_handler, get, plane, proxy_config, read_all, read_reply, wait_until

V1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 443\r\n"
V2_HEAD = b"\r\n\r\n\0\r\nQUIT\n"
V2 = V2_HEAD + b"\x21\x11\0\x0c" + bytes([192, 0, 2, 7, 192, 0, 2, 1]) + struct.pack("!HH", 56324, 443)
V2_TLV = V2_HEAD + b"\x21\x11\0\x10" + V2[16:] + b"\x04\0\x01x"
V2_V6 = V2_HEAD + b"\x21\x21\0\x24" + socket.inet_pton(socket.AF_INET6, "2001:db8::7") + bytes(16) + struct.pack("!HH", 1, 2)
MAPPED = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 7])


@pytest.mark.parametrize(
    ("text", "family", "address", "port"),
    [
        (V1, 4, MAPPED, 56324),
        (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n", 6, socket.inet_pton(socket.AF_INET6, "2001:db8::7"), 1),
        (b"PROXY UNKNOWN\r\n", 0, bytes(16), 0),
        (b"PROXY UNKNOWN whatever this is\r\n", 0, bytes(16), 0),
        (V2, 4, MAPPED, 56324),
        (V2_TLV, 4, MAPPED, 56324),
        (V2_V6, 6, socket.inet_pton(socket.AF_INET6, "2001:db8::7"), 1),
        (V2_HEAD + b"\x20\0\0\0", 0, bytes(16), 0),
    ],
)
def test_headers_are_read_at_any_split(text, family, address, port):
    assert parse(text + b"GET /") == (len(text), family, address, port)
    for i in range(len(text)):
        assert parse(text[:i]) is None, i


@pytest.mark.parametrize(
    "text",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
        b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 ::1 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
        b"PROXY TCP4 " + b"1" * 100,
        V2_HEAD + b"\x11\x11\0\x0c" + bytes(12),
        V2_HEAD + b"\x22\x11\0\x0c" + bytes(12),
        V2_HEAD + b"\x21\x11\0\x0b" + bytes(11),
        V2_HEAD + b"\x21\x21\0\x0c" + bytes(12),
        V2_HEAD + b"\x21\x11\xff\xff" + bytes(12),
        V2_HEAD + b"\x21\x99\0\x0c" + bytes(12),
    ],
)
def test_everything_else_is_refused(text):
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (b"1.2.3.4", True),
        (b"1.2.3.4:80", True),
        (b"2001:db8::1", True),
        (b"[2001:db8::1]", True),
        (b'"[2001:db8::1]:47011"', True),
        (b"_hidden", False),
        (b"unknown", False),
        (b"1.2.3", False),
        (b"1.2.3.4:", False),
        (b"1.2.3.4:x", False),
        (b"[::1", False),
        (b"", False),
        (b'"', False),
        (b"1" * 60, False),
    ],
)
def test_addresses_in_lists(text, good):
    assert (origin_of(text) is not None) == good


@pytest.fixture
def echo():
    up = Upstream(echo_handler)
    yield up
    up.close()


def clients(tmp_path: Path) -> list[str]:
    return [json.loads(line)["client"] for line in (tmp_path / "log").read_text().splitlines()]


@pytest.mark.parametrize("header", [V1, V2, V2_TLV])
@pytest.mark.parametrize("step", [1, 10_000])
def test_a_listener_believes_the_header(tmp_path, echo, header, step):
    with plane(
        proxy_config(echo.address, extra="trusted_proxies: [127.0.0.1]\n"),
        log=str(tmp_path / "log"),
        listener="proxy_protocol: on",
    ) as p:
        with p.connect() as s:
            text = header + get() + get(X_Forwarded_For="198.51.100.9")
            for i in range(0, len(text), step):
                s.sendall(text[i : i + step])
            first = read_reply(s)
            second = read_reply(s, buffer=first.rest)
        assert b"X-Forwarded-For: 192.0.2.7\r\n" in first.body
        assert b"X-Forwarded-For: 192.0.2.7\r\n" in second.body and b"198.51" not in second.body  # the client is a stranger
    assert clients(tmp_path) == ["192.0.2.7", "192.0.2.7"]


@pytest.mark.parametrize("text", [get(), b"PROXY TCP4 1.2.3.4\r\n" + get(), V2_HEAD + b"\x31\0\0\0"])
def test_without_a_good_header_the_connection_is_closed(echo, text):
    with plane(proxy_config(echo.address, extra="trusted_proxies: [127.0.0.1]\n"), listener="proxy_protocol: on") as p:
        with p.connect() as s:
            s.sendall(text)
            assert read_all(s) == b""
        assert p.reasons() == {"bad_proxy_header": 1}
    assert not echo.seen


def test_strangers_may_not_connect_and_slow_ones_not_stay(echo):
    extra = "trusted_proxies: [192.0.2.1]\ntimeouts: {header: 200ms}\n"
    with plane(proxy_config(echo.address, extra=extra), listener="proxy_protocol: on") as p:
        with p.connect() as s:
            assert read_all(s) == b""
        assert p.reasons() == {"bad_proxy_header": 1}
        p.reload(proxy_config(echo.address, extra=extra.replace("192.0.2.1", "127.0.0.1")))
        with p.connect() as s:
            s.sendall(V1[:20])
            assert read_all(s) == b""
        assert p.reasons() == {"bad_proxy_header": 2}


def test_local_headers_leave_the_peer(tmp_path, echo):
    with (
        plane(
            proxy_config(echo.address, extra="trusted_proxies: [127.0.0.1]\n"),
            log=str(tmp_path / "log"),
            listener="proxy_protocol: on",
        ) as p,
        p.connect() as s,
    ):
        s.sendall(b"PROXY UNKNOWN\r\n" + get())
        assert b"X-Forwarded-For: 127.0.0.1\r\n" in read_reply(s).body
    assert clients(tmp_path) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("fields", "client"),
    [
        ({"X_Forwarded_For": "198.51.100.9, 10.0.0.1"}, "198.51.100.9"),
        ({"X_Forwarded_For": "203.0.113.5, 198.51.100.9, 10.0.0.1"}, "198.51.100.9"),
        ({"X_Forwarded_For": "10.0.0.2, 10.0.0.1"}, "10.0.0.2"),
        ({"X_Forwarded_For": "_hidden, 10.0.0.1"}, "10.0.0.1"),
        ({"X_Forwarded_For": ",, 198.51.100.9:80"}, "198.51.100.9"),
        ({"X_Forwarded_For": "rubbish"}, "127.0.0.1"),
        ({"Forwarded": 'for="[2001:db8::1]:47011";proto=https, for=10.0.0.1'}, "2001:db8::1"),
        ({"Forwarded": "for=_x"}, "127.0.0.1"),
        ({"Forwarded": "For=198.51.100.9", "X_Forwarded_For": "203.0.113.5"}, "203.0.113.5"),
    ],
)
def test_the_client_is_the_rightmost_that_is_not_trusted(tmp_path, echo, fields, client):
    with (
        plane(proxy_config(echo.address, extra="trusted_proxies: [127.0.0.1, 10.0.0.0/8]\n"), log=str(tmp_path / "log")) as p,
        p.connect() as s,
    ):
        s.sendall(get(**fields))
        body = read_reply(s).body
    assert clients(tmp_path) == [client]
    if "Forwarded" in fields:
        assert f"Forwarded: {fields['Forwarded']}, for=127.0.0.1;proto=http\r\n".encode() in body


def test_a_strangers_forwarded_is_dropped(tmp_path, echo):
    with plane(proxy_config(echo.address), log=str(tmp_path / "log")) as p, p.connect() as s:
        s.sendall(get(Forwarded="for=198.51.100.9", X_Forwarded_For="198.51.100.9"))
        assert b"198.51" not in read_reply(s).body
    assert clients(tmp_path) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("version", "head"), [("v1", b"PROXY TCP4 127.0.0.1 127.0.0.1 "), ("v2", V2_HEAD + b"\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01")]
)
def test_upstreams_are_told_and_no_connection_is_shared(version, head):
    seen: list[bytes] = []

    def serve(c):
        n = None
        while n is None:
            c.more()
            n = parse(c.buffer)
        seen.append(c.buffer[: n[0]])
        c.buffer = c.buffer[n[0] :]
        echo_handler(c)

    up = Upstream(serve)
    with plane(proxy_config(up.address, upstream=f"proxy_protocol: {version}, pool: {{granularity: template}}")) as p:
        ports = []
        for _ in range(2):
            with p.connect() as s:
                ports.append(s.getsockname()[1])
                for _ in range(3):
                    s.sendall(get())
                    assert read_reply(s).status == 200
            wait_until(lambda: p.counts()["connections"] == 0)
        stats = p.segment.snapshot()["upstreams"]["be"]
        assert (stats["opens"], stats["reuses"]) == (2, 4)
    assert [x.startswith(head) for x in seen] == [True, True]
    assert [parse(x)[3] for x in seen] == ports
    up.close()


def test_templates_by_a_principal_header_and_eviction(echo):
    text = proxy_config(echo.address, upstream="pool: {granularity: template, principal: Authorization, max_connections: 2}")
    with plane(text) as p, p.connect() as s:

        def ask(who: str) -> None:
            s.sendall(get(Authorization=who))
            assert read_reply(s).status == 200

        for who in ("a", "b", "a", "b", "a"):
            ask(who)
        stats = p.segment.snapshot()["upstreams"]["be"]
        assert (stats["opens"], stats["reuses"]) == (2, 3)
        ask("c")  # no place: the one of b, idle longest, gives way
        ask("a")
        stats = p.segment.snapshot()["upstreams"]["be"]
        assert (stats["opens"], stats["reuses"], stats["closed"]["evicted"]) == (3, 4, 1)
