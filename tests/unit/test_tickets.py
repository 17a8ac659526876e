"""Keys of session tickets: rotation, sharing, and what happens when the place where they are shared fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from gwcore._speedups.shm import Segment

from gwcore import tickets
from gwcore._speedups import crypto
from gwcore.config.load import load_text
from gwcore.tickets import TicketKeys
from tests.redis_server import redis_server

SECRET = "s" * 40
BASE = "listeners: [{address: '127.0.0.1:1'}]\nroutes: [{respond: {status: 200}}]\n"


class Machine:
    """A supervisor's ticket keys with a clock of the test."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.said: list[str] = []
        self.keys = TicketKeys(Segment.create(1), self.said.append, lambda: self.now)

    async def use(self, text: str) -> None:
        await self.keys.use(load_text(BASE + text).config)

    async def turn(self, seconds: float) -> None:
        self.now += seconds
        await self.keys.refresh()


def run(work: Any) -> None:
    asyncio.run(work)


def roles(m: Machine) -> list[str]:
    return [k["role"] for k in m.keys.status()["keys"]]


def test_one_key_issues_some_open_and_the_next_is_there_before():  # T5
    async def work() -> None:
        m = Machine()
        await m.use("tls: {tickets: {rotate: 100s, keep: 3}}")
        assert roles(m) == ["issues", "next"]
        first = m.keys.ring[10_000]
        following = m.keys.ring[10_001]
        await m.turn(100)
        assert roles(m) == ["opens", "issues", "next"] and m.keys.ring[10_001] == following
        await m.turn(100)
        assert first in m.keys.ring.values()
        await m.turn(100)
        assert first not in m.keys.ring.values() and roles(m) == ["opens", "opens", "issues", "next"]
        await m.turn(100_000)
        assert roles(m) == ["issues", "next"]
        await m.keys.stop()

    run(work())


def test_a_secret_gives_every_machine_the_same_keys_and_another_secret_others():
    async def work() -> None:
        a, b, c = Machine(), Machine(), Machine()
        for m, secret in ((a, SECRET), (b, SECRET), (c, "t" * 40)):
            await m.use(f"tls: {{tickets: {{share: secret, secret: {secret}}}}}")
        assert a.keys.ring == b.keys.ring and len(set(a.keys.ring.values())) == len(a.keys.ring)
        assert not set(a.keys.ring.values()) & set(c.keys.ring.values())
        for m in (a, b, c):
            await m.keys.stop()

    run(work())


def test_a_file_is_shared_and_wrapped(tmp_path: Path):  # T5
    async def work() -> None:
        a, b = Machine(), Machine()
        text = f"tls: {{tickets: {{share: file, file: {tmp_path / 'ring'}, secret: {SECRET}, rotate: 100s}}}}"
        await a.use(text)
        await b.use(text)
        assert a.keys.ring == b.keys.ring
        await b.turn(100)
        await a.turn(100)
        assert a.keys.ring == b.keys.ring and roles(a) == ["opens", "issues", "next"]
        blob = (tmp_path / "ring").read_bytes()
        assert not any(k[n : n + 8] in blob for k in a.keys.ring.values() for n in range(0, 80, 8))
        assert (tmp_path / "ring").stat().st_mode & 0o777 == 0o600
        (tmp_path / "ring").write_bytes(blob[:-1] + b"x")
        before = dict(a.keys.ring)
        await a.turn(1)
        assert a.keys.ring == before and "not wrapped with this secret" in a.said[-1]
        for m in (a, b):
            await m.keys.stop()

    run(work())


def test_redis_is_shared_by_one_writer_and_may_go_away():
    async def work(r: Any) -> None:
        machines = [Machine() for _ in range(4)]
        text = f"redis: {{url: '{r.url}'}}\ntls: {{tickets: {{share: redis, secret: {SECRET}, rotate: 100s}}}}"
        await asyncio.gather(*[m.use(text) for m in machines])
        await asyncio.gather(*[m.turn(1) for m in machines])
        assert len({frozenset(m.keys.ring.items()) for m in machines}) == 1
        await asyncio.gather(*[m.turn(100) for m in machines])
        await asyncio.gather(*[m.turn(1) for m in machines])
        assert all(m.keys.ring == machines[0].keys.ring for m in machines) and roles(machines[0]) == ["opens", "issues", "next"]
        before = dict(machines[0].keys.ring)
        r.stop()
        m = machines[0]
        await m.turn(10)
        assert m.keys.ring == before and m.keys.status()["failure"] and "stay in use" in m.said[-1]
        assert not any(k.hex() in line or r.url in line for k in before.values() for line in m.said)
        await m.turn(1000)  # nobody could make a key: the newest goes on
        assert "issues" in roles(m)
        r.start()
        await asyncio.gather(*[m.turn(0) for m in machines])
        m.now = machines[1].now = machines[0].now
        await m.turn(1)
        await machines[1].turn(1)
        assert not m.keys.status()["failure"] and "shared again" in m.said[-1]
        for m in machines:
            await m.keys.stop()

    with redis_server() as r:
        run(work(r))


def test_wrapping():
    key = bytes(range(32))
    sealed = crypto.wrap(key, b"text")
    assert crypto.unwrap(key, sealed) == b"text" and b"text" not in sealed and sealed != crypto.wrap(key, b"text")
    for bad in (sealed[:-1], b"", sealed[:20], bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(ValueError, match="not wrapped"):
            crypto.unwrap(key, bad)
    with pytest.raises(ValueError, match="not wrapped"):
        crypto.unwrap(bytes(32), sealed)


def test_places_of_the_segment():
    s = Segment.create(1)
    with pytest.raises(ValueError, match="one of them issues"):
        s.set_tickets(1, {0: bytes(80)})
    with pytest.raises(ValueError, match="places are 0 to 7"):
        s.set_tickets(8, {8: bytes(80)})


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("{share: secret}", "at least 32 characters"),
        ("{share: secret, secret: short}", "at least 32 characters"),
        (f"{{share: file, secret: {SECRET}}}", "needs file"),
        (f"{{share: redis, secret: {SECRET}}}", "needs redis.url"),
    ],
)
def test_what_sharing_needs_is_asked_for(text, want):
    with pytest.raises(Exception, match=want):
        load_text(BASE + f"tls: {{tickets: {text}}}")


def test_derived_keys_have_no_pattern():
    a, b = tickets.derived(SECRET, 1), tickets.derived(SECRET, 2)
    assert len(a) == len(b) == 80 and a[:16] != a[16:32] and a != b
