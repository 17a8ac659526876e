"""The crew with workers made of a few lines: who gets which plan when, whatever dies in between. No process is forked."""

from __future__ import annotations

import asyncio
import os
import socket
from types import SimpleNamespace

import pytest

from gwcore import crew as crew_module
from gwcore.control import Channel
from gwcore.crew import Crew, Plan

ADDRESS = "127.0.0.1:1"
TIMES = {"drain_s": 30.0, "drain_tunnels_s": 60.0}


class Worker:
    """The other end of one control channel."""

    def __init__(self, number: int, sock: socket.socket):
        self.number, self.channel = number, Channel(sock)
        self.heard: list[tuple] = []

    def read(self) -> list[tuple]:
        """What came since the last time: (op, number) pairs."""
        new: list[tuple] = []
        self.channel.pump(
            lambda m, _: new.append((m["op"], m.get("version") or m.get("address"))), lambda: new.append(("end", None))
        )
        self.heard += new
        return new

    def say(self, op: str, **values) -> None:
        self.channel.send(op, **values)


class Bench:
    """A crew, and the zygote's end of its channel."""

    def __init__(self, size: int = 2):
        self.told: list[tuple] = []
        self.retired: list[int] = []
        spawner, theirs = Channel.pair()
        self.zygote = Channel(theirs)
        self.sockets = [socket.socket() for _ in range(size)]
        listeners = SimpleNamespace(workers=size, sockets={ADDRESS: self.sockets, "127.0.0.1:2": self.sockets})
        segment = SimpleNamespace(fd=self.sockets[0].fileno(), retire=self.retired.append)
        self.crew = Crew(self, spawner, segment, listeners)
        self.workers: dict[int, Worker] = {}

    def crew_serves(self) -> None:
        self.told.append(("serves",))

    def crew_gone(self) -> None:
        self.told.append(("gone",))

    def crew_failed(self, why: str, *, final: bool) -> None:
        self.told.append(("failed", final))

    def plan(self, version: int) -> Plan:
        return Plan(version, os.memfd_create("plan"))

    def born(self) -> list[int]:
        """Fork what was asked for; the numbers."""
        numbers = []
        while True:
            try:
                got = self.zygote.receive()
            except BlockingIOError:
                return numbers
            message, fds = got
            numbers.append(message["worker"])
            self.workers[message["worker"]] = Worker(message["worker"], socket.socket(fileno=os.dup(fds[0])))
            for fd in fds:
                os.close(fd)

    async def turn(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.sleep(0.005)

    async def up(self, number: int, version: int) -> Worker:
        """Bring a newborn worker to serve."""
        w = self.workers[number]
        w.say("hello", pid=100 + number)
        w.say("ready", version=version)
        w.say("committed", version=version)
        await self.turn()
        w.read()
        return w

    async def serving(self) -> list[Worker]:
        self.crew.start(self.plan(1), [ADDRESS], TIMES, -1)
        assert self.born() == list(range(len(self.crew.slots)))
        return [await self.up(i, 1) for i in range(len(self.crew.slots))]


def bench(test):
    """Run an async test in a loop of its own."""

    async def in_loop() -> None:
        await test(Bench())

    def run() -> None:
        asyncio.run(in_loop())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@bench
async def test_workers_are_brought_to_the_plan_and_then_listen(b):
    workers = await b.serving()
    assert workers[0].heard == [("prepare", 1), ("commit", 1), ("log", None), ("listen", ADDRESS)]
    assert b.told == [("serves",)]
    assert [s.pid for s in b.crew.slots] == [100, 101]


@bench
async def test_all_ready_then_commit(b):
    workers = await b.serving()
    asking = asyncio.ensure_future(b.crew.prepare(b.plan(2)))
    await b.turn()
    assert [w.read() for w in workers] == [[("prepare", 2)]] * 2
    workers[0].say("ready", version=2)
    await b.turn()
    assert not asking.done()
    workers[1].say("ready", version=2)
    assert await asking == []
    b.crew.commit(b.plan(2), [ADDRESS], TIMES)
    assert [w.read() for w in workers] == [[("commit", 2)]] * 2


@bench
async def test_one_refuses_and_nobody_changes(b):
    workers = await b.serving()
    asking = asyncio.ensure_future(b.crew.prepare(b.plan(2)))
    await b.turn()
    workers[0].say("ready", version=2)
    workers[1].say("refused", version=2, why="no memory")
    assert await asking == ["no memory"]
    assert [w.read() for w in workers] == [[("prepare", 2), ("discard", 2)]] * 2
    assert b.crew.plan.version == 1


@bench
async def test_a_late_verdict_is_not_taken_for_the_next_one(b):
    workers = await b.serving()
    crew_module.PREPARE_S, before = 0.05, crew_module.PREPARE_S
    try:
        asking = asyncio.ensure_future(b.crew.prepare(b.plan(2)))
        await b.turn()
        workers[0].say("ready", version=2)
        errors = await asking
    finally:
        crew_module.PREPARE_S = before
    assert len(errors) == 1 and "worker 1 (pid 101) did not answer" in errors[0]
    asking = asyncio.ensure_future(b.crew.prepare(b.plan(3)))
    await b.turn()
    workers[1].say("ready", version=2)  # the answer to the first question
    workers[0].say("ready", version=3)
    await b.turn()
    assert not asking.done()
    workers[1].say("refused", version=3, why="no")
    assert await asking == ["no"]


@bench
async def test_a_successor_born_during_prepare_starts_with_the_plan_in_use(b):
    workers = await b.serving()
    asking = asyncio.ensure_future(b.crew.prepare(b.plan(2)))
    await b.turn()
    workers[0].channel.close()
    workers[1].say("ready", version=2)
    assert await asking == [], "the dead have no vote"
    assert b.born() == [0] and b.retired == [0]
    assert b.workers[0].read() == [("prepare", 1)]
    b.crew.commit(b.plan(2), [ADDRESS], TIMES)
    b.workers[0].say("ready", version=1)
    await b.turn()
    assert b.workers[0].read() == [("discard", 1), ("prepare", 2)]
    w = await b.up(0, 2)
    assert w.heard[-3:] == [("commit", 2), ("log", None), ("listen", ADDRESS)]


@bench
async def test_a_commit_brings_and_ends_listeners(b):
    workers = await b.serving()
    b.crew.commit(b.plan(2), ["127.0.0.1:2"], TIMES)
    workers[0].say("committed", version=2)
    await b.turn()
    assert workers[0].read() == [("commit", 2), ("listen", "127.0.0.1:2"), ("unlisten", ADDRESS)]


@bench
async def test_the_first_death_is_mended_at_once_and_the_next_ones_later(b):
    await b.serving()
    b.workers[0].channel.close()
    await b.turn()
    assert b.born() == [0]
    await b.up(0, 1)
    b.workers[0].channel.close()
    await b.turn()
    assert b.born() == []
    await asyncio.sleep(crew_module.BACKOFF_S[1] + 0.02)
    assert b.born() == [0]
    assert b.crew.slots[0].restarts == 2


@bench
async def test_a_gateway_whose_workers_never_serve_gives_up(b):
    b.crew.start(b.plan(1), [ADDRESS], TIMES, -1)
    crew_module.BACKOFF_S, before = (0.0,), crew_module.BACKOFF_S
    try:
        for _ in range(crew_module.STILLBORN):
            b.born()
            b.workers[0].channel.close()
            await b.turn()
    finally:
        crew_module.BACKOFF_S = before
    assert b.told == [("failed", True)]


@bench
async def test_a_drain_is_over_when_the_last_one_ended(b):
    workers = await b.serving()
    b.crew.drain()
    await b.turn()
    assert b.told == [("serves",)]
    for w in workers:
        assert w.read() == [("drain", None)]
        w.channel.close()
        await b.turn()
    assert b.told == [("serves",), ("gone",)] and b.born() == []


@bench
async def test_elders_drain_when_their_successors_serve_and_are_waited_for(b):
    elder, theirs = Channel.pair()
    old = Worker(9, theirs)
    b.crew.adopt([os.dup(elder.fileno())])
    elder.close()
    workers = await b.serving()
    assert old.read() == []
    b.crew.relieve()
    assert old.read() == [("relieve", None)]
    b.crew.drain()
    for w in workers:
        w.channel.close()
    await b.turn()
    assert ("gone",) not in b.told
    old.channel.close()
    await b.turn()
    assert b.told[-1] == ("gone",)


@bench
async def test_generations_are_bounded(b):
    olds = []
    for _ in range(crew_module.ELDER_GENERATIONS * 2):
        elder, theirs = Channel.pair()
        olds.append(Worker(9, theirs))
        b.crew.adopt([os.dup(elder.fileno())])
        elder.close()
    await b.serving()
    assert len(b.crew.legacy()) == len(olds) + 2
    assert [o.read() for o in olds] == [[("stop", None)]] * 2 + [[]] * (len(olds) - 2)


@pytest.mark.parametrize("age, final", [(0.0, True), (60.0, False)])
def test_a_dead_zygote_is_told(age, final):
    async def run() -> None:
        b = Bench()
        await b.serving()
        b.crew.began -= age
        b.zygote.close()
        await b.turn()
        assert b.told == [("serves",), ("failed", final)]

    asyncio.run(run())


@bench
async def test_a_worker_that_hangs_is_killed_and_one_that_answers_is_not(b):
    workers = await b.serving()
    killed: list[int] = []
    kill, crew_module.os.kill = crew_module.os.kill, lambda pid, _: killed.append(pid)
    try:
        for _ in range(crew_module.HUNG_PINGS):
            b.crew.ping()
            assert not killed
            assert ("ping", None) in workers[1].read()
            workers[1].say("pong")
            await b.turn()
        b.crew.ping()
    finally:
        crew_module.os.kill = kill
    assert killed == [b.crew.slots[0].pid]
