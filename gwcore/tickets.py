"""Keys of session tickets: made, rotated and shared by the supervisor, put into the segment for the workers.

Time is cut into periods of `rotate`. Every period has one key, which issues tickets while it lasts and opens them for `keep` periods; the key
of the next period is made and spread one period ahead, so that no machine meets a ticket whose key it has not heard of.
Keys are never logged; what `status` shows of one is the beginning of the name that stands in every ticket anyway.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import hmac
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from gwcore._speedups import crypto
from gwcore._speedups.shm import TICKET_KEY_BYTES
from gwcore.config.tls import Redis

if TYPE_CHECKING:
    from gwcore._speedups.shm import Segment
    from gwcore.config.schema import Config
    from gwcore.config.tls import Tickets

PLACES = 8  # in the segment; a period's place is its number modulo this
POLL_S = 5.0  # how often a shared ring is looked at
LEASE_S = 10  # of the machine that adds keys in Redis
LEASE_LOOK_S = 0.05  # how often a machine without the lease looks for the other's keys
FILE_S = 2.0  # most time for a turn at the file
REDIS_S = 2.0  # most time for one exchange with Redis

Ring = dict[int, bytes]  # key by number of its period


def fresh(ring: Ring, period: int) -> Ring:
    """The ring with random keys for this period and the next, where it has none."""
    return {**{p: os.urandom(TICKET_KEY_BYTES) for p in (period, period + 1)}, **ring}


def trim(ring: Ring, period: int, keep: int) -> Ring:
    """Without keys that open nothing any more."""
    return {p: k for p, k in ring.items() if period - keep < p <= period + 1}


def derived(secret: str, period: int) -> bytes:
    """The key that a secret gives for a period (HKDF-Expand of RFC 5869 over the secret's hash)."""
    root = hmac.digest(b"gwcore ticket keys", secret.encode(), "sha256")
    out = block = b""
    for n in range(1, 4):
        block = hmac.digest(root, block + period.to_bytes(8, "big") + bytes([n]), "sha256")
        out += block
    return out[:TICKET_KEY_BYTES]


def wrapping(secret: str) -> bytes:
    """The key under which a ring is stored; scrypt (RFC 7914), so that a stolen ring does not give away a weak secret cheaply."""
    return hashlib.scrypt(secret.encode(), salt=b"gwcore ticket ring", n=1 << 14, r=8, p=1, dklen=32)


class TicketKeys:
    """The ring in use. `begin` before the first worker, `use` at a reload; `changed` keys go straight to the segment."""

    def __init__(self, segment: Segment, say: Callable[[str], None], clock: Callable[[], float] = time.time):
        self.segment, self.say, self.clock = segment, say, clock
        self.ring: Ring = {}
        self.config: Tickets | None = None
        self.redis = Redis()
        self.client: Any = None
        self.failure = ""
        self.failed_since = 0.0
        self.task: asyncio.Task[None] | None = None
        self.wrap_key = b""
        self.base_uses: dict[int, tuple[int, int]] = {}  # place -> (period, uses counted before it)

    @property
    def period(self) -> int:
        assert self.config is not None
        return int(self.clock() // self.config.rotate)

    async def begin(self, config: Config, inherited: bytes = b"") -> None:
        """Take keys from the program before us, then from where the configuration says."""
        if inherited:
            self.ring = {int(p): k for p, k in msgpack.unpackb(inherited, strict_map_key=False).items()}
        await self.use(config)

    async def use(self, config: Config) -> None:
        """Follow a configuration from now on."""
        if self.task:
            self.task.cancel()
        await self.forget_client()
        tickets = config.tls.tickets
        if self.config is not None and (tickets.share, tickets.secret, tickets.rotate) != (
            self.config.share,
            self.config.secret,
            self.config.rotate,
        ):
            self.ring = {}
        self.config, self.redis = tickets, config.redis
        self.wrap_key = wrapping(tickets.secret) if tickets.share in ("file", "redis") else b""
        await self.refresh()
        self.task = asyncio.get_running_loop().create_task(self.follow())

    async def stop(self) -> None:
        if self.task:
            self.task.cancel()
        await self.forget_client()

    async def forget_client(self) -> None:
        if self.client is not None:
            from gwcore.redis_client import close

            await close(self.client)
            self.client = None

    def legacy(self) -> bytes:
        """For the program after us."""
        return msgpack.packb(self.ring) if self.config is not None and self.config.share == "memory" else b""

    async def follow(self) -> None:
        while True:
            assert self.config is not None
            rest = self.config.rotate - self.clock() % self.config.rotate + 0.01
            await asyncio.sleep(min(rest, POLL_S) if self.config.share in ("file", "redis") else rest)
            await self.refresh()

    async def refresh(self) -> None:
        """Look at the source, then publish. A source that fails leaves the ring as it is."""
        assert self.config is not None
        period, config = self.period, self.config
        try:
            if config.share == "secret":
                self.ring = {p: derived(config.secret, p) for p in range(max(0, period - config.keep + 1), period + 2)}
            elif config.share == "memory":
                self.ring = fresh(self.ring, period)
            elif config.share == "file":
                self.ring = {**self.ring, **await asyncio.wait_for(self.from_file(period), FILE_S)}
            else:
                self.ring = {**self.ring, **await asyncio.wait_for(self.from_redis(period), REDIS_S)}
            self.recovered()
        except Exception as why:  # whatever a file or a server may do, tickets go on
            self.failed(f"{type(why).__name__}: {why}" if not isinstance(why, TimeoutError) else "no answer in time")
            if not self.ring:
                self.ring = fresh({}, period)
        self.ring = trim(self.ring, period, config.keep) or self.ring
        self.publish(period)

    def publish(self, period: int) -> None:
        usable = [p for p in self.ring if p <= period] or list(self.ring)
        current = max(usable)
        uses = self.segment.tls_figures()["ticket_uses"]
        for p in self.ring:
            if self.base_uses.get(p % PLACES, (None, 0))[0] != p:
                self.base_uses[p % PLACES] = (p, uses[p % PLACES])
        self.segment.set_tickets(current % PLACES, {p % PLACES: k for p, k in self.ring.items()})

    def failed(self, why: str) -> None:
        if not self.failure:
            self.failed_since = self.clock()
            self.say(f"session ticket keys: {why}; the present ones stay in use")
        self.failure = why

    def recovered(self) -> None:
        if self.failure:
            self.say("session ticket keys: shared again")
        self.failure = ""

    # ---- where rings are kept ----

    def unpack(self, blob: bytes) -> Ring:
        ring = msgpack.unpackb(crypto.unwrap(self.wrap_key, blob), strict_map_key=False)
        return {int(p): k for p, k in ring.items() if len(k) == TICKET_KEY_BYTES}

    def pack(self, ring: Ring) -> bytes:
        return crypto.wrap(self.wrap_key, msgpack.packb(ring))

    async def from_file(self, period: int) -> Ring:
        """The ring of the file, with keys for now and next; written back by whoever finds one missing."""
        assert self.config is not None
        path = Path(self.config.file)
        fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # another machine writes; the loop must not wait for it
                    await asyncio.sleep(LEASE_LOOK_S)
            ring = self.unpack(path.read_bytes()) if path.exists() else {}
            full = trim(fresh(ring, period), period, self.config.keep)
            if full != ring:
                new = path.with_name(path.name + ".new")
                out = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                with os.fdopen(out, "wb") as f:
                    f.write(self.pack(full))
                    f.flush()
                    os.fsync(f.fileno())
                new.replace(path)
            return full
        finally:
            os.close(fd)

    async def from_redis(self, period: int) -> Ring:
        """The ring in Redis. Where a key is missing, the machine that gets the lease adds it; the others see it at their next look."""
        assert self.config is not None
        if self.client is None:
            from gwcore.redis_client import connect

            self.client = connect(self.redis.url, self.redis.cluster, REDIS_S)
        key = f"{self.redis.prefix}tickets"
        while True:
            blob = await self.client.get(key)
            ring = self.unpack(blob) if blob else {}
            if {period, period + 1} <= ring.keys():
                return ring
            if await self.client.set(f"{key}:lease", "held", nx=True, ex=LEASE_S):
                break
            await asyncio.sleep(LEASE_LOOK_S)
        try:
            blob = await self.client.get(key)  # another one may just have done it
            ring = trim(fresh(self.unpack(blob) if blob else {}, period), period, self.config.keep)
            await self.client.set(key, self.pack(ring), ex=int(self.config.rotate * (self.config.keep + 2)) + 60)
        finally:
            await self.client.delete(f"{key}:lease")
        return ring

    def status(self) -> dict[str, Any]:
        """For /status: where keys come from, and of each its age and uses."""
        if self.config is None:
            return {}
        uses = self.segment.tls_figures()["ticket_uses"]
        period, rotate = self.period, self.config.rotate
        current = max([p for p in self.ring if p <= period] or list(self.ring), default=period)
        return {
            "share": self.config.share,
            "failure": self.failure,
            "failed_since": self.failed_since if self.failure else None,
            "keys": [
                {
                    "name": k[:4].hex(),
                    "role": "issues" if p == current else "next" if p > current else "opens",
                    "issues_from": p * rotate,
                    "opens_until": (p + self.config.keep) * rotate,
                    "uses": max(0, uses[p % PLACES] - self.base_uses.get(p % PLACES, (p, 0))[1]),
                }
                for p, k in sorted(self.ring.items())
            ],
        }
