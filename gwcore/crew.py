"""The crew: the worker processes of a gateway. It brings each to the plan in use, replaces the dead, and swaps plans in all or none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from gwcore.control import Channel

if TYPE_CHECKING:
    from gwcore._speedups.copystore import CopyStore
    from gwcore._speedups.shm import Segment
    from gwcore.sockets import Listeners

PREPARE_S = 10.0
BACKOFF_S = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LIVED_S = 10.0  # a worker that lived so long starts the backoff anew
ZYGOTE_LIVED_S = 2.0  # when the zygote dies earlier, beginning anew would only go round in circles
STILLBORN = 5  # so many deaths before the first worker serves, and the gateway gives up
ELDER_GENERATIONS = 4
PING_S = 5.0
HUNG_PINGS = 3  # a worker that leaves so many unanswered hangs; counted, not timed, so that a halted machine ends nobody


def say(text: str) -> None:
    """One line for the operator, on stderr."""
    print(f"gwcore: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Plan:
    """A compiled configuration in a sealed memfd."""

    version: int
    fd: int


@dataclass
class Slot:
    """One place for a worker: its lane in the segment and its sockets stay while workers come and go."""

    number: int
    channel: Channel | None = None
    pid: int = 0
    started: float = 0.0
    version: int = 0
    failures: int = 0
    restarts: int = 0
    pings: int = 0  # not answered yet
    verdict: asyncio.Future[str] | None = None
    listening: set[str] = field(default_factory=set)

    @property
    def up(self) -> bool:
        """It has a living worker that accepts connections."""
        return self.channel is not None and bool(self.listening)


class Owner(Protocol):
    """Who is told. All of it is called in the loop."""

    def crew_serves(self) -> None:
        """Every worker serves, for the first time."""

    def crew_gone(self) -> None:
        """After `drain` or `stop`: nobody is left."""

    def crew_failed(self, why: str, *, final: bool) -> None:
        """No worker can be had: because none lives long enough (final), or because the process that forks them is gone."""


class Crew:
    """`size` workers forked by the zygote behind `spawner`, serving on `listeners`.

    Every worker gets the plan in use; a worker that is born while that changes follows by itself. Nothing in here blocks.
    """

    def __init__(self, owner: Owner, spawner: Channel, segment: Segment, listeners: Listeners):
        self.owner, self.spawner, self.segment, self.listeners = owner, spawner, segment, listeners
        self.loop = asyncio.get_running_loop()
        self.slots = [Slot(i) for i in range(listeners.workers)]
        self.copies: CopyStore | None = None
        self.elders: list[Channel] = []
        self.plan = Plan(0, -1)
        self.addresses: set[str] = set()
        self.asked = 0  # the version in PREPARE
        self.words: dict[str, Any] = {}
        self.log_fd = -1
        self.began = time.monotonic()
        self.served = False
        self.draining = False

    def start(self, plan: Plan, addresses: Iterable[str], words: dict[str, Any], log_fd: int) -> None:
        """Fork all workers for the first plan, to accept on `addresses`; `words` are for Worker.on_commit. The descriptors are the crew's from now on."""
        self.plan, self.addresses, self.words, self.log_fd = plan, set(addresses), words, log_fd
        self.loop.add_reader(self.spawner.fileno(), lambda: self.spawner.pump(self.on_ended, self.on_zygote_gone))
        for slot in self.slots:
            self.spawn(slot)

    # ---- one worker's life ----

    def spawn(self, slot: Slot) -> None:
        if self.draining or slot.channel is not None:
            return
        channel, theirs = Channel.pair()
        slot.channel, slot.started, slot.pid, slot.version, slot.listening = channel, time.monotonic(), 0, 0, set()
        slot.pings = 0
        self.spawner.send("fork", [theirs.fileno(), self.segment.fd], worker=slot.number)
        theirs.close()
        self.loop.add_reader(
            channel.fileno(),
            lambda: channel.pump(lambda m, _: self.on_message(slot, channel, m), lambda: self.on_gone(slot, channel)),
        )
        if self.copies is not None:
            channel.send("copies", [self.copies.fd])
        channel.send("prepare", [self.plan.fd], version=self.plan.version)

    def on_message(self, slot: Slot, channel: Channel, message: dict[str, Any]) -> None:
        op, version = message["op"], message.get("version", 0)
        if op == "hello":
            slot.pid = message["pid"]
        elif op == "pong":
            slot.pings = 0
        elif version > self.plan.version:  # the answer to a PREPARE; one that comes too late counts no more
            if version == self.asked and slot.verdict is not None and not slot.verdict.done():
                slot.verdict.set_result(message.get("why", ""))
        elif version < self.plan.version:  # a reload was faster than this worker's birth
            channel.send("discard", version=version)
            channel.send("prepare", [self.plan.fd], version=self.plan.version)
        elif op == "ready":
            channel.send("commit", (), version=version, **self.words)
        elif op == "refused":
            say(f"worker {slot.number} refused the plan that is in use: {message['why']}")
            channel.send("stop")
        elif op == "committed":
            slot.version = version
            self.equip(slot, channel)

    def equip(self, slot: Slot, channel: Channel) -> None:
        """After a commit: the log, new listeners, and the end of old ones."""
        if not slot.listening:
            channel.send("log", [self.log_fd] if self.log_fd >= 0 else [])
        for address in sorted(self.addresses - slot.listening):
            channel.send("listen", [self.listeners.sockets[address][slot.number].fileno()], address=address)
        for address in slot.listening - self.addresses:
            channel.send("unlisten", address=address)
        slot.listening = set(self.addresses)
        if not self.served and all(s.up for s in self.slots):
            self.served = True
            self.owner.crew_serves()

    def on_gone(self, slot: Slot, channel: Channel) -> None:
        """A worker ended. In a drain that was asked for; otherwise it crashed: its successor takes over lane and sockets."""
        self.loop.remove_reader(channel.fileno())
        channel.close()
        slot.channel = None
        self.segment.retire(slot.number)
        if self.copies is not None:
            self.copies.retire(slot.number)
        if slot.verdict is not None and not slot.verdict.done():
            slot.verdict.set_result("")  # its successor starts with what is committed then
        if self.draining:
            self.tell_when_gone()
            return
        slot.failures = 1 if time.monotonic() - slot.started > LIVED_S else slot.failures + 1
        slot.restarts += 1
        if not self.served and slot.failures >= STILLBORN:
            self.owner.crew_failed(
                f"worker {slot.number} died {slot.failures} times before it served; its last words stand above", final=True
            )
            return
        delay = BACKOFF_S[min(slot.failures, len(BACKOFF_S)) - 1]
        say(f"worker {slot.number} (pid {slot.pid}) died; replacing it " + (f"in {delay:g}s" if delay else "at once"))
        if delay:
            self.loop.call_later(delay, self.spawn, slot)
        else:
            self.spawn(slot)

    def ping(self) -> None:
        """To be called every PING_S: is every worker's loop alive? One that hangs is killed, so that another takes its place."""
        for slot in self.slots:
            if not slot.up or slot.channel is None:
                continue
            if slot.pings >= HUNG_PINGS:
                say(f"worker {slot.number} (pid {slot.pid}) has not answered for {slot.pings * PING_S:g}s; killing it")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(slot.pid, signal.SIGKILL)
            slot.pings += 1
            slot.channel.send("ping")

    def on_ended(self, message: dict[str, Any], _: list[int]) -> None:
        """The zygote tells how a process ended. What follows from it was decided when its channel closed."""
        status = message["status"]
        if status and not self.draining:
            say(
                f"process {message['pid']} "
                + (f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}")
            )

    def on_zygote_gone(self) -> None:
        self.loop.remove_reader(self.spawner.fileno())
        self.spawner.close()
        if not self.draining:
            self.owner.crew_failed("the process that forks workers died", final=time.monotonic() - self.began < ZYGOTE_LIVED_S)

    # ---- plans and logs ----

    async def prepare(self, plan: Plan) -> list[str]:
        """Let every worker that serves make the plan ready. Returns the reasons of those that refuse; then all have forgotten it."""
        waiting: list[tuple[Slot, asyncio.Future[str]]] = []
        self.asked = plan.version
        for slot in self.slots:
            if slot.up and slot.channel is not None:
                slot.verdict = self.loop.create_future()
                waiting.append((slot, slot.verdict))
                slot.channel.send("prepare", [plan.fd], version=plan.version)
        if waiting:
            await asyncio.wait([verdict for _, verdict in waiting], timeout=PREPARE_S)
        errors: dict[str, None] = {}  # usually all say the same
        for slot, verdict in waiting:
            slot.verdict = None
            if not verdict.done():
                errors[f"worker {slot.number} (pid {slot.pid}) did not answer within {PREPARE_S:g}s"] = None
            elif verdict.result():
                errors[verdict.result()] = None
        self.asked = 0
        if errors:
            self.forget(plan)
        return list(errors)

    def forget(self, plan: Plan) -> None:
        """Give up a plan that was prepared."""
        self.tell("discard", version=plan.version)

    def commit(self, plan: Plan, addresses: Iterable[str], words: dict[str, Any]) -> None:
        """Use a plan that every worker is ready for, and accept on `addresses`."""
        os.close(self.plan.fd)
        self.plan, self.addresses, self.words = plan, set(addresses), words
        self.tell("commit", (), version=plan.version, **words)

    def use_copies(self, copies: CopyStore) -> None:
        """Keep copies of answers in there, from the next plan on."""
        self.copies = copies
        for slot in self.slots:
            if slot.channel is not None:
                slot.channel.send("copies", [copies.fd])

    def use_log(self, fd: int) -> None:
        """Log to fd from now on; -1 for no log."""
        if self.log_fd >= 0:
            os.close(self.log_fd)
        self.log_fd = fd
        fds = [fd] if fd >= 0 else []
        self.tell("log", fds)
        for elder in self.elders:
            elder.send("log", fds)

    def tell(self, op: str, fds: Iterable[int] = (), **values: Any) -> None:
        """A message to every worker that serves. Those being born get what matters when they are equipped."""
        for slot in self.slots:
            if slot.up and slot.channel is not None:
                slot.channel.send(op, list(fds), **values)

    # ---- the end ----

    def channels(self) -> Iterator[Channel]:
        """Of every worker that lives, oldest first, those of programs before this one included."""
        yield from self.elders
        yield from (s.channel for s in self.slots if s.channel is not None)

    def drain(self) -> None:
        """Every worker finishes what is under way and ends. The owner has closed its listening sockets before."""
        self.draining = True
        for channel in self.channels():
            channel.send("drain")
        self.loop.call_soon(self.tell_when_gone)

    def stop(self) -> None:
        """Every worker ends now."""
        self.draining = True
        for channel in self.channels():
            channel.send("stop")
        self.loop.call_soon(self.tell_when_gone)

    def kill(self) -> None:
        """End those that could not even stop, so that nobody stays behind."""
        for slot in self.slots:
            if slot.channel is not None and slot.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(slot.pid, signal.SIGKILL)

    def tell_when_gone(self) -> None:
        if not any(self.channels()):
            self.owner.crew_gone()

    # ---- over an upgrade ----

    def legacy(self) -> list[int]:
        """The channels to leave to the next program, so that it can drain these workers once its own serve. The oldest are cut beyond
        a number of generations."""
        channels = list(self.channels())
        for oldest in channels[: -ELDER_GENERATIONS * len(self.slots)]:
            oldest.send("stop")
        return [c.fileno() for c in channels]

    def adopt(self, fds: Iterable[int]) -> None:
        """Take over the channels of the workers before us."""
        for fd in fds:
            os.set_inheritable(fd, False)
            elder = Channel(socket.socket(fileno=fd))
            self.elders.append(elder)
            self.loop.add_reader(fd, self.on_elder, elder)

    def on_elder(self, elder: Channel) -> None:
        elder.pump(lambda *_: None, lambda: self.on_elder_gone(elder))

    def on_elder_gone(self, elder: Channel) -> None:
        self.loop.remove_reader(elder.fileno())
        elder.close()
        self.elders.remove(elder)
        if self.draining:
            self.tell_when_gone()

    def relieve(self) -> None:
        """Our own workers serve: those before us may drain."""
        for elder in self.elders:
            elder.send("relieve")
