"""gwcore.pool for asyncio programs: reuse, queue, limits, and nothing left behind by a cancel."""

from __future__ import annotations

import asyncio
import random

import pytest
from gwcore._speedups.idle import IdleProbe

from gwcore.pool import Pool, PoolFull, PoolTimeout


class Connections:
    def __init__(self, delay: float = 0.0) -> None:
        self.made, self.open, self.delay, self.fail = 0, set(), delay, False

    async def connect(self) -> int:
        await asyncio.sleep(self.delay)
        if self.fail:
            raise ConnectionRefusedError
        self.made += 1
        self.open.add(self.made)
        return self.made

    def close(self, c: int) -> None:
        self.open.remove(c)


def at_rest(pool: Pool, c: Connections) -> None:
    s = pool.stats()
    assert s["in_use"] == s["opening"] == s["waiting"] == s["illegal_moves"] == 0, s
    assert s["idle"] == len(c.open), s
    assert s["opens"] == s["idle"] + sum(s["closed"].values()), s


def test_last_in_first_out_and_statistics():
    async def main() -> None:
        c = Connections()
        pool = Pool(c.connect, close=c.close)
        async with pool.acquire() as a, pool.acquire() as b:
            assert (a, b) == (1, 2)
        async with pool.acquire() as x:
            assert x == 1  # b went back first, a last
        assert pool.stats()["reuse_ratio"] == pytest.approx(1 / 3)
        at_rest(pool, c)
        await pool.aclose()
        assert c.open == set()
        with pytest.raises(RuntimeError, match="closed"):
            await pool.acquire().__aenter__()

    asyncio.run(main())


def test_errors_and_discard_close():
    async def main() -> None:
        c = Connections()
        pool = Pool(c.connect, close=c.close)
        with pytest.raises(KeyError):
            async with pool.acquire():
                raise KeyError
        lease = pool.acquire()
        async with lease:
            lease.discard()
        assert c.open == set() and pool.stats()["closed"]["error"] == 2
        c.fail = True
        with pytest.raises(ConnectionRefusedError):
            await pool.acquire().__aenter__()
        at_rest(pool, c)

    asyncio.run(main())


def test_full_queue_and_its_time():
    async def main() -> None:
        c = Connections()
        pool = Pool(c.connect, close=c.close, max_connections=1, queue_size=1, queue_timeout_s=0.05)
        async with pool.acquire():
            waiting = asyncio.create_task(pool.acquire().__aenter__())
            await asyncio.sleep(0.01)
            with pytest.raises(PoolFull):
                await pool.acquire().__aenter__()
            with pytest.raises(PoolTimeout):
                await waiting
        at_rest(pool, c)

    asyncio.run(main())


def test_waiters_are_served_in_order_with_one_connection():
    async def main() -> None:
        c = Connections()
        pool = Pool(c.connect, close=c.close, max_connections=1, queue_timeout_s=5)
        order: list[int] = []

        async def use(i: int) -> None:
            async with pool.acquire() as x:
                assert x == 1
                order.append(i)
                await asyncio.sleep(0)

        await asyncio.gather(*[use(i) for i in range(20)])
        assert order == list(range(20)) and c.made == 1
        at_rest(pool, c)

    asyncio.run(main())


def test_idle_age_and_requests_end_connections():
    async def main() -> None:
        now = [100.0]
        c = Connections()
        pool = Pool(c.connect, close=c.close, idle_timeout_s=10, max_requests=3, max_age_s=100, clock=lambda: now[0])
        for _ in range(3):
            async with pool.acquire():
                pass
        assert pool.stats()["closed"]["max_requests"] == 1
        async with pool.acquire():
            pass
        now[0] += 11
        async with pool.acquire() as x:
            assert x == 3 and pool.stats()["closed"]["idle"] == 1
            now[0] += 200
        assert pool.stats()["closed"]["max_age"] == 1
        at_rest(pool, c)

    asyncio.run(main())


def test_cancels_at_any_moment_leave_nothing():
    async def main() -> None:
        rng = random.Random(3)
        c = Connections(0.002)
        pool = Pool(c.connect, close=c.close, max_connections=3, queue_size=50, queue_timeout_s=0.01)

        async def use() -> None:
            try:
                async with pool.acquire():
                    await asyncio.sleep(rng.random() * 0.004)
            except (PoolTimeout, PoolFull):
                pass

        tasks = []
        for _ in range(600):
            tasks.append(asyncio.create_task(use()))
            if rng.random() < 0.5:
                rng.choice(tasks).cancel()
            if rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.002)
        await asyncio.gather(*tasks, return_exceptions=True)
        at_rest(pool, c)
        assert pool.stats()["closed"]["error"] + len(c.open) <= pool.stats()["opens"] and len(c.open) <= 3

    asyncio.run(main())


def test_bad_values_name_the_field():
    for name, value in (("max_connections", 0), ("max_idle", -1), ("queue_timeout_s", -1), ("queue_size", 1.5)):
        with pytest.raises(ValueError, match=name):
            Pool(lambda: None, **{name: value})


def test_the_idle_life_is_the_least_of_what_is_known():
    p = IdleProbe(60_000)
    assert p.kept(0, 1000) == 60_000
    assert p.kept(1, 1000, hint_ms=4000) == 4000
    assert p.kept(2, 1000, hint_ms=90_000) == 60_000
    assert p.peer_closed(0, 9000) == 7000  # it idled eight seconds: the others get seven
    assert p.kept(3, 10_000) == 7000
    assert p.kept(4, 10_000, hint_ms=4000) == 4000
    assert p.peer_closed(3, 14_000) == 7000  # others have idled longer, and are still there: no limit of the peer's


def test_closes_that_say_nothing_of_an_idle_limit():
    p = IdleProbe(60_000)
    p.kept(0, 1000)
    assert p.peer_closed(0, 1900) == 60_000  # too soon
    p.kept(0, 1000, requests=0)
    assert p.peer_closed(0, 9000) == 60_000  # never used: its peer waited for a first request
    p.kept(0, 1000)
    p.kept(1, 2000)
    assert p.peer_closed(1, 9000) == 60_000  # not the oldest
    assert p.peer_closed(0, 70_000) == 60_000  # we would have closed it before


def test_what_was_learned_is_unlearned_slowly():
    p = IdleProbe(10_000)
    p.kept(0, 1000)
    life, now, lives = p.peer_closed(0, 5000), 5000, []
    while life < 10_000:
        p.kept(0, now)
        p.kept(1, now)
        now += life
        life = p.outlived(0, now)
        assert p.outlived(1, now) == life  # once for all that end together
        lives.append(life)
    assert lives[:2] == [3500 + 437, 3937 + 492] and len(lives) <= 10 and sorted(lives) == lives
