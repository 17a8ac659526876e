"""Upstreams for breakers: calls whose outcome is a function of time, against a private breaker and against the one that processes share. No sleep:
the clock is the test's."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from gwcore._speedups.breaker_probe import SharedBreaker, SharedPermit

from gwcore.breaker import Breaker, BreakerConfig, Permit
from gwcore.config.resilience import core_rules

OUTCOMES = {"ok": 0, "status": 1, "connect": 1, "reset": 1, "timeout": 2, "overload": 2, "cancel": 3}

Call = Callable[[random.Random], tuple[str, float]]  # -> (outcome: "ok", a kind of failure, or "cancel"; latency in seconds)


def fail(kind: str, latency: float = 0.001) -> Call:
    return lambda r: (kind, latency)


class World:
    """`moves` are the transitions: (when, from, to, reason)."""

    def __init__(self, seed: int = 1) -> None:
        self.now, self.rng = 1000.0, random.Random(seed)
        self.moves: list[tuple[float, str, str, str]] = []
        self.refused = self.serial = 0
        self.pending: list[tuple[float, int, Any, str, float]] = []

    def ask(self) -> Any:
        """A permit, or None."""
        raise NotImplementedError

    def end(self, permit: Any, outcome: str, latency: float) -> None:
        raise NotImplementedError

    def snapshot(self) -> dict[str, Any]:
        raise NotImplementedError

    def look(self) -> None:
        """Bring `moves` up to date."""

    def run(self, seconds: float, rps: float, call: Call) -> World:
        end, at = self.now + seconds, self.now
        while at < end:
            self.drain(at)
            self.now = at
            permit = self.ask()
            self.serial += 1
            if permit is None:
                self.refused += 1
            else:
                outcome, latency = call(self.rng)
                heapq.heappush(self.pending, (at + latency, self.serial, permit, outcome, latency))
            at += 1 / rps
        self.drain(end)
        self.now = end
        self.look()
        return self

    def drain(self, until: float) -> None:
        while self.pending and self.pending[0][0] <= until:
            self.now, _, permit, outcome, latency = heapq.heappop(self.pending)
            self.end(permit, outcome, latency)

    def healthy(self, seconds: float = 60) -> Any:
        self.run(seconds, 100, lambda r: ("ok", 0.01 + r.random() * 0.01))
        assert self.moves == [] and self.refused == 0
        return self


class Private(World):
    def __init__(self, seed: int = 1, **config: Any) -> None:
        super().__init__(seed)
        self.b = Breaker(
            "x",
            BreakerConfig(**config),
            clock=lambda: self.now,
            rng=self.rng.random,
            on_transition=lambda b, was, to, why: self.moves.append((self.now, was.value, to.value, why)),
        )

    def ask(self) -> Permit | None:
        return self.b.try_acquire() or None

    def end(self, permit: Permit, outcome: str, latency: float) -> None:
        if outcome == "ok":
            permit.success()
        elif outcome == "cancel":
            permit.cancel()
        else:
            permit.failure(outcome)

    def snapshot(self) -> dict[str, Any]:
        return self.b.snapshot()


def shared(workers: int = 4, now: float = 1000.0, **config: Any) -> SharedBreaker:
    return SharedBreaker(workers, core_rules(BreakerConfig(**config), 0.0), int(now * 1e6))


class Shared(World):
    """The calls are those of several workers in turn."""

    def __init__(self, seed: int = 1, workers: int = 4, breaker: SharedBreaker | None = None, **config: Any) -> None:
        super().__init__(seed)
        self.workers = workers
        self.b = breaker or shared(workers, self.now, **config)

    def us(self) -> int:
        return int(self.now * 1e6)

    def ask(self) -> SharedPermit | None:
        p = self.b.admit(self.serial % self.workers, self.us(), self.rng.random())
        return None if p.refusal else p

    def end(self, permit: SharedPermit, outcome: str, latency: float) -> None:
        self.b.end(permit, OUTCOMES[outcome], int(latency * 1e6), self.us(), self.rng.random())

    def look(self) -> None:
        self.moves += [(e["at_us"] / 1e6, e["from"], e["to"], e["reason"]) for e in self.b.events()]

    def healthy(self, seconds: float = 60) -> Shared:
        super().healthy(seconds)
        self.drain(float("inf"))
        return self

    def snapshot(self) -> dict[str, Any]:
        return self.b.snapshot(self.us())
