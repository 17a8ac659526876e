"""gwcore.pool: a cancel at every step of every phase, promises that hold, closes that nobody waits for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gwcore.pool import Lease, Pool, PoolFull, PoolTimeout


class Server:
    """Counts what is open. Connecting takes `steps` turns of the loop; every `fail_every`th attempt is refused."""

    def __init__(self, steps: int = 3, fail_every: int = 0) -> None:
        self.steps, self.fail_every = steps, fail_every
        self.tried = self.made = self.opening = self.most = 0
        self.open: set[int] = set()

    async def connect(self) -> int:
        self.tried += 1
        self.opening += 1
        self.most = max(self.most, len(self.open) + self.opening)
        try:
            for _ in range(self.steps):
                await asyncio.sleep(0)
        finally:
            self.opening -= 1
        if self.fail_every and self.tried % self.fail_every == 0:
            raise ConnectionRefusedError
        self.made += 1
        self.open.add(self.made)
        return self.made

    def close(self, connection: int) -> None:
        self.open.remove(connection)


def at_rest(pool: Pool, server: Server) -> None:
    s = pool.stats()
    assert s["in_use"] == s["opening"] == s["waiting"] == s["illegal_moves"] == 0, s
    assert s["idle"] == len(server.open), s
    assert s["opens"] == s["idle"] + sum(s["closed"].values()), s


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


async def turns(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


@pytest.mark.parametrize("phase", ["connect", "reuse", "wait for a connection", "wait for a place", "use", "full and failing"])
def test_a_cancel_at_every_step_of_every_phase(phase: str) -> None:
    async def once(step: int) -> bool:
        server = Server(fail_every=2 if phase == "full and failing" else 0)
        pool = Pool(server.connect, close=server.close, max_connections=1, queue_timeout_s=5)

        async def use(n: int) -> None:
            async with pool.acquire():
                await turns(n)

        async def broken(n: int) -> None:
            async with pool.acquire():
                await turns(n)
                raise KeyError

        if phase in ("reuse", "use"):
            await use(0)
        others = []
        if phase == "wait for a connection":
            others = [asyncio.create_task(use(4))]
        elif phase in ("wait for a place", "full and failing"):
            others = [asyncio.create_task(broken(4))]
        await turns(6 if others else 0)
        victim = asyncio.create_task(use(3))
        behind = [asyncio.create_task(use(1)) for _ in range(2)]
        await turns(step)
        late = victim.done()
        victim.cancel()
        results = await asyncio.gather(victim, *others, *behind, return_exceptions=True)
        assert all(r is None or isinstance(r, asyncio.CancelledError | KeyError | ConnectionRefusedError) for r in results), (
            results
        )
        at_rest(pool, server)
        assert server.most <= 1
        await pool.aclose()
        assert not server.open
        return late

    async def main() -> None:
        step = 0
        while not await once(step):
            step += 1
        assert step >= 3

    run(main)


def test_what_is_promised_cannot_be_taken_by_a_newcomer():
    async def main() -> None:
        server = Server(steps=0)
        pool = Pool(server.connect, close=server.close, max_connections=1, queue_timeout_s=5)
        order: list[str] = []

        async def use(name: str) -> None:
            async with pool.acquire():
                order.append(name)

        first = pool.acquire()
        await first.__aenter__()
        first.discard()  # what comes free is a place, not a connection
        waiter = asyncio.create_task(use("waiter"))
        await turns(2)
        await first.__aexit__(None, None, None)
        assert pool.stats()["opening"] == 1 and pool.stats()["waiting"] == 0  # taken at once, in its name
        newcomer = asyncio.create_task(use("newcomer"))
        await asyncio.gather(waiter, newcomer)
        assert order == ["waiter", "newcomer"] and server.most == 1
        at_rest(pool, server)

    run(main)


def test_a_waiter_waits_once_for_its_time():
    async def main() -> None:
        server = Server(steps=0)
        pool = Pool(server.connect, close=server.close, max_connections=1, queue_timeout_s=0.1)
        stop = False

        async def hog() -> None:
            while not stop:  # keeps breaking its connection and coming back for another
                try:
                    async with pool.acquire():
                        await asyncio.sleep(0.03)
                        raise KeyError
                except (KeyError, PoolTimeout):
                    pass

        hogs = [asyncio.create_task(hog()) for _ in range(8)]
        loop, longest = asyncio.get_running_loop(), 0.0
        for _ in range(10):
            start = loop.time()
            try:
                async with pool.acquire():
                    pass
            except PoolTimeout:
                pass
            longest = max(longest, loop.time() - start)
        stop = True
        await asyncio.gather(*hogs)
        assert longest < 0.16
        at_rest(pool, server)

    run(main)


def test_a_slow_or_broken_close_is_nobody_elses_trouble():
    async def main() -> None:
        server = Server(steps=0)
        release = asyncio.Event()

        async def close(connection: int) -> None:
            server.close(connection)
            await release.wait()
            raise OSError

        pool = Pool(server.connect, close=close, max_connections=1)
        for _ in range(3):
            with pytest.raises(KeyError):
                async with pool.acquire():
                    raise KeyError
        async with pool.acquire():  # three closes hang
            pass
        closing = asyncio.create_task(pool.aclose())
        await turns(5)
        assert not closing.done() and not server.open
        release.set()
        await closing
        at_rest(pool, server)

        def bad_close(connection: int) -> None:
            raise OSError

        pool = Pool(server.connect, close=bad_close)
        with pytest.raises(KeyError):  # not OSError
            async with pool.acquire():
                raise KeyError

    run(main)


def test_closing_wakes_those_who_wait_and_takes_back_later():
    async def main() -> None:
        server = Server()
        async with Pool(server.connect, close=server.close, max_connections=1, queue_timeout_s=5) as pool:
            lease = pool.acquire()
            assert await lease.__aenter__() == 1
            waiter = asyncio.create_task(pool.acquire().__aenter__())
            await turns(2)
        with pytest.raises(RuntimeError, match="closed"):
            await waiter
        assert server.open == {1} and lease.connection == 1
        await lease.__aexit__(None, None, None)
        assert not server.open and pool.stats()["closed"]["drain"] == 1
        at_rest(pool, server)

    run(main)


def test_a_place_promised_before_the_close_is_not_connected():
    async def main() -> None:
        server = Server(steps=0)
        pool = Pool(server.connect, close=server.close, max_connections=1, queue_timeout_s=5)
        lease = pool.acquire()
        await lease.__aenter__()
        waiter = asyncio.create_task(pool.acquire().__aenter__())
        await turns(2)
        lease.discard()
        await lease.__aexit__(None, None, None)
        await pool.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await waiter
        assert server.tried == 1
        at_rest(pool, server)

    run(main)


def test_own_close_is_found():
    class Connection:
        closed = 0

        def close(self) -> None:
            self.closed += 1

    class Async(Connection):
        async def aclose(self) -> None:
            self.closed += 10

    async def main() -> None:
        for kind, expected in ((Connection, 1), (Async, 10)):

            async def connect(kind: type[Connection] = kind) -> Connection:
                return kind()

            async with Pool(connect) as pool, pool.acquire() as connection:
                pass
            assert connection.closed == expected

    run(main)


def test_idle_and_old_connections_are_told_apart():
    async def main() -> None:
        now, server = [0.0], Server(steps=0)
        pool = Pool(server.connect, close=server.close, idle_timeout_s=10, max_age_s=50, clock=lambda: now[0])
        async with pool.acquire(), pool.acquire():
            pass
        now[0] = 9.0
        async with pool.acquire():
            pass
        now[0] = 12.0
        assert await pool.expire() == 1 and pool.stats()["closed"]["idle"] == 1
        now[0] = 18.0
        async with pool.acquire():
            pass
        now[0] = -5.0  # a clock that goes back expires nothing
        assert await pool.expire() == 0
        now[0] = 60.0
        assert await pool.expire() == 1 and pool.stats()["closed"]["max_age"] == 1
        at_rest(pool, server)

    run(main)


def test_no_queue_and_no_time():
    async def main() -> None:
        server = Server(steps=0)
        pool = Pool(server.connect, close=server.close, max_connections=1, queue_size=0)
        async with pool.acquire():
            with pytest.raises(PoolFull, match="queue_size"):
                await pool.acquire().__aenter__()
        pool = Pool(server.connect, close=server.close, max_connections=1, queue_timeout_s=0)
        async with pool.acquire():
            with pytest.raises(PoolTimeout, match="queue_timeout_s"):
                await pool.acquire().__aenter__()
            assert pool.stats()["queue_timeout"] == 1

    run(main)


def test_misuse_is_an_error_not_a_crash():
    async def main() -> None:
        server = Server()
        pool = Pool(server.connect, close=server.close)
        with pytest.raises(TypeError, match="initialised once"):
            pool.__init__(server.connect)
        lease = pool.acquire()
        first = asyncio.create_task(lease.__aenter__())
        await turns(1)
        with pytest.raises(RuntimeError, match="in use already"):
            await lease.__aenter__()
        assert await first == 1
        await lease.__aexit__(None, None, None)
        for call in (lambda: Lease().__aenter__(), lambda: Pool.__new__(Pool).acquire().__aenter__()):
            with pytest.raises((AttributeError, TypeError)):
                await call()
        at_rest(pool, server)

    run(main)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_leaks_whatever_happens(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        server = Server(steps=2, fail_every=7)
        pool = Pool(
            server.connect, close=server.close, max_connections=3, max_idle=1, max_requests=5, queue_size=6, queue_timeout_s=0.002
        )

        async def use() -> None:
            try:
                async with pool.acquire():
                    await turns(rng.randrange(6))
                    if rng.random() < 0.2:
                        raise KeyError
            except (PoolFull, PoolTimeout, KeyError, ConnectionRefusedError):
                pass

        tasks = []
        for i in range(300):
            burst = 12 if i % 30 == 0 else 4  # 12 are more than the pool and its queue take
            tasks += [asyncio.create_task(use()) for _ in range(burst)]
            if rng.random() < 0.4:
                rng.choice(tasks[-8:]).cancel()
            await turns(60 if i % 30 == 29 else rng.randrange(4))
            s = pool.stats()
            assert s["in_use"] + s["idle"] + s["opening"] <= 3 and s["waiting"] <= 6 and server.most <= 3
        await asyncio.gather(*tasks, return_exceptions=True)
        at_rest(pool, server)
        s = pool.stats()
        assert s["reuses"] and s["closed"]["max_requests"] and s["closed"]["evicted"] and s["queue_full"]
        await pool.aclose()
        assert not server.open

    run(main)
