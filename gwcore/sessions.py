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
from gwcore.redis_mail import RedisMail

if TYPE_CHECKING:
    from gwcore._speedups.plane import Plane
    from gwcore.config.schema import Config

ASK, KEEP, EXTEND, CLAIM = range(4)
FLIGHTS = 64  # look-ups under way at once, each of several handshakes
BUSY = (
    2  # so many under way, and what comes waits to be asked for together, for JOIN_S at the most: 10 us a session instead of 50
)
JOIN_S = 0.001
WAITING = 1024  # handshakes that wait for a flight
QUEUE = 4096  # sessions that wait to be written
BATCH = 128


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


class SharedSessions(RedisMail):
    """Serves the letters of one plane. `use` at every commit, `stop` at the end; all of it in the plane's loop."""

    settings: Settings | None

    def __init__(self, plane: Plane):
        super().__init__(plane)
        self.joining: asyncio.TimerHandle | None = None
        self.waiting: deque[Asked] = deque()
        self.queue: deque[tuple[int, int, bytes]] = deque()

    def use(self, given: dict[str, Any] | None) -> None:
        """Follow these settings from now on; None = share nothing."""
        wanted = Settings(**given) if given else None
        if wanted == self.settings:
            return
        self.stop()
        if wanted is None:
            return
        self.open(wanted)
        self.plane.on_letters = self.letters
        self.asking(True)

    def stop(self) -> None:
        """Ask and write no more; handshakes that wait go on."""
        self.plane.on_letters = None
        if self.joining is not None:
            self.joining.cancel()
            self.joining = None
        self.queue.clear()
        self.asking(False)
        self.close()

    def asking(self, on: bool) -> None:
        self.plane.ask_redis(on)
        if not on:
            self.skip()

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
        while self.waiting and len(self.tasks) < FLIGHTS:
            if len(self.tasks) >= BUSY and self.loop.time() - self.waiting[0].since < JOIN_S:
                break
            asked = [self.waiting.popleft() for _ in range(min(BATCH, len(self.waiting)))]
            self.start(self.look_up(asked)).add_done_callback(partial(self.landed, asked))
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
            self.unanswered()
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

    # ---- writing ----

    def batch(self) -> list[tuple[int, int, bytes]]:
        return [self.queue.popleft() for _ in range(min(BATCH, len(self.queue)))]

    def dropped(self, n: int) -> None:
        self.plane.count_redis("dropped", n=n)

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
