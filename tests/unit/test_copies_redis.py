"""Copies in Redis: found by other machines, and no request that waits for Redis longer than it may, whatever happens there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gwcore._speedups.copystore import CopyStore

from gwcore import copies_redis, copies_wire
from gwcore.config.load import load_text
from gwcore.copies_redis import ASK, GONE, KEEP, SharedCopies
from tests.redis_server import RedisServer, redis_server
from tests.support import SLACK

LONG_S = 5.0  # a deadline that nothing but an answer ends, however busy the machine is
URL = b"http://a/x"


class Machine:
    """A store and what a data plane would do with it."""

    def __init__(self) -> None:
        self.copies = CopyStore.create(8 << 20, 1)
        self.on_copies: Callable[[list], None] | None = None
        self.writes = self.asks = False
        self.waiting: dict[int, asyncio.Future[float]] = {}
        self.handles = 0
        self.late = 0.0  # the longest wait
        self.shared = SharedCopies(self)  # type: ignore[arg-type]

    def ask_copies(self, writes: bool, asks: bool) -> None:
        self.writes, self.asks = writes, asks

    def resume_copy(self, handle: int) -> bool:
        self.waiting.pop(handle).set_result(time.monotonic())
        return True

    def key(self, n: int = 0) -> bytes:
        return b"route\0" + URL + b"%d" % n

    def store(self, n: int = 0, body: bytes = b"body", tags: bytes = b"", keep_s: float = 60) -> None:
        now = time.monotonic_ns() // 1_000_000
        key = self.key(n)
        assert self.copies.put(key, body, b"head", tags, url=(6, len(key) - 6), keep_ms=now + int(keep_s * 1000)) == "stored"
        self.on_copies and self.on_copies([(KEEP, 0, self.copies.epoch(key), key)])

    async def fetch(self, n: int = 0) -> dict | None:
        """As a request does: what is in the store, else what is there after Redis was asked."""
        key = self.key(n)
        if (found := self.copies.find(key)) or not self.asks or self.on_copies is None:
            return found
        self.handles += 1
        handle = self.handles
        self.waiting[handle] = asyncio.get_running_loop().create_future()
        since = time.monotonic()
        done = self.waiting[handle]
        self.on_copies([(ASK, handle, self.copies.epoch(key), key)])
        self.late = max(self.late, await done - since)
        return self.copies.find(key)

    async def written(self) -> None:
        while self.shared.queue:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05 * SLACK)

    def counts(self) -> dict[str, int]:
        return self.copies.figures()["redis"]


@pytest.fixture(scope="module", params=[False, True], ids=["single", "cluster"])
def redis(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with redis_server(request.param) as r:
        yield r


def given(r: RedisServer, deadline: float = LONG_S, **more: Any) -> dict[str, Any]:
    return {"url": r.url, "cluster": r.cluster, "prefix": "gwcore:", "deadline": deadline, "compress": 1000, **more}


def run(redis: RedisServer, work: Callable[..., Awaitable[None]], machines: int = 2, **more: Any) -> None:
    if redis.process is None:
        redis.start()
    redis.command("FLUSHALL")

    async def main() -> None:
        all_ = [Machine() for _ in range(machines)]
        for m in all_:
            m.shared.use(given(redis, **more))
        try:
            await work(*all_)
        finally:
            for m in all_:
                m.shared.stop()
                assert not m.waiting and not m.shared.asked
            await asyncio.sleep(0)

    asyncio.run(main())


def test_another_machine_finds_a_copy(redis):
    async def work(a: Machine, b: Machine) -> None:
        a.store(1, b"small", b"tag")
        a.store(2, b"large " * 50_000)
        await a.written()
        for n, body in ((1, b"small"), (2, b"large " * 50_000)):
            found = await b.fetch(n)
            assert found and (found["body"], found["head"], found["status"]) == (body, b"head", 200)
            before, after = a.copies.look(a.key(n)), b.copies.look(b.key(n))
            assert (
                abs(after["keep_ms"] - before["keep_ms"]) < 50
                and after["url"] == before["url"]
                and after["tags"] == before["tags"]
            )
        assert await b.fetch(3) is None
        assert a.counts()["written"] == 2
        assert (b.counts()["hits"], b.counts()["misses"]) == (2, 1)
        assert int(redis.command("STRLEN", a.shared.name(a.key(2)))[1:]) < 10_000

    run(redis, work)


def test_who_waits_for_one_key_asks_once(redis):
    async def work(a: Machine, b: Machine) -> None:
        a.store()
        await a.written()
        assert all(await asyncio.gather(*(b.fetch() for _ in range(50))))
        assert b.counts()["hits"] == 1

    run(redis, work)


def test_what_is_over_is_not_kept(redis):
    async def work(a: Machine, b: Machine) -> None:
        a.store(1, keep_s=0.9)
        a.store(2, keep_s=-1)
        await a.written()
        assert a.counts()["written"] == 1 and 0 < int(redis.command("PTTL", a.shared.name(a.key(1)))[1:]) <= 1000
        await asyncio.sleep(0.95)
        assert await b.fetch(1) is None and await b.fetch(2) is None

    run(redis, work)


def test_dropped_here_is_gone_there(redis):
    async def work(a: Machine, b: Machine) -> None:
        a.store()
        await a.written()
        a.copies.drop(a.key())
        a.on_copies([(GONE, 0, 0, a.key())])
        await a.written()
        assert await b.fetch() is None

    run(redis, work)


def test_what_was_purged_before_it_was_written_is_not_written(redis):
    async def work(a: Machine, b: Machine) -> None:
        a.store()
        a.copies.purge("prefix", b"http://a/")
        await a.written()
        assert (a.counts()["written"], a.counts()["dropped"]) == (0, 1)
        assert await b.fetch() is None

    run(redis, work)


def test_what_was_purged_while_redis_was_asked_is_not_kept(redis):
    async def work(a: Machine, b: Machine) -> None:
        a.store()
        await a.written()
        asked = asyncio.create_task(b.fetch())
        await asyncio.sleep(0)
        b.copies.purge("prefix", b"http://a/")
        assert await asked is None and b.counts()["bad"] == 1

    run(redis, work)


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ([("url", "http://a/x1")], [2, 3, 10]),
        ([("prefix", "http://a/x1")], [2, 3]),
        ([("tag", "odd")], [2, 10]),
        ([("tag", "even"), ("url", "http://a/x3")], [1]),
        ([("prefix", "")], []),
    ],
)
def test_purges_reach_redis(redis, wanted, left):
    async def work(a: Machine, b: Machine) -> None:
        for n in (1, 2, 3, 10):
            a.store(n, tags=b"odd" if n % 2 else b"even")
        await a.written()
        redis.command("SET", "gwcore:other", "x")
        config = load_text(
            f"listeners: [{{address: '127.0.0.1:1'}}]\nroutes: [{{respond: {{}}}}]\nredis: {{url: '{redis.url}', cluster: {'on' if redis.cluster else 'off'}}}\n"
        ).config
        assert await copies_redis.purge(config, wanted) == 4 - len(left)
        assert [n for n in (1, 2, 3, 10) if await b.fetch(n)] == left
        assert b"x" in redis.command("GET", "gwcore:other")

    run(redis, work)


def test_what_is_no_copy_is_not_taken(redis):
    async def work(a: Machine, b: Machine) -> None:
        a.store(1)
        await a.written()
        for n, text in ((2, "nonsense"), (3, "")):
            redis.command("SET", a.shared.name(a.key(n)), text)
            assert await b.fetch(n) is None
        found = a.copies.look(a.key(1))
        await a.shared.client.set(a.shared.name(a.key(4)), copies_wire.pack(found, a.shared.offset_ms))
        assert await b.fetch(4) is None  # another's copy under this name
        assert b.counts()["bad"] == 3 and b.counts()["errors"] == 0

    run(redis, work)


def test_a_flushed_redis_has_nothing(redis):
    async def work(a: Machine, b: Machine) -> None:
        a.store()
        await a.written()
        redis.command("FLUSHALL")
        assert await b.fetch() is None and a.copies.find(a.key())

    run(redis, work)


def test_a_stopped_redis_is_asked_five_times_and_then_once_a_second(redis):
    async def work(a: Machine) -> None:
        redis.stop()
        a.store(1000)
        for n in range(50):
            assert await a.fetch(n) is None
        assert not a.asks and a.writes
        assert a.counts()["errors"] == 5
        assert a.late < 0.02 + 0.5 * SLACK
        redis.start()
        await asyncio.sleep(1.1)
        assert a.asks
        a.store(1)
        await asyncio.sleep(0.5)
        await a.written()
        a.copies.purge("prefix", b"")
        for _ in range(200):
            if await a.fetch(1):
                break
            await asyncio.sleep(0.05)
        assert a.copies.find(a.key(1))

    run(redis, work, machines=1, deadline=0.02)


def test_a_slow_redis_costs_no_more_than_the_deadline(redis):
    async def work(a: Machine) -> None:
        assert await a.fetch() is None
        redis.command("CLIENT", "PAUSE", "2000", "ALL")
        for n in range(20):
            assert await a.fetch(n) is None
        assert a.counts()["errors"] == 5 and not a.asks
        assert a.late < 0.02 + 0.5 * SLACK
        for n in range(2000):
            a.on_copies([(KEEP, 0, 0, a.key(n))])  # there is none of them, so none waits
            a.store(n, bytes(100))
        assert len(a.shared.queue) <= copies_redis.QUEUE and a.counts()["dropped"] > 0
        for n in range(2000, 2040):
            a.store(n, bytes(1 << 20))
        assert a.shared.queued <= copies_redis.QUEUE_BYTES
        await asyncio.sleep(2.2)

    run(redis, work, machines=1, deadline=0.02)


def test_a_full_redis_takes_nothing_and_harms_nobody(redis):
    async def work(a: Machine, b: Machine) -> None:
        redis.command("CONFIG", "SET", "maxmemory", "1")
        try:
            for n in range(20):
                a.store(n)
            await a.written()
            await asyncio.sleep(0.3)
            assert a.counts()["written"] == 0 and a.counts()["dropped"] == 20
            assert await b.fetch() is None and b.counts()["misses"] == 1 and b.asks
        finally:
            redis.command("CONFIG", "SET", "maxmemory", "0")

    run(redis, work)


def test_too_many_at_once_go_on_without(redis):
    async def work(a: Machine) -> None:
        redis.command("CLIENT", "PAUSE", "300", "ALL")
        await asyncio.gather(*(a.fetch(n) for n in range(copies_redis.FLIGHTS + 50)))
        assert a.counts()["skipped"] == 50
        assert not a.waiting

    run(redis, work, machines=1)


def test_other_settings_and_none(redis):
    async def work(a: Machine) -> None:
        redis.command("CLIENT", "PAUSE", "300", "ALL")
        asked = [asyncio.create_task(a.fetch(n)) for n in range(3)]
        await asyncio.sleep(0.01)
        a.shared.use(None)
        assert await asyncio.gather(*asked) == [None] * 3
        assert not a.asks and a.on_copies is None
        a.shared.use(given(redis))
        assert a.asks and a.on_copies

    run(redis, work, machines=1)


def test_without_a_store_nothing_is_shared():
    async def main() -> None:
        said: list[tuple[bool, bool]] = []
        s = SharedCopies(SimpleNamespace(copies=None, ask_copies=lambda *a: said.append(a)))  # type: ignore[arg-type]
        s.use({"url": "redis://127.0.0.1:1", "cluster": False, "prefix": "", "deadline": 1, "compress": 0})
        assert said == [] and s.client is None

    asyncio.run(main())
