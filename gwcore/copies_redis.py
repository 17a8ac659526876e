"""Copies beyond this machine: what a worker asks of Redis and writes there (`cache.redis`).

The data plane sends letters: a request waits for a copy, a copy was stored, a copy was dropped. Nothing in here makes a request fail: whatever Redis
does, after `redis.deadline` the request goes on without. What is found goes into the machine's store, where the request finds it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gwcore import copies_wire
from gwcore.config.cache import shared
from gwcore.redis_mail import WRITE_S, RedisMail

if TYPE_CHECKING:
    from gwcore._speedups.plane import Plane
    from gwcore.config.schema import Config

ASK, KEEP, GONE = range(3)
FLIGHTS = 128  # look-ups under way at once
QUEUE = 1024  # copies that wait to be written
QUEUE_BYTES = 16 << 20
BATCH = 32
BATCH_BYTES = 1 << 20
ASIDE = 64 << 10  # larger bodies are deflated and inflated in a thread
LONGEST_S = 86400  # a copy that never ends lives so long in Redis
PURGE_S = 30.0
ON_ITS_WAY_S = 0.05  # what a worker has sent before it knew of a purge is there by then
PURGE_BATCH = 200
START = 16 << 10  # of a packed copy: address and tags are in there


@dataclass(frozen=True)
class Settings:
    """As `settings` gives them."""

    url: str
    cluster: bool
    prefix: str
    deadline: float
    compress: int


def settings(config: Config) -> dict[str, Any] | None:
    """What a worker needs to know, None when no copy is shared."""
    if not shared(config) or not config.redis.url:
        return None
    r = config.redis
    return {
        "url": r.url, "cluster": r.cluster, "prefix": r.prefix, "deadline": r.deadline, "compress": config.cache.compress,
    }  # fmt: skip


def digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16).hexdigest()


@dataclass
class Write:
    """A copy that waits to be written; `found` = None: to be removed."""

    key: bytes
    epoch: int
    found: dict[str, Any] | None


class SharedCopies(RedisMail):
    """Serves the letters of one plane. `use` at every commit, `stop` at the end; all of it in the plane's loop."""

    settings: Settings | None

    def __init__(self, plane: Plane):
        super().__init__(plane)
        self.asked: dict[bytes, list[int]] = {}  # who waits for which key
        self.queue: deque[Write] = deque()
        self.queued = 0  # bytes

    def use(self, given: dict[str, Any] | None) -> None:
        """Follow these settings from now on; None = share nothing."""
        wanted = Settings(**given) if given and self.plane.copies is not None else None
        if wanted == self.settings:
            return
        self.stop()
        if wanted is None:
            return
        self.open(wanted)
        self.plane.on_copies = self.letters
        self.asking(True)

    def stop(self) -> None:
        """Ask and write no more; requests that wait go on."""
        self.plane.ask_copies(False, False)
        self.plane.on_copies = None
        self.queue.clear()
        self.queued = 0
        for key in list(self.asked):
            self.go_on(key, "skipped")
        self.close()

    def asking(self, on: bool) -> None:
        self.plane.ask_copies(True, on)

    def letters(self, letters: list[tuple[int, int, int, bytes]]) -> None:
        """What the data plane has to say: (kind, handle, epoch, key)."""
        for kind, handle, epoch, key in letters:
            if kind == ASK:
                self.ask(handle, epoch, key)
            elif kind == KEEP:
                self.put(Write(key, epoch, self.plane.copies.look(key)))
            else:
                self.put(Write(key, epoch, None))

    @property
    def offset_ms(self) -> int:
        """The wall clock less the monotonic one."""
        return (time.time_ns() - time.monotonic_ns()) // 1_000_000

    # ---- reading ----

    def ask(self, handle: int, epoch: int, key: bytes) -> None:
        if key in self.asked:
            self.asked[key].append(handle)
        elif self.rest is not None or len(self.asked) >= FLIGHTS:
            self.plane.copies.count_redis("skipped")
            self.plane.resume_copy(handle)
        else:
            self.asked[key] = [handle]
            self.start(self.look_up(epoch, key, self.loop.time())).add_done_callback(partial(self.landed, key))

    def landed(self, key: bytes, flight: asyncio.Task[str]) -> None:
        """Let requests go on, whatever came of the look-up, if only that it was never begun."""
        self.go_on(key, "skipped" if flight.cancelled() else "errors" if flight.exception() else flight.result())

    def go_on(self, key: bytes, what: str) -> None:
        handles = self.asked.pop(key, [])
        if handles:
            self.plane.copies.count_redis(what)
        for handle in handles:
            self.plane.resume_copy(handle)

    async def look_up(self, epoch: int, key: bytes, since: float) -> str:
        """Take over what Redis has, if it says so before the deadline; what that counts as."""
        assert self.settings is not None
        try:
            async with asyncio.timeout_at(since + self.settings.deadline):
                packed: bytes | None = await self.client.get(self.name(key))
                answered = packed is not None and await self.take_over(epoch, key, packed)
        except Exception:  # whatever a server or a network may do, requests go on
            self.unanswered()
            return "errors"
        finally:
            if self.plane.copies is not None:
                self.plane.copies.count_redis("us", int((self.loop.time() - since) * 1e6))
        self.missed = 0
        return "misses" if packed is None else "hits" if answered else "bad"

    async def take_over(self, epoch: int, key: bytes, packed: bytes) -> bool:
        """Put what was found into the machine's store. False: it cannot be used."""
        try:
            if len(packed) > ASIDE:
                found = await asyncio.to_thread(copies_wire.unpack, packed, key, self.offset_ms)
            else:
                found = copies_wire.unpack(packed, key, self.offset_ms)
        except ValueError:
            return False
        now = time.monotonic_ns() // 1_000_000
        if found["keep_ms"] and found["keep_ms"] <= now:
            return False
        return bool(self.plane.copies.keep(found, epoch, now) == "stored")

    # ---- writing ----

    def name(self, key: bytes) -> str:
        assert self.settings is not None
        return f"{self.settings.prefix}copy:{digest(key)}"

    def put(self, w: Write) -> None:
        size = len(w.key) + (len(w.found["body"]) + len(w.found["head"]) if w.found else 0)
        if len(self.queue) >= QUEUE or self.queued + size > QUEUE_BYTES:
            self.plane.copies.count_redis("dropped")
            return
        self.queue.append(w)
        self.queued += size
        self.written.set()

    def batch(self) -> list[Write]:
        out: list[Write] = []
        size = 0
        while self.queue and len(out) < BATCH and size < BATCH_BYTES:
            w = self.queue.popleft()
            n = len(w.key) + (len(w.found["body"]) + len(w.found["head"]) if w.found else 0)
            self.queued -= n
            size += n
            out.append(w)
        return out

    def dropped(self, n: int) -> None:
        self.plane.copies.count_redis("dropped", n)

    async def send(self, batch: list[Write]) -> None:
        copies = self.plane.copies
        packed = [await self.packed(w) if w.found else b"" for w in batch]
        done = 0
        async with self.client.pipeline(transaction=False) as p:
            for w, text in zip(batch, packed, strict=True):
                ttl = self.ttl(w.found) if w.found else 0
                if w.found is None:
                    p.execute_command("UNLINK", self.name(w.key))  # `unlink` of a cluster is no part of a pipeline
                elif ttl > 0 and copies.current(w.epoch):  # or it was purged since
                    p.set(self.name(w.key), text, ex=ttl)
                else:
                    continue
                done += 1
            results = await p.execute(raise_on_error=False) if done else []
        lost = sum(isinstance(r, Exception) for r in results)
        copies.count_redis("written", done - lost)
        copies.count_redis("dropped", len(batch) - done + lost)

    async def packed(self, w: Write) -> bytes:
        assert self.settings is not None and w.found is not None
        body = w.found["body"]
        small = None
        if self.settings.compress and len(body) >= self.settings.compress:
            small = await asyncio.to_thread(copies_wire.deflated, body) if len(body) > ASIDE else copies_wire.deflated(body)
        return copies_wire.pack(w.found, self.offset_ms, small)

    def ttl(self, found: dict[str, Any]) -> int:
        if not found["keep_ms"]:
            return LONGEST_S
        return min(-(-(found["keep_ms"] - time.monotonic_ns() // 1_000_000) // 1000), LONGEST_S)


# ---- purging, from the supervisor ----


async def purge(config: Config, wanted: list[tuple[str, str]]) -> int:
    """Remove copies of an address ("url"), below one ("prefix") or with a tag ("tag") from Redis; how many. It reads the beginning of every copy there. Raises what
    the client raises, and TimeoutError."""
    from gwcore.redis_client import close, connect

    client = connect(config.redis.url, config.redis.cluster, WRITE_S)
    removed = 0
    await asyncio.sleep(ON_ITS_WAY_S)
    try:
        async with asyncio.timeout(PURGE_S):
            names: list[bytes] = []
            async for found in client.scan_iter(match=f"{escaped(config.redis.prefix)}copy:*", count=500):
                names.append(found)
                if len(names) == PURGE_BATCH:
                    removed += await purge_some(client, names, wanted)
                    names = []
            removed += await purge_some(client, names, wanted)
    finally:
        await close(client)
    return removed


async def purge_some(client: Any, names: list[bytes], wanted: list[tuple[str, str]]) -> int:
    if not names:
        return 0
    async with client.pipeline(transaction=False) as p:
        for n in names:
            p.getrange(n, 0, START - 1)
        starts: list[bytes] = await p.execute()
    gone = [n for n, start in zip(names, starts, strict=True) if meant(start, wanted)]
    if gone:
        async with client.pipeline(transaction=False) as p:
            for n in gone:
                p.execute_command("UNLINK", n)
            await p.execute()
    return len(gone)


def meant(start: bytes, wanted: list[tuple[str, str]]) -> bool:
    """Is it one of those? What cannot be read goes too, for nobody could use it."""
    try:
        url, tags = copies_wire.addressed(start)
    except ValueError:
        return bool(start)
    return any(
        url == text if kind == "url" else url.startswith(text) if kind == "prefix" else text in tags for kind, text in wanted
    )


def escaped(pattern: str) -> str:
    return "".join("\\" + c if c in "*?[]\\^" else c for c in pattern)
