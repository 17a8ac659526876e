"""Micro benchmarks with pyperf: parser, router, timer wheel, breaker, chunk decoder. `bench/micro/run.py --fast` for a quick look.

The router's promise is a ratio, printed at the end: 10,000 routes cost at most 1.5 times what 10 do.
"""

from __future__ import annotations

import sys
import time

import pyperf
from gwcore._speedups.chunked import ChunkedProbe
from gwcore._speedups.http1 import RequestProbe
from gwcore._speedups.router import RouterProbe
from gwcore._speedups.timer import WheelProbe

from gwcore.breaker import Breaker
from gwcore.config.compile import compile_plan
from gwcore.config.load import load_text


def router(n: int) -> RouterProbe:
    routes = "".join(f"  - {{match: {{prefix: /service-{i}/v1}}, respond: {{}}}}\n" for i in range(n))
    return RouterProbe(compile_plan(load_text('listeners: [{address: "127.0.0.1:1"}]\nroutes:\n' + routes).config))


def find(loops: int, probe: RouterProbe, path: bytes) -> float:
    started = time.perf_counter()
    probe.repeat(b"a", path, loops)
    return time.perf_counter() - started


def main() -> None:
    runner = pyperf.Runner()
    small, large = router(10), router(10_000)
    a = runner.bench_time_func("router, 10 routes", find, small, b"/service-7/v1/items/12345")
    b = runner.bench_time_func("router, 10000 routes", find, large, b"/service-7777/v1/items/12345")

    head = b"GET /items/7?x=1 HTTP/1.1\r\nHost: example.com\r\nUser-Agent: bench\r\nAccept: application/json, text/plain, */*\r\nAccept-Language: en\r\n\r\n"

    def parse(loops: int) -> float:
        started = time.perf_counter()
        RequestProbe().repeat(head, loops)
        return time.perf_counter() - started

    runner.bench_time_func("request head of 130 bytes, parsed and checked", parse)
    wheel = WheelProbe(1000, 0)

    def timers() -> None:
        for i in range(1000):
            wheel.arm(i, 75_000 + i)

    runner.bench_func("timer wheel, 1000 deadlines moved later", timers, inner_loops=1000)
    breaker = Breaker("bench")

    class Empty:
        def method(self) -> None:
            pass

    empty = Empty()
    runner.bench_func("empty Python method", lambda: empty.method(), inner_loops=1)
    runner.bench_func("breaker: try_acquire + success", lambda: breaker.try_acquire().success(), inner_loops=1)
    text = b"400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n"
    runner.bench_func("chunked body of 1 KiB", lambda: ChunkedProbe().feed(text))
    if a is not None and b is not None and not runner.args.worker:
        print(f"router: 10000 routes cost {b.median() / a.median():.2f} times what 10 do")


if __name__ == "__main__":
    sys.exit(main())
