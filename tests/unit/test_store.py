"""The store of TLS sessions: workers that write over one another, and die while they do."""

from __future__ import annotations

import hashlib
import mmap
import os
import signal
import struct
import time

import pytest
from gwcore._speedups.plane import Plane
from gwcore._speedups.shm import Segment

from gwcore.config.load import load_text
from gwcore.sessions import sealing

BASE = "listeners: [{address: '127.0.0.1:1'}]\nroutes: [{respond: {status: 200}}]\n"
LOCK = 32  # bytes before the id


def session(n: int, size: int = 200) -> tuple[bytes, bytes]:
    """An id, and bytes that belong to it and to no other."""
    name = hashlib.sha256(b"%d" % n).digest()
    return name, (name * (size // 32 + 1))[:size]


def entries(s: Segment) -> int:
    return s.tls_figures()["store"]["entries"]


def test_sessions_are_kept_until_their_end():
    s = Segment.create(1, 64)
    p = Plane(0, s.fd)
    for n, size in enumerate((1, 512, 513, 2048)):
        name, text = session(n, size)
        assert p.put_session(name, text, 100) and p.session(name) == text
    assert entries(s) == 4
    name, text = session(0)
    assert p.put_session(name, text, 100) and p.session(name) == text and entries(s) == 4
    assert not p.put_session(name, bytes(2049), 100) and not p.put_session(b"short", b"x", 100)
    assert p.session(session(99)[0]) == p.session(b"") == b""
    assert p.put_session(session(5)[0], b"x", 0) and p.session(session(5)[0]) == b""
    s.forget_sessions()
    assert entries(s) == 0 and p.session(name) == b""
    assert p.put_session(name, text, 100) and p.session(name) == text


def test_those_used_longest_ago_go():
    s = Segment.create(1, 8)
    p = Plane(0, s.fd)
    for n in range(8):
        assert p.put_session(*session(n), 100)
        time.sleep(0.002)
        p.drain()  # the clock
    assert p.session(session(0)[0])
    time.sleep(0.002)
    p.drain()
    for n in range(8, 12):
        assert p.put_session(*session(n), 100)
    alive = [n for n in range(12) if p.session(session(n)[0])]
    assert alive == [0, 5, 6, 7, 8, 9, 10, 11]


def test_a_place_that_a_dead_worker_left_locked_is_given_back():
    s = Segment.create(3, 64)
    p = Plane(0, s.fd)
    name, text = session(1)
    assert p.put_session(name, text, 100)
    with mmap.mmap(s.fd, 0) as m:
        at = m.find(name) - LOCK
        lock = struct.unpack_from("<Q", m, at)[0]
        struct.pack_into("<Q", m, at, lock | 2 << 1 | 1)
        assert p.session(name) == b""
        assert p.put_session(name, text, 100) and p.session(name) == text
        s.retire(1)
        assert struct.unpack_from("<Q", m, at)[0] == lock | 5
        s.retire(2)
        assert struct.unpack_from("<Q", m, at)[0] == lock + (1 << 16)
    assert p.session(name) == text and entries(s) == 1


def test_writers_and_readers_never_see_half_of_an_entry():
    s = Segment.create(3, 16)  # so few places that they always meet
    children = []
    for worker in (1, 2):
        pid = os.fork()
        if pid == 0:
            p = Plane(worker, s.fd)
            n = 0
            while True:
                p.put_session(*session(n % 40, 500), 100)
                n += 1
        children.append(pid)
    p = Plane(0, s.fd)
    found = 0
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            for n in range(40):
                name, text = session(n, 500)
                got = p.session(name)
                assert got in (b"", text)
                found += got != b""
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert found
    s.retire(1)
    s.retire(2)
    for n in range(40):
        assert p.put_session(*session(n, 500), 100) and p.session(session(n)[0])
    assert entries(s) <= 24


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("tls: {sessions: {redis: on}}", "at least 32 characters"),
        (f"tls: {{sessions: {{redis: on, secret: {'s' * 32}}}}}", "needs redis.url"),
        ("tls: {sessions: {cache: 1}}", "greater than or equal to 8"),
    ],
)
def test_what_a_store_needs_is_asked_for(text, want):
    with pytest.raises(Exception, match=want):
        load_text(BASE + text)


def test_sealing_keys_differ():
    assert sealing("a" * 32) != sealing("b" * 32) and len(sealing("a" * 32)) == 32
