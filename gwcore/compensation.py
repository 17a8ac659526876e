"""What is owed to upstreams: requests that were answered statically stand in the workers' journals, and are sent once their upstream is well.

Each worker appends to a file of its own, which it holds locked (`*.journal`); what is settled is noted beside it (`*.done`), after the answer, so that
after a crash a request may be sent twice, but is never lost. A journal that nobody writes any more and all of which is settled is removed.
What could not be sent becomes a line of `dead.jsonl`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httptools

from gwcore.checks import Answer
from gwcore.config.places import Place, places
from gwcore.crew import say

if TYPE_CHECKING:
    from gwcore.config.degrade import Compensate
    from gwcore.config.schema import Config
    from gwcore.supervisor import Supervisor

HEAD = struct.Struct("<4sIIIQHHHBB")
PLAIN = 12  # bytes of it before what `size` and the sum count
MAGIC = b"gwj1"
LONGEST = 4 << 20  # of a record; beyond, it is none
LOOK_S = 0.25
REST_S = 5.0  # while no route compensates
TRIAL_S = 1.0  # between attempts at an upstream whose breaker only now lets somebody try
BACKOFF_S = (1.0, 60.0)
CONNECT_S, ANSWER_S = 5.0, 30.0
DEAD_MOST = 1000  # letters that are listed and can be sent again; the file keeps the others
LISTED = 1000


def settings(config: Config, config_path: str) -> dict[str, Any] | None:
    """What workers must know; None when nothing is compensated."""
    c = config.compensation
    return None if c.dir == "off" else {"dir": str(directory(config, config_path)), "sync": c.sync == "always"}


def directory(config: Config, config_path: str) -> Path:
    return Path(config_path).absolute().parent / config.compensation.dir


def open_journal(where: str) -> int:
    """A new, locked journal for this process."""
    path = f"{where}/{time.time_ns()}-{os.getpid()}.journal"
    fd = os.open(path + ".new", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.rename(path + ".new", path)  # locked from the moment in which it can be seen
    return fd


@dataclass(eq=False)
class Owed:
    """One request."""

    journal: Journal
    at: int
    size: int
    id: str
    route: str
    upstream: str
    since: float
    until: float
    attempts: int = 0
    due: float = 0.0
    forced: bool = False
    """An operator wants it sent whatever the level."""
    why: str = ""

    def request(self) -> bytes:
        """As it was to be sent."""
        with open(self.journal.path, "rb") as f:
            f.seek(self.at)
            return parse(f.read(self.size))[1]


def parse(record: bytes) -> tuple[tuple[str, str, str], bytes]:
    """Id, route and upstream, and the request, of a whole record."""
    *_, a, b, c, _method, _tier = HEAD.unpack_from(record)
    at, words = HEAD.size, []
    for n in (a, b, c):
        words.append(record[at : at + n].decode("utf-8", "replace"))
        at += n
    return (words[0], words[1], words[2]), record[at:]


def encode(id: str, route: str, upstream: str, request: bytes, ttl: float) -> bytes:
    """A record, as workers write it."""
    texts = [x.encode() for x in (id, route, upstream)]
    rest = HEAD.pack(MAGIC, 0, 0, int(ttl * 1000), int(time.time() * 1000), *(len(x) for x in texts), 0, 2)[PLAIN:] + b"".join(
        [*texts, request]
    )
    return MAGIC + struct.pack("<II", len(rest), zlib.crc32(rest)) + rest


@dataclass(eq=False)
class Journal:
    path: Path
    read: int = 0
    torn: bool = False
    left: int = 0
    """Requests that are not settled."""
    done: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for line in self.beside.read_bytes().split(b"\n")[:-1]:
                if line.isdigit():
                    self.done.add(int(line))

    @property
    def beside(self) -> Path:
        return self.path.with_suffix(".done")

    def news(self) -> list[Owed]:
        """Requests that were appended since the last time and are not settled."""
        out: list[Owed] = []
        if self.torn or self.path.stat().st_size <= self.read:
            return out
        with open(self.path, "rb") as f:
            while True:
                f.seek(self.read)
                head = f.read(HEAD.size)
                if len(head) < HEAD.size:
                    return out
                magic, size, crc, ttl, wall, *_ = HEAD.unpack(head)
                if magic != MAGIC or not HEAD.size - PLAIN <= size <= LONGEST:
                    self.torn = True
                    return out
                rest = head[PLAIN:] + f.read(size - (HEAD.size - PLAIN))
                if len(rest) < size:
                    return out  # the rest may be on its way
                if zlib.crc32(rest) != crc:
                    self.torn = True
                    return out
                at, self.read = self.read, self.read + PLAIN + size
                if at not in self.done:
                    (name, route, upstream), _request = parse(head[:PLAIN] + rest)
                    out.append(Owed(self, at, PLAIN + size, name, route, upstream, wall / 1000, (wall + ttl) / 1000))
                    self.left += 1

    def settle(self, at: int) -> None:
        with open(self.beside, "ab") as f:
            f.write(b"%d\n" % at)
        self.left -= 1

    def idle(self) -> bool:
        """Nobody writes it any more."""
        with open(self.path, "rb") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            return True


class Compensation:
    """Reads the journals and settles them. `run` is a task of the supervisor's loop."""

    def __init__(self, supervisor: Supervisor):
        self.s = supervisor
        self.where: Path | None = None
        self.journals: dict[Path, Journal] = {}
        self.waiting: dict[str, list[Owed]] = {}  # by upstream, oldest first
        self.dead: list[dict[str, Any]] = []
        self.counts = dict.fromkeys(("replayed", "failed", "expired", "dropped"), 0)
        self.senders: dict[str, asyncio.Task[None]] = {}
        self.own: Path | None = None

    # ---- what there is ----

    def look(self, start: bool = False) -> None:
        """Read what is new. start: before the workers start, who then know how much is owed."""
        c = self.s.config
        if c.compensation.dir == "off":
            return
        where = directory(c, self.s.config_path)
        if where != self.where:
            self.where = where
            self.read_dead()
        try:
            found = sorted(where.glob("*.journal"))
        except OSError as why:
            say(f"compensation.dir {where}: {why.strerror}")
            return
        for path in found:
            journal = self.journals.get(path) or Journal(path)
            self.journals[path] = journal
            was_torn = journal.torn
            try:
                idle = journal.idle()
                for owed in journal.news():
                    self.waiting.setdefault(owed.upstream, []).append(owed)
                    if (start or path.stem.endswith("-again")) and owed.upstream in c.upstreams:
                        self.s.segment.owe(owed.upstream, 1)
                if journal.torn and not was_torn:
                    say(f"{path}: what follows byte {journal.read} is no whole request; it is left out")
                if idle and not journal.left:
                    del self.journals[path]
                    path.unlink()
                    journal.beside.unlink(missing_ok=True)
            except OSError as why:
                say(f"{path}: {why.strerror}")

    def read_dead(self) -> None:
        assert self.where is not None
        self.dead = []
        with contextlib.suppress(OSError):
            for line in (self.where / "dead.jsonl").read_text().splitlines()[-DEAD_MOST:]:
                with contextlib.suppress(ValueError):
                    self.dead.append(json.loads(line))

    def list(self) -> dict[str, Any]:
        """What waits, oldest first, and the dead letters."""
        now = time.time()
        rows = sorted((o for group in self.waiting.values() for o in group), key=lambda o: o.since)
        return {
            "waiting": [
                {
                    "id": o.id,
                    "route": o.route,
                    "upstream": o.upstream,
                    "age_s": round(now - o.since, 1),
                    "expires_s": round(o.until - now, 1),
                    "attempts": o.attempts,
                    "why": o.why,
                }
                for o in rows[:LISTED]
            ],
            "more": max(0, len(rows) - LISTED),
            "dead": [{k: v for k, v in d.items() if k != "request"} for d in self.dead],
        }

    def figures(self) -> dict[str, int]:
        """Counters since the start, and how many wait and are dead now."""
        workers = [self.s.segment.worker_figures(i) for i in range(self.s.segment.workers)]
        return {
            "queued": sum(w["compensations"] for w in workers),
            "overflow": sum(w["compensations_overflow"] for w in workers),
            "not_queued": sum(w["compensations_lost"] for w in workers),
            **self.counts,
            "waiting": sum(map(len, self.waiting.values())),
            "dead": len(self.dead),
        }

    # ---- settling ----

    def settle(self, what: str, query: Mapping[str, str]) -> tuple[dict[str, Any], int]:
        """POST /compensation/replay|drop?id=…: the answer and its status."""
        ids = set(getattr(query, "getlist", lambda _: [query["id"]])("id"))
        if what not in ("replay", "drop") or not ids:
            return {"error": "POST /compensation/replay?id=… or /compensation/drop?id=…; id=all is all that wait"}, 422
        every = "all" in ids
        found = [o for group in self.waiting.values() for o in group if every or o.id in ids]
        letters = [d for d in self.dead if d["id"] in ids or (every and what == "drop")]
        if not found and not letters:
            return {"error": "nothing of that id waits, and there is no such dead letter"}, 404
        for o in found:
            if what == "drop":
                self.end(o, "dropped")
            else:
                o.forced, o.due = True, 0.0
        if what == "replay":
            for d in letters:
                self.again(d)
        self.dead = [d for d in self.dead if d not in letters]
        if letters:
            self.write_dead()
        return {"ok": True, what: len(found) + len(letters)}, 200

    def again(self, letter: dict[str, Any]) -> None:
        """A dead letter waits anew, in a journal of this process."""
        assert self.where is not None
        path = self.where / f"{time.time_ns()}-{os.getpid()}-again.journal"
        ttl = self.rules(letter["route"])
        record = encode(
            letter["id"], letter["route"], letter["upstream"], base64.b64decode(letter["request"]), ttl.ttl if ttl else 300.0
        )
        part = path.with_suffix(".part")
        part.write_bytes(record)
        part.rename(path)
        self.look()
        for o in self.waiting.get(letter["upstream"], []):
            o.forced = o.forced or o.id == letter["id"]

    def write_dead(self) -> None:
        assert self.where is not None
        part = self.where / "dead.part"
        part.write_text("".join(json.dumps(d) + "\n" for d in self.dead))
        part.rename(self.where / "dead.jsonl")

    def end(self, o: Owed, how: str, letter: str = "") -> None:
        """A request is settled; letter: why it is a dead one."""
        if letter and self.where is not None:
            row = {
                "id": o.id,
                "route": o.route,
                "upstream": o.upstream,
                "at": round(time.time(), 3),
                "attempts": o.attempts,
                "why": letter,
                "request": base64.b64encode(o.request()).decode(),
            }
            with open(self.where / "dead.jsonl", "a") as f:
                f.write(json.dumps(row) + "\n")
            self.dead = [*self.dead[-DEAD_MOST + 1 :], row]
        o.journal.settle(o.at)
        self.waiting[o.upstream].remove(o)
        self.counts[how] += 1
        if o.upstream in self.s.config.upstreams:
            self.s.segment.owe(o.upstream, -1)

    def rules(self, route: str) -> Compensate | None:
        c = self.s.config
        r = next((r for r in c.routes if r.name == route), None)
        ladder = (r.degrade if r else None) or c.degrade.P2
        return ladder.compensate

    async def run(self) -> None:
        """Until the loop ends."""
        while True:
            try:
                self.look()
                self.expire()
            except OSError as why:
                say(f"compensation.dir {self.where}: {why}")
            for upstream, group in self.waiting.items():
                if group and upstream not in self.senders:
                    self.senders[upstream] = asyncio.get_running_loop().create_task(self.send_all(upstream))
            await asyncio.sleep(REST_S if self.where is None else LOOK_S)

    def expire(self) -> None:
        now = time.time()
        for group in self.waiting.values():
            for o in [o for o in group if o.until <= now and not o.forced]:
                self.end(o, "expired", f"expired; {o.why}" if o.why else "expired: its upstream was not well in time")

    def well(self, upstream: str) -> str:
        """`yes`, `no`, or `try`: its breaker lets somebody find out, and nobody may come."""
        b = self.s.breakers.snapshot(upstream)
        if b is None or (b["state"] == "closed" and b["level"] == 0):
            return "yes"
        return (
            "try"
            if b["state"] == "half_open" or (b["state"] == "open" and not b["open_remaining_s"] and not b["forced"])
            else "no"
        )

    async def send_all(self, upstream: str) -> None:
        """Send what waits for one upstream, one after another."""
        try:
            pause = BACKOFF_S[0]
            while group := self.waiting.get(upstream):
                now = time.time()
                well = self.well(upstream)
                due = [o for o in group if o.due <= now and (well != "no" or o.forced)]
                if not due or self.s.state not in ("serving", "starting"):
                    await asyncio.sleep(LOOK_S)
                    continue
                o = due[0]
                rules = self.rules(o.route)
                status, why = await self.send(o)
                if o not in group:
                    continue  # dropped, or expired, meanwhile
                o.attempts += 1
                if 200 <= status < 400:
                    self.end(o, "replayed")
                elif 400 <= status < 500 and status not in (408, 425, 429):
                    self.end(o, "failed", f"status {status}")
                else:
                    o.why = why or f"status {status}"
                    o.due = time.time() + min(BACKOFF_S[1], BACKOFF_S[0] * 2 ** min(o.attempts - 1, 10))
                    o.forced = False
                if status:
                    pause = BACKOFF_S[0]
                    if status < 500:
                        self.s.breakers.hint_healthy(upstream)
                    await asyncio.sleep(max(1 / (rules.rate if rules else 10.0), TRIAL_S if well == "try" else 0))
                else:  # nobody is there: the others need not be tried now
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, BACKOFF_S[1])
        except OSError as why:
            say(f"compensation.dir {self.where}: {why}")
            await asyncio.sleep(TRIAL_S)
        finally:
            del self.senders[upstream]

    async def send(self, o: Owed) -> tuple[int, str]:
        """The status of the answer; 0 and why when there was none."""
        u = self.s.config.upstreams.get(o.upstream)
        if u is None:
            return 0, f"there is no upstream {o.upstream} any more"
        head, _, body = o.request().partition(b"\r\n\r\n")
        lines = b"\r\nX-Gwcore-Compensation: " + o.id.encode() + b"\r\nConnection: close\r\n\r\n"
        why = "it has no endpoint"
        for place in places(o.upstream, u, self.s.discovery.addresses):
            if place.endpoint.weight == 0 or not (place.ip or place.path):
                continue
            try:
                reader, writer = await asyncio.wait_for(connect(place), CONNECT_S)
            except (OSError, TimeoutError) as failure:
                why = f"{place.name}: {failure or 'connect timeout'}"
                continue
            try:
                writer.write(head + lines + body)
                return await asyncio.wait_for(answer(reader), ANSWER_S), ""
            except (OSError, TimeoutError, httptools.HttpParserError) as failure:
                return 0, f"{place.name}: {failure or 'no answer in time'}"
            finally:
                writer.transport.abort()
        return 0, why


async def connect(place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if place.path:
        return await asyncio.open_unix_connection(place.path)
    return await asyncio.open_connection(place.ip, place.port)


async def answer(reader: asyncio.StreamReader) -> int:
    """The status of a whole answer's head."""
    a = Answer()
    while not a.enough:
        data = await reader.read(16384)
        if not data:
            raise ConnectionResetError("closed without an answer")
        a.parser.feed_data(data)
    return a.status


def table(report: dict[str, Any]) -> str:
    """For people."""
    rows = [
        f"{r['id']}  {r['route']}  {r['upstream']}  waits {r['age_s']:.0f} s, expires in {r['expires_s']:.0f} s, attempts {r['attempts']}  {r['why']}"
        for r in report["waiting"]
    ]
    rows += [f"… and {report['more']} more"] if report["more"] else []
    rows += [f"{r['id']}  {r['route']}  {r['upstream']}  dead: {r['why']}" for r in report["dead"]]
    return "\n".join(rows) or "nothing is owed"
