"""Handshakes that no honest client makes: changed at every byte, cut, oversized, in fragments, out of order, left half-way. Each ends, with an
alert or without; the plane goes on and has nothing left of it."""

from __future__ import annotations

import functools
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import PlaneThread, plane, read_all, read_reply, wait_until
from tests.tls import client_context, issue, listener, secure

HANDSHAKE, ALERT, CCS, DATA = 22, 21, 20, 23
RST = b"\x01\0\0\0\0\0\0\0"
WAITS = 60  # connections open at once


@pytest.fixture(params=[0, 2], ids=["inline", "threads"])
def p(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[PlaneThread]:
    text = f"routes: [{{respond: {{status: 200, body: OK}}}}]\ntls: {{handshake_threads: {request.param}, handshake_queue: 100000}}\ntimeouts: {{linger: 200ms}}"
    with plane(text, listener=listener(issue(tmp_path, "a.test"))) as made:
        yield made
        with secure(made.connect(), context=context()) as s:
            s.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert read_reply(s).status == 200


context = functools.cache(client_context)  # making one costs as much as ten handshakes


def hello(version: str) -> bytes:
    """The record of a ClientHello."""
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context(version=version).wrap_bio(ssl.MemoryBIO(), out, server_hostname="a.test").do_handshake()
    return out.read()


def record(kind: int, body: bytes, version: int = 0x0303) -> bytes:
    return bytes([kind]) + version.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body


def is_alert(answer: bytes) -> bool:
    return len(answer) >= 7 and answer[-7] == ALERT and answer[-2] == 2


def finish(s: socket.socket, *, whole: bool) -> bytes:
    """What comes until the gateway closes; `whole`: we end our side before, so that it does not wait for more."""
    if whole:
        s.shutdown(socket.SHUT_WR)
    answer = read_all(s)
    s.close()
    return answer


def send_all(p: PlaneThread, texts: list[bytes]) -> list[bytes]:
    """Each text on a connection of its own that then ends; what came back."""
    answers = []
    for i in range(0, len(texts), WAITS):
        held = []
        for text in texts[i : i + WAITS]:
            s = p.connect()
            s.sendall(text)
            held.append(s)
        answers += [finish(s, whole=True) for s in held]
    return answers


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_hello_changed_at_every_byte(p, version):
    good = hello(version)
    texts = [good[:i] + bytes([good[i] ^ flip]) + good[i + 1 :] for i in range(len(good)) for flip in (1, 0x80)]
    answers = send_all(p, texts)
    assert all(a[:1] in (b"", b"\x15", b"\x16", b"H") for a in answers), "an alert, an answer in TLS, or a plain refusal"
    # a change in the lengths and types of records and messages is never taken
    assert not any(a[:1] == b"\x16" for a in answers[:2] + answers[6:18])


def test_a_hello_with_random_changes(p):
    rng = random.Random(20240229)
    texts = []
    for _ in range(400):
        text = bytearray(hello("1.3") if rng.random() < 0.5 else hello("1.2"))
        for _ in range(rng.choice((1, 2, 5, 20))):
            text[rng.randrange(len(text))] = rng.randrange(256)
        match rng.randrange(4):
            case 0:
                del text[rng.randrange(len(text)) :]
            case 1:
                at = rng.randrange(len(text))
                text[at:at] = rng.randbytes(rng.randrange(40))
            case 2:
                text += rng.randbytes(rng.randrange(3000))
        texts.append(bytes(text))
    send_all(p, texts)
    p.at_rest()


def test_records_of_forbidden_sizes(p):
    body = hello("1.3")[5:]
    bad = [
        record(HANDSHAKE, b"") * 40,  # OpenSSL takes a few empty ones
        record(HANDSHAKE, body + bytes(16385 - len(body))),
        record(HANDSHAKE, b"\x01\xff\xff\xff" + bytes(16000)) * 8,  # a message of 16 MiB begins
        record(HANDSHAKE, b"\x01\x02\x00\x00" + bytes(16000)) * 12,  # more than a ClientHello may have
        b"\x16\x03\x01\xff\xff" + bytes(65535),
    ]
    answers = send_all(p, bad)
    assert all(is_alert(a) for a in answers), [a[:10] for a in answers]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_hello_in_small_records_is_taken(p, version, size):
    body = hello(version)[5:]
    with p.connect() as s:
        s.sendall(b"".join(record(HANDSHAKE, body[i : i + size], 0x0301) for i in range(0, len(body), size)))
        assert s.recv(1) == b"\x16"


def test_messages_out_of_order(p):
    first = hello("1.3")
    kinds = [0, 1, 2, 4, 5, 8, 11, 12, 13, 14, 15, 16, 20, 22, 24, 25, 254, 255]
    alone = [record(HANDSHAKE, bytes([k, 0, 0, 4, 1, 2, 3, 4])) for k in kinds]
    behind = [first + x for x in alone]
    others = [
        record(CCS, b"\x01") + record(DATA, bytes(40)),
        record(CCS, b"\x02"),
        record(CCS, b"\x01\x01"),
        record(DATA, b"GET / HTTP/1.1\r\n\r\n"),
        record(ALERT, b"\x02\x28"),
        record(ALERT, b"\x01\x00"),
        record(ALERT, b"\x02"),
        record(99, b"hello"),
        first + first,
        first + record(DATA, bytes(16640 + 1)),
        first + record(DATA, bytes(40)),
        first + record(CCS, b"\x01") * 40,
        first[:40] + record(ALERT, b"\x02\x5a"),
    ]
    answers = send_all(p, alone + others + behind)
    assert not any(a[:1] in (b"\x16", b"\x17") for a in answers[: len(alone)]), "nothing but a ClientHello begins a handshake"
    assert all(is_alert(a) for a in answers[: len(alone)] if a[:1] == b"\x15")
    p.at_rest()


class Flights:
    """A client in memory whose flights pass through our hands."""

    def __init__(self, p: PlaneThread, version: str):
        self.got, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context(version=version).wrap_bio(self.got, self.out, server_hostname="a.test")
        self.s = p.connect()
        self.sent = 0

    def next(self) -> bytes:
        """The client's next flight, after what the gateway says; nothing when the handshake is over for it."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                if self.out.pending:
                    return self.out.read()
                data = self.s.recv(65536)
                assert data
                self.got.write(data)
                continue
            return self.out.read()

    def run(self, change: Callable[[int, bytes], bytes]) -> None:
        """The handshake with each flight (1, 2 ...) changed; then the connection is ours alone."""
        for k in (1, 2):
            self.s.sendall(change(k, self.next()))


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_second_flight_changed_at_every_byte(p, version):
    f = Flights(p, version)
    f.run(lambda _, text: text)
    f.s.close()
    size = 0

    def measure(k: int, text: bytes) -> bytes:
        nonlocal size
        size = len(text)
        return text

    g = Flights(p, version)
    g.run(measure)
    g.s.close()
    failed = 0
    for at in range(size):

        def change(k: int, text: bytes, at: int = at) -> bytes:
            return text[:at] + bytes([text[at] ^ 0x41]) + text[at + 1 :] if k == 2 and at < len(text) else text

        f = Flights(p, version)
        f.run(change)
        answer = finish(f.s, whole=True)
        failed += is_alert(answer) or version == "1.3"  # behind its first flight the alerts of TLS 1.3 are sealed
    assert failed > size * 0.9
    assert p.reasons().get("tls_handshake", 0) > size * 0.9


def sweep(version: str) -> list[tuple[int, int]]:
    return [(k, n) for k, most, step in ((1, 600, 1 if version == "1.3" else 3), (2, 200, 1)) for n in range(0, most, step)]


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_an_abort_at_every_byte_of_every_flight(p, version, end):
    """The client goes away after n bytes of its k-th flight; those behind the last are no abort."""
    for k, n in sweep(version):
        f = Flights(p, version)
        over: Any = None
        for i in (1, 2):
            text = f.next()
            if i == k:
                over = n > len(text)
                text = text[:n]
            f.s.sendall(text)
            if i == k:
                break
        if end == "rst":
            f.s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        f.s.close()
        if over and k == 2:
            break
    p.at_rest()
    assert p.counts()["illegal_moves"] == 0


def test_who_stays_after_a_failed_handshake_is_counted_once(p):
    """The end of the linger was taken for the handshake's time limit: a second reason and a move that is not legal."""
    with p.connect() as s:
        s.sendall(record(HANDSHAKE, b"\x02\0\0\4abcd"))
        assert is_alert(read_all(s))
        wait_until(lambda: p.counts()["connections"] == 0)
    assert p.counts()["illegal_moves"] == 0
    assert {k: n for k, n in p.reasons().items() if n} == {"tls_handshake": 1}
