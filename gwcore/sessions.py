"""TLS sessions beyond this machine: what a worker writes to Redis and asks of it (`tls.sessions.redis`).

The data plane sends letters: a handshake waits for a session, a session is new, a session was used. Nothing in here makes a handshake fail:
whatever Redis does, after `redis.deadline` it goes on without. Redis sees neither a session nor its id: keys are hashes, values are sealed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from gwcore._speedups import crypto

if TYPE_CHECKING:
    from gwcore._speedups.plane import Plane
    from gwcore.config.schema import Config

ASK, KEEP, EXTEND, CLAIM = range(4)
MISSED = 5  # look-ups in a row without an answer, and nobody asks for REST_S
REST_S = 1.0
FLIGHTS = 64  # look-ups under way at once, each of several handshakes
BUSY = (
    2  # so many under way, and what comes waits to be asked for together, for JOIN_S at the most: 10 us a session instead of 50
)
JOIN_S = 0.001
WAITING = 1024  # handshakes that wait for a flight
QUEUE = 4096  # sessions that wait to be written
BATCH = 128
GATHER_S = 0.005  # until a batch is written: alone, a write costs more than the handshake, and who comes again sooner is not known elsewhere
WRITE_S = 2.0  # most time for writing one batch


@lru_cache(maxsize=4)
def sealing(secret: str) -> bytes:
    """The key that seals what Redis gets; scrypt (RFC 7914), so that a stolen value does not give away a weak secret cheaply."""
    return hashlib.scrypt(secret.encode(), salt=b"gwcore tls sessions", n=1 << 14, r=8, p=1, dklen=32)


def settings(config: Config) -> dict[str, Any] | None:
    """What a worker needs to know, None when no session is shared."""
    shared = config.tls.sessions.redis and any(x.tls is not None and x.tls.sessions == "store" for x in config.listeners)
    return (
        {
            "url": config.redis.url,
            "cluster": config.redis.cluster,
            "prefix": config.redis.prefix,
            "deadline": config.redis.deadline,
            "key": sealing(config.tls.sessions.secret),
        }
        if shared
        else None
    )


class Asked(NamedTuple):
    """A handshake that waits for its session."""

    claim: bool
    """It brings early data: whoever removes the session from Redis may take that."""
    handle: int
    ttl_s: int
    session: bytes
    since: float
    """When it began to wait, by the loop's clock."""


@dataclass(frozen=True)
class Settings:
    """As `settings` gives them."""

    url: str
    cluster: bool
    prefix: str
    deadline: float
    key: bytes


class SharedSessions:
    """Serves the letters of one plane. `use` at every commit, `stop` at the end; all of it in the plane's loop."""

    def __init__(self, plane: Plane):
        self.plane = plane
        self.loop = asyncio.get_running_loop()
        self.settings: Settings | None = None
        self.client: Any = None
        self.missed = 0
        self.flights: set[asyncio.Task[Any]] = set()
        self.joining: asyncio.TimerHandle | None = None
        self.waiting: deque[Asked] = deque()
        self.queue: deque[tuple[int, int, bytes]] = deque()
        self.written = asyncio.Event()
        self.writer: asyncio.Task[None] | None = None
        self.rest: asyncio.TimerHandle | None = None

    def use(self, given: dict[str, Any] | None) -> None:
        """Follow these settings from now on; None = share nothing."""
        wanted = Settings(**given) if given else None
        if wanted == self.settings:
            return
        self.stop()
        self.settings = wanted
        if wanted is None:
            return
        from gwcore.redis_client import connect

        self.client = connect(wanted.url, wanted.cluster, WRITE_S)
        self.missed = 0
        self.plane.on_letters = self.letters
        self.writer = self.loop.create_task(self.write())
        self.plane.ask_redis(True)

    def stop(self) -> None:
        """Ask and write no more; handshakes that wait go on."""
        self.plane.ask_redis(False)
        self.plane.on_letters = None
        for task in (*self.flights, self.writer):
            if task is not None:
                task.cancel()
        for timer in (self.rest, self.joining):
            if timer is not None:
                timer.cancel()
        self.queue.clear()
        self.skip()
        self.settings = self.writer = self.rest = self.joining = None
        if self.client is not None:
            from gwcore.redis_client import close

            task = self.loop.create_task(close(self.client))
            self.flights.add(task)
            task.add_done_callback(self.flights.discard)
            self.client = None

    def letters(self, letters: list[tuple[int, int, int, bytes]]) -> None:
        """What the data plane has to say."""
        now = self.loop.time()
        for kind, handle, ttl_s, session in letters:
            if kind in (ASK, CLAIM):
                self.waiting.append(Asked(kind == CLAIM, handle, ttl_s, session, now))
            elif len(self.queue) >= QUEUE:
                self.plane.count_redis("dropped")
            else:
                self.queue.append((kind, ttl_s, session))
                self.written.set()
        if self.rest is not None:
            self.skip()
        while len(self.waiting) > WAITING:
            self.skip(1)
        self.fly()

    def fly(self) -> None:
        """Ask for those who wait, unless it is better to wait for more."""
        while self.waiting and len(self.flights) < FLIGHTS:
            if len(self.flights) >= BUSY and self.loop.time() - self.waiting[0].since < JOIN_S:
                break
            asked = [self.waiting.popleft() for _ in range(min(BATCH, len(self.waiting)))]
            flight = self.loop.create_task(self.look_up(asked))
            self.flights.add(flight)
            flight.add_done_callback(partial(self.landed, asked))
        if self.waiting and self.joining is None:
            self.joining = self.loop.call_later(JOIN_S, self.joined)

    def joined(self) -> None:
        self.joining = None
        self.fly()

    def landed(self, asked: list[Asked], flight: asyncio.Task[list[bytes | None]]) -> None:
        """Let handshakes go on, whatever came of the look-up, if only that it was never begun."""
        found = flight.result() if self.settings and not flight.cancelled() and not flight.exception() else []
        now = self.loop.time()
        for i, a in enumerate(asked):
            what = self.take(a.session, found[i], a.ttl_s) if found else "errors"
            self.plane.count_redis(what, now - a.since)
            self.plane.resume(a.handle, a.claim and what == "hits")
        self.flights.discard(flight)
        self.fly()

    def skip(self, n: int = WAITING * 2) -> None:
        """Let the first n of those who wait go on without."""
        for _ in range(min(n, len(self.waiting))):
            self.plane.count_redis("skipped")
            self.plane.resume(self.waiting.popleft().handle)

    def key(self, session: bytes) -> str:
        """Begins with the hash, which spreads over the shards of a cluster."""
        assert self.settings is not None
        return f"{self.settings.prefix}{hashlib.sha256(session).hexdigest()}:tls"

    # ---- reading ----

    async def look_up(self, asked: list[Asked]) -> list[bytes | None]:
        """What Redis has, or nothing when it does not say so before the first of them has waited for the deadline."""
        assert self.settings is not None
        try:
            async with asyncio.timeout_at(asked[0].since + self.settings.deadline):
                found = await self.read(asked)
        except Exception:  # whatever a server or a network may do, handshakes go on
            self.missed += 1
            if self.missed >= MISSED:
                self.rest_for_a_while()
            return []
        self.missed = 0
        return found

    async def read(self, asked: list[Asked]) -> list[bytes | None]:
        """What Redis has. What is claimed is removed there in the same step, so that one machine alone finds it."""
        assert self.settings is not None
        if len(asked) == 1:
            return [await (self.client.getdel if asked[0].claim else self.client.get)(self.key(asked[0].session))]
        if not self.settings.cluster and not any(a.claim for a in asked):
            all_: list[bytes | None] = await self.client.mget([self.key(a.session) for a in asked])
            return all_
        async with self.client.pipeline(transaction=False) as p:
            for a in asked:
                (p.getdel if a.claim else p.get)(self.key(a.session))
            found: list[bytes | None] = await p.execute()
            return found

    def take(self, session: bytes, sealed: bytes | None, ttl_s: int) -> str:
        """Put what was found into the machine's store; what it counts as."""
        assert self.settings is not None
        if sealed is None:
            return "misses"
        try:
            good = self.plane.put_session(session, crypto.unwrap(self.settings.key, sealed), ttl_s)
        except ValueError:
            return "errors"
        return "hits" if good else "errors"

    def rest_for_a_while(self) -> None:
        """Redis does not answer: no handshake waits for it."""
        if self.rest is None:
            self.plane.ask_redis(False)
            self.skip()
            self.rest = self.loop.call_later(REST_S, self.try_again)

    def try_again(self) -> None:
        self.rest = None
        self.missed = MISSED - 1
        self.plane.ask_redis(True)

    # ---- writing ----

    async def write(self) -> None:
        """Batch by batch, for ever. What cannot be written is lost, and counted."""
        with contextlib.suppress(Exception):  # make the first connection before a handshake needs it
            async with asyncio.timeout(WRITE_S):
                await self.client.initialize()
                await self.client.ping()
        while True:
            await self.written.wait()
            self.written.clear()
            await asyncio.sleep(GATHER_S)
            while self.queue:
                batch = [self.queue.popleft() for _ in range(min(BATCH, len(self.queue)))]
                try:
                    async with asyncio.timeout(WRITE_S):
                        await self.send(batch)
                except Exception:
                    self.plane.count_redis("dropped", n=len(batch))
                    await asyncio.sleep(REST_S / 4)

    async def send(self, batch: list[tuple[int, int, bytes]]) -> None:
        assert self.settings is not None
        kept = lost = 0
        alone = len(batch) == 1  # then a pipeline costs half as much again
        async with contextlib.nullcontext(self.client) if alone else self.client.pipeline(transaction=False) as p:
            done = None
            for kind, ttl_s, session in batch:
                if kind == EXTEND:
                    done = p.expire(self.key(session), ttl_s)
                elif plain := self.plane.session(session):
                    done = p.set(self.key(session), crypto.wrap(self.settings.key, plain), ex=ttl_s, nx=True)
                    kept += 1
                else:  # the store has forgotten it already
                    lost += 1
            if done is not None:
                await (done if alone else p.execute())
        self.plane.count_redis("written", n=kept)
        self.plane.count_redis("dropped", n=lost)
