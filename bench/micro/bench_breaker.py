"""What a breaker costs. `empty` is the yard-stick: a call of a Python method that does nothing; a pair may cost eight of them.

python bench/micro/bench_breaker.py --fast
"""

from __future__ import annotations

import time

import pyperf
from gwcore._speedups.breaker_core import pairs
from gwcore._speedups.breaker_probe import SharedBreaker

from gwcore.breaker import Breaker, BreakerConfig
from gwcore.config.resilience import core_rules


class Empty:
    def method(self) -> None:
        pass


def empty(loops: int) -> float:
    thing, start = Empty(), time.perf_counter()
    for _ in range(loops):
        thing.method()
    return time.perf_counter() - start


def acquire_success(loops: int) -> float:
    breaker, start = Breaker("bench"), time.perf_counter()
    for _ in range(loops):
        breaker.try_acquire().success()  # type: ignore[union-attr]
    return time.perf_counter() - start


def refused(loops: int) -> float:
    breaker = Breaker("bench")
    breaker.force_open()
    start = time.perf_counter()
    for _ in range(loops):
        breaker.try_acquire()
    return time.perf_counter() - start


def context_manager(loops: int) -> float:
    breaker, start = Breaker("bench"), time.perf_counter()
    for _ in range(loops):
        with breaker.acquire():
            pass
    return time.perf_counter() - start


def snapshot(loops: int) -> float:
    breaker, start = Breaker("bench"), time.perf_counter()
    for _ in range(loops):
        breaker.snapshot()
    return time.perf_counter() - start


def core(loops: int) -> float:
    start = time.perf_counter()
    pairs(loops)
    return time.perf_counter() - start


def shared(loops: int) -> float:
    breaker = SharedBreaker(1, core_rules(BreakerConfig(), 256.0), 1_000_000)
    start = time.perf_counter()
    breaker.pairs(loops)
    return time.perf_counter() - start


if __name__ == "__main__":
    runner = pyperf.Runner()
    runner.metadata["description"] = "gwcore.breaker"
    for bench in (empty, acquire_success, refused, context_manager, snapshot):
        runner.bench_time_func(f"breaker: {bench.__name__}", bench)
    runner.bench_time_func("breaker: admit + end, nogil core", core)
    runner.bench_time_func("breaker: admit + end, shared, folds included", shared)
