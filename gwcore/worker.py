"""A worker process: uvloop, one data plane, one control channel. It does what the supervisor says and drains when that is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from typing import Any

import uvloop

from gwcore._speedups.plane import Plane
from gwcore.control import Channel

DRAIN_LOOK_S = 0.02
IDLE_GRACE_MS = 300  # an idle connection is closed at a drain when nothing came on it for so long
COLLECT_S = 1.0


class Worker:
    def __init__(self, number: int, channel: Channel, segment_fd: int):
        self.channel = channel
        self.plane = Plane(number, segment_fd)
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[int] = self.loop.create_future()
        self.draining = False
        self.drain_since = 0.0

    async def run(self) -> int:
        self.loop.add_reader(self.plane.fileno(), self.plane.drain)
        self.loop.add_reader(self.channel.fileno(), lambda: self.channel.pump(self.handle, self.orphaned))
        self.loop.add_signal_handler(signal.SIGTERM, self.drain, 0)
        self.channel.send("hello", pid=os.getpid())
        status = await self.done
        self.loop.remove_reader(self.plane.fileno())
        self.plane.close()
        return status

    def handle(self, message: dict[str, Any], fds: list[int]) -> None:
        try:
            getattr(self, "on_" + message.pop("op"))(*fds, **message)
        finally:
            for fd in fds:
                os.close(fd)

    def on_prepare(self, fd: int, version: int) -> None:
        try:
            self.plane.prepare(version, fd)
        except (ValueError, MemoryError) as why:
            self.channel.send("refused", version=version, why=str(why) or "out of memory")
        else:
            self.channel.send("ready", version=version)

    def on_commit(self, version: int) -> None:
        self.plane.commit(version)
        self.channel.send("committed", version=version)
        self._collect()

    def _collect(self) -> None:
        if self.plane.collect() and not self.done.done():  # requests of an older plan are still under way
            self.loop.call_later(COLLECT_S, self._collect)

    def on_discard(self, version: int) -> None:
        self.plane.discard(version)

    def on_listen(self, fd: int, address: str) -> None:
        self.plane.listen(address, fd)

    def on_unlisten(self, address: str) -> None:
        self.plane.unlisten(address)

    def on_log(self, fd: int = -1) -> None:
        self.plane.set_log(fd)

    def on_counts(self) -> None:
        self.channel.send("counts", **self.plane.counts())

    def on_drain(self) -> None:
        self.drain(0)

    def on_stop(self) -> None:
        if not self.done.done():
            self.done.set_result(0)

    def orphaned(self) -> None:
        """The supervisor is gone (or has become another program): finish what is under way."""
        self.loop.remove_reader(self.channel.fileno())
        self.drain(1)

    def drain(self, status: int) -> None:
        if not self.draining:
            self.draining = True
            self.drain_since = time.monotonic()
            self.plane.begin_drain()
            self._look(status)

    def _look(self, status: int) -> None:
        if self.done.done():
            return
        busy = self.plane.busy()
        left = self.plane.counts()["connections"]
        if not busy and left and time.monotonic() - self.drain_since > IDLE_GRACE_MS / 1000:
            left = self.plane.close_idle(IDLE_GRACE_MS)
        if not left:
            self.done.set_result(status)
        else:
            self.loop.call_later(DRAIN_LOOK_S, self._look, status)


async def _amain(number: int, sock: socket.socket, segment_fd: int) -> int:
    return await Worker(number, Channel(sock), segment_fd).run()


def main(number: int, sock: socket.socket, segment_fd: int) -> int:
    """Run worker `number` until it has drained; returns its exit status. Called in a fresh fork of the zygote."""
    sys.setswitchinterval(0.0005)
    return uvloop.run(_amain(number, sock, segment_fd))
