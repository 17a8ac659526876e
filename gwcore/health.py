"""Active checks: who is up. The supervisor checks each endpoint once for the whole machine; workers read the verdict in the shared segment.

An endpoint is known by upstream and identity (address, behind a name the resolved one), so that a reload or a new set of addresses keeps the
verdict of those that stay. Nothing in here is on the way of a request.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gwcore.config import certs
from gwcore.config.places import Addresses, Place, places

if TYPE_CHECKING:
    from gwcore._speedups.shm import Segment
    from gwcore.checks import Checker
    from gwcore.config.health import Health
    from gwcore.config.schema import Config

AT_ONCE = 64  # checks, over all endpoints
FIRST_S = 1.0  # the longest interval while there is no verdict

Key = tuple[str, str]  # upstream, identity of the endpoint


@dataclass
class Tally:
    """What checks have said of one endpoint, and what follows."""

    state: str = "unknown"  # unknown, up, down, back (up again)
    since: float = field(default_factory=time.time)  # unix time
    since_ms: int = 0  # the same on the clock of the data plane
    passed: int = 0  # in a row
    failed: int = 0  # in a row
    last: str = ""  # why the last one that failed did
    checks: int = 0  # so far
    failures: int = 0
    drained: bool = False

    def note(self, why: str, health: Health) -> bool:
        """Count one check; an empty `why` has passed. True: the state is another now."""
        self.checks, self.failures = self.checks + 1, self.failures + bool(why)
        if why:
            self.passed, self.failed, self.last = 0, self.failed + 1, why
            if self.state == "down" or self.failed < health.fall:
                return False
            return self.move("down")
        self.passed, self.failed = self.passed + 1, 0
        if self.state == "unknown":
            return self.move("up")
        return self.state == "down" and self.passed >= health.rise and self.move("back")

    def move(self, state: str) -> bool:
        """Change the state, now."""
        self.state, self.since, self.since_ms = state, time.time(), time.monotonic_ns() // 1_000_000
        return True

    def reason(self) -> str:
        """Of the state, in a few words."""
        if self.state == "down":
            return (
                f"{self.failed} checks failed, last: {self.last}"
                if self.failed
                else f"{self.passed} passed since the last: {self.last}"
            )
        if self.state == "unknown":
            return f"no verdict yet, {self.failed} failed, last: {self.last}" if self.failed else "no verdict yet"
        return f"{self.failed} failed since it passed, last: {self.last}" if self.failed else "checks pass"


@dataclass
class Watched:
    """One endpoint of the configuration in use."""

    place: Place
    slot: int
    checker: Checker | None  # None: not checked
    task: asyncio.Task[None] | None = None


class HealthChecks:
    """Call `use` with each configuration that comes into use, and whenever addresses have changed. `note` gets an event (see gwcore.events) for
    each transition; `healthy(upstream, place, came back)` is called when a check passes after one that did not."""

    def __init__(
        self,
        segment: Segment,
        addresses: Addresses,
        note: Callable[[dict[str, Any]], None],
        healthy: Callable[[str, str, bool], None] = lambda *_: None,
        rng: Callable[[], float] = random.random,
    ):
        self.segment, self.addresses, self.note, self.healthy, self.rng = segment, addresses, note, healthy, rng
        self.tallies: dict[Key, Tally] = {}
        self.watched: dict[Key, Watched] = {}
        self.checkers: dict[str, tuple[Any, Checker]] = {}
        self.slots: set[int] = set()
        self.places_free = asyncio.Semaphore(AT_ONCE)

    # ---- what is watched ----

    def use(self, config: Config) -> None:
        """Check these endpoints from now on. Those that stay keep their verdict; one that is not checked any more has none."""
        before, self.watched = self.watched, {}
        checkers: dict[str, tuple[Any, Checker]] = {}
        for name, u in config.upstreams.items():
            checker = None
            if u.health and u.health.kind:
                material = u._material or certs.Material()
                settings = (u.health, u.tls, u.host, u.proxy_protocol, material)
                known = self.checkers.get(name)
                if known and known[0] == settings:
                    checker = known[1]
                else:
                    from gwcore.checks import Checker

                    checker = Checker(u, material)
                checkers[name] = (settings, checker)
            for place in places(name, u, self.addresses):
                key = (name, place.name)
                old = before.pop(key, None)
                now = Watched(place, self.segment.slot("endpoint", place.cell), checker)
                self.watched[key] = now
                tally = self.tallies.setdefault(key, Tally())
                if checker is None and tally.state != "unknown":
                    self.tallies[key] = Tally(drained=tally.drained)
                if old and old.checker is checker and old.place == place:
                    now.task = old.task
                else:
                    end(old)
                    if checker is not None:
                        now.task = asyncio.ensure_future(self._watch(key, checker, place))
        for old in before.values():
            end(old)
        self.checkers = checkers
        for key in self.tallies.keys() - self.watched.keys():
            del self.tallies[key]
        slots = {w.slot for w in self.watched.values()}
        for slot in self.slots - slots:
            self.segment.set_health(slot, "unknown")
        self.slots = slots
        for key in self.watched:
            self._write(key)
        for name in config.upstreams:
            self._count_down(name)

    def stop(self) -> None:
        """Check nothing any more."""
        for watched in self.watched.values():
            end(watched)

    def _write(self, key: Key) -> None:
        tally = self.tallies[key]
        self.segment.set_health(self.watched[key].slot, tally.state, tally.since_ms, tally.drained)

    def _count_down(self, upstream: str) -> None:
        n = sum(t.state == "down" for key, t in self.tallies.items() if key[0] == upstream)
        self.segment.set_down(self.segment.slot("upstream", upstream), n)

    # ---- checks ----

    async def _watch(self, key: Key, checker: Checker, place: Place) -> None:
        """Until cancelled: one check after the other."""
        h, loop = checker.health, asyncio.get_running_loop()
        await asyncio.sleep(self.rng() * min(h.interval, FIRST_S))
        while True:
            async with self.places_free:
                began = loop.time()
                why = await attempt(checker, place)
            self._count(key, why, h)
            interval = h.interval if self.tallies[key].state != "unknown" else min(h.interval, FIRST_S)
            due = began + interval * (1 + h.jitter * (2 * self.rng() - 1))
            await asyncio.sleep(max(0.0, due - loop.time()))

    def _count(self, key: Key, why: str, health: Health) -> None:
        tally = self.tallies[key]
        before = tally.state
        ill = tally.failed > 0 or before == "down"
        changed = tally.note(why, health)
        if changed:
            self._write(key)
            self._count_down(key[0])
            if tally.state == "down":
                self._tell(key, before, "down", "checks_failed", tally.reason())
            elif tally.state == "back":
                self._tell(key, before, "up", "checks_passed", f"{tally.passed} checks passed")
        if not why and ill:
            self.healthy(key[0], self.watched[key].place.cell.split("|", 1)[1], changed)

    def _tell(self, key: Key, before: str, to: str, reason: str, detail: str) -> None:
        self.note(
            {
                "at": round(time.time(), 3),
                "event": "health",
                "upstream": key[0],
                "endpoint": key[1],
                "from": before,
                "to": to,
                "reason": reason,
                "detail": detail,
            }
        )

    # ---- for others ----

    def drain(self, upstream: str, endpoint: str, out: bool) -> bool:
        """Take an endpoint out (what it has under way goes on), or in again, all addresses of a name together. False: there is none of that name."""
        keys = [k for k, w in self.watched.items() if k[0] == upstream and endpoint in (k[1], w.place.endpoint.address)]
        for key in keys:
            self.tallies[key].drained = out
            self._write(key)
            self._tell(key, *(("in_use", "drained") if out else ("drained", "in_use")), "operator", "by the admin interface")
        return bool(keys)

    def legacy(self) -> bytes:
        """The verdicts, for the program that comes after this one."""
        told = [[*key, vars(t)] for key, t in self.tallies.items() if t.state != "unknown" or t.drained]
        return json.dumps(told).encode() if told else b""

    def adopt(self, text: bytes) -> None:
        """What the program before us left by `legacy`."""
        for upstream, name, fields in json.loads(text or b"[]"):
            self.tallies[upstream, name] = Tally(**fields)


def end(watched: Watched | None) -> None:
    if watched and watched.task:
        watched.task.cancel()


async def attempt(checker: Checker, place: Place) -> str:
    """One check: why it failed, or nothing."""
    from gwcore.checks import CheckFailed

    try:
        await checker.run(place)
    except CheckFailed as why:
        return str(why)
    except Exception as why:  # a check must go on whatever an endpoint says
        return f"{type(why).__name__}: {why}"
    return ""
