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
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gwcore._speedups import crypto

if TYPE_CHECKING:
    from gwcore._speedups.plane import Plane
    from gwcore.config.schema import Config

ASK, KEEP, EXTEND = range(3)
MISSED = 5  # look-ups in a row without an answer, and nobody asks for REST_S
REST_S = 1.0
FLIGHTS = 64  # look-ups under way at once, each of all handshakes that came in one turn
QUEUE = 4096  # sessions that wait to be written
BATCH = 128
GATHER_S = 0.02  # until a batch is written: alone, a write costs more than the handshake
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
        self.flights: set[asyncio.Task[None]] = set()
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
        if self.rest is not None:
            self.rest.cancel()
        self.queue.clear()
        self.settings = self.writer = self.rest = None
        if self.client is not None:
            from gwcore.redis_client import close

            task = self.loop.create_task(close(self.client))
            self.flights.add(task)
            task.add_done_callback(self.flights.discard)
            self.client = None

    def letters(self, letters: list[tuple[int, int, int, bytes]]) -> None:
        """What the data plane has to say."""
        asked = []
        for kind, handle, ttl_s, session in letters:
            if kind == ASK:
                asked.append((handle, ttl_s, session))
            elif len(self.queue) >= QUEUE:
                self.plane.count_redis("dropped")
            else:
                self.queue.append((kind, ttl_s, session))
                self.written.set()
        if not asked:
            return
        if len(self.flights) >= FLIGHTS or self.rest is not None:
            self.plane.count_redis("skipped", n=len(asked))
            for handle, _, _ in asked:
                self.plane.resume(handle)
            return
        flight = self.loop.create_task(self.look_up(asked))
        self.flights.add(flight)
        flight.add_done_callback(self.flights.discard)

    def key(self, session: bytes) -> str:
        """Begins with the hash, which spreads over the shards of a cluster."""
        assert self.settings is not None
        return f"{self.settings.prefix}{hashlib.sha256(session).hexdigest()}:tls"

    # ---- reading ----

    async def look_up(self, asked: list[tuple[int, int, bytes]]) -> None:
        """Ask for sessions, then let their handshakes go on, whatever came of it."""
        assert self.settings is not None
        began = self.loop.time()
        found: list[bytes | None] = []
        try:
            async with asyncio.timeout(self.settings.deadline):
                found = await self.read([session for _, _, session in asked])
            self.missed = 0
        except Exception:  # whatever a server or a network may do, handshakes go on
            self.missed += 1
            if self.missed >= MISSED:
                self.rest_for_a_while()
        finally:
            took = self.loop.time() - began
            for i, (handle, ttl_s, session) in enumerate(asked):
                self.plane.count_redis(self.take(session, found[i], ttl_s) if found else "errors", took)
                self.plane.resume(handle)

    async def read(self, sessions: list[bytes]) -> list[bytes | None]:
        if len(sessions) == 1:
            return [await self.client.get(self.key(sessions[0]))]
        async with self.client.pipeline(transaction=False) as p:
            for session in sessions:
                p.get(self.key(session))
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
        async with self.client.pipeline(transaction=False) as p:
            for kind, ttl_s, session in batch:
                if kind == EXTEND:
                    p.expire(self.key(session), ttl_s)
                elif plain := self.plane.session(session):
                    p.set(self.key(session), crypto.wrap(self.settings.key, plain), ex=ttl_s, nx=True)
                    kept += 1
                else:  # the store has forgotten it already
                    lost += 1
            await p.execute()
        self.plane.count_redis("written", n=kept)
        self.plane.count_redis("dropped", n=lost)
