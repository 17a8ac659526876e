"""What a pool costs an asyncio program. `empty` is an async context manager that does nothing, the yard-stick.

python bench/micro/bench_pool.py --fast
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pyperf

from gwcore.pool import Pool


class Connection:
    def close(self) -> None:
        pass


async def connect() -> Connection:
    return Connection()


class Empty:
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *what: object) -> None:
        pass


async def empty(loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        async with Empty():
            pass
    return time.perf_counter() - start


async def reuse(loops: int) -> float:
    async with Pool(connect) as pool:
        start = time.perf_counter()
        for _ in range(loops):
            async with pool.acquire():
                pass
        return time.perf_counter() - start


async def connect_and_close(loops: int) -> float:
    async with Pool(connect, max_idle=0) as pool:
        start = time.perf_counter()
        for _ in range(loops):
            async with pool.acquire():
                pass
        return time.perf_counter() - start


async def handed_over(loops: int) -> float:
    """Two tasks and one connection: every acquire waits and is promised the connection."""
    async with Pool(connect, max_connections=1, max_requests=0, queue_timeout_s=60) as pool:

        async def use() -> None:
            for _ in range(loops // 2 + 1):
                async with pool.acquire():
                    await asyncio.sleep(0)

        start = time.perf_counter()
        await asyncio.gather(use(), use())
        return time.perf_counter() - start


def timed(loops: int, bench: Any) -> float:
    return asyncio.run(bench(loops))


if __name__ == "__main__":
    runner = pyperf.Runner()
    runner.metadata["description"] = "gwcore.pool"
    for bench in (empty, reuse, connect_and_close, handed_over):
        runner.bench_time_func(f"pool: {bench.__name__}", timed, bench)
