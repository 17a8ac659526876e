"""A worker process: uvloop, one data plane, one control channel. It does what the supervisor says and drains when that is gone.

An error in here is not mended but ends the process: the supervisor has a clean successor within milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import uvloop

from gwcore._speedups.plane import Plane
from gwcore.control import Channel
from gwcore.copies_redis import SharedCopies
from gwcore.sessions import SharedSessions

DRAIN_LOOK_S = 0.02
IDLE_GRACE_S = 0.3  # at a drain an idle connection is closed when nothing came on it for so long
COLLECT_S = 1.0
ORPHAN_DRAIN_S = 30.0  # until the supervisor has said what timeouts.drain is


class Worker:
    """One worker. Ends by its future `done`, whose result is the exit status."""

    def __init__(self, number: int, channel: Channel, segment_fd: int):
        self.channel = channel
        self.plane = Plane(number, segment_fd)
        self.loop = asyncio.get_running_loop()
        self.sessions = SharedSessions(self.plane)
        self.copies = SharedCopies(self.plane)
        self.done: asyncio.Future[int] = self.loop.create_future()
        self.serving = False
        self.journal: dict[str, Any] | None = None
        self.drain_since = 0.0
        self.drain_s = ORPHAN_DRAIN_S
        self.drain_tunnels_s = 0.0
        self.preparing: set[int] = set()

    async def run(self) -> int:
        """Serve until drained or told to stop."""
        self.loop.add_reader(self.plane.fileno(), self.plane.drain)
        self.loop.add_reader(self.channel.fileno(), lambda: self.channel.pump(self.handle, self.orphaned))
        self.loop.add_signal_handler(signal.SIGTERM, self.drain, 0)
        self.channel.send("hello", pid=os.getpid())
        try:
            return await self.done
        finally:
            self.loop.remove_reader(self.plane.fileno())
            self.sessions.stop()
            self.copies.stop()
            self.plane.close()

    def handle(self, message: dict[str, Any], fds: list[int]) -> None:
        try:
            getattr(self, "on_" + message.pop("op"))(*fds, **message)
        except Exception as why:
            self.end(why)

    def end(self, how: int | Exception) -> None:
        if self.done.done():
            return
        if isinstance(how, int):
            self.done.set_result(how)
        else:
            self.done.set_exception(how)

    # ---- plans ----

    def on_prepare(self, fd: int, version: int) -> None:
        """The first plan is made ready at once; a later one in a thread, so that ten thousand regular expressions stop no traffic."""
        self.preparing.add(version)
        if self.serving:
            threading.Thread(target=self._prepare, args=(os.dup(fd), version), daemon=True).start()
        else:
            self._prepare(os.dup(fd), version)

    def _prepare(self, fd: int, version: int) -> None:
        why = ""
        try:
            self.plane.prepare(version, fd)
        except (ValueError, MemoryError) as refusal:
            why = str(refusal) or "out of memory"
        finally:
            os.close(fd)
        if self.serving:
            self.loop.call_soon_threadsafe(self._prepared, version, why)
        else:
            self._prepared(version, why)

    def _prepared(self, version: int, why: str) -> None:
        if version not in self.preparing:  # discarded meanwhile
            self.plane.discard(version)
        elif why:
            self.channel.send("refused", version=version, why=why)
        else:
            self.channel.send("ready", version=version)

    def on_commit(
        self,
        version: int,
        drain_s: float,
        drain_tunnels_s: float,
        sessions: dict[str, Any] | None = None,
        copies: dict[str, Any] | None = None,
        journal: dict[str, Any] | None = None,
    ) -> None:
        self.preparing.discard(version)
        self.drain_s, self.drain_tunnels_s = drain_s, drain_tunnels_s
        self.plane.commit(version)
        self.sessions.use(sessions)
        self.copies.use(copies)
        self.use_journal(journal)
        self.serving = True
        self.channel.send("committed", version=version)
        self._collect()

    def _collect(self) -> None:
        if self.plane.collect() and not self.done.done():  # requests of an older plan are still under way
            self.loop.call_later(COLLECT_S, self._collect)

    def use_journal(self, settings: dict[str, Any] | None) -> None:
        """A file of its own for what this worker answers statically and owes to an upstream."""
        if settings == self.journal:
            return
        self.journal = settings
        fd = -1
        if settings is not None:
            from gwcore.compensation import open_journal

            try:
                fd = open_journal(settings["dir"])
            except OSError as why:
                print(
                    f"gwcore: compensation.dir {settings['dir']}: {why.strerror}; nothing is compensated",
                    file=sys.stderr,
                    flush=True,
                )
        self.plane.use_journal(fd, bool(settings and settings["sync"]))

    def on_discard(self, version: int) -> None:
        self.preparing.discard(version)
        self.plane.discard(version)

    # ---- sockets and log ----

    def on_listen(self, fd: int, address: str) -> None:
        self.plane.listen(address, fd)

    def on_unlisten(self, address: str) -> None:
        self.plane.unlisten(address)

    def on_copies(self, fd: int) -> None:
        self.plane.use_copies(fd)

    def on_ping(self) -> None:
        self.channel.send("pong")

    def on_log(self, fd: int = -1) -> None:
        self.plane.set_log(fd)

    # ---- the end ----

    def on_drain(self) -> None:
        self.drain(0)

    def on_relieve(self) -> None:
        """Another generation serves: drain, but tunnels have their own time."""
        self.drain(0, self.drain_tunnels_s)

    def on_stop(self) -> None:
        self.end(0)

    def orphaned(self) -> None:
        """The supervisor is gone: finish what is under way, within the time that a stop has."""
        self.loop.remove_reader(self.channel.fileno())
        self.drain(1)

    def drain(self, status: int, tunnels_s: float = 0.0) -> None:
        """Finish what is under way. Requests are cut after timeouts.drain, tunnels too unless they were given more."""
        if not self.drain_since:
            self.drain_since = time.monotonic()
            self.plane.begin_drain()
            self.loop.call_later(self.drain_s, self.plane.close_requests)
            self.loop.call_later(max(self.drain_s, tunnels_s), self.end, status)
            self._look(status)

    def _look(self, status: int) -> None:
        left = self.plane.counts()["connections"]
        if left and not self.plane.busy() and time.monotonic() - self.drain_since > IDLE_GRACE_S:
            left = self.plane.close_idle(int(IDLE_GRACE_S * 1000))
        if not left:
            self.end(status)
        elif not self.done.done():
            self.loop.call_later(DRAIN_LOOK_S, self._look, status)


async def _amain(number: int, sock: socket.socket, segment_fd: int) -> int:
    return await Worker(number, Channel(sock), segment_fd).run()


def main(number: int, sock: socket.socket, segment_fd: int) -> int:
    """Run worker `number` until it has drained; returns its exit status. Called in a fresh fork of the zygote."""
    sys.setswitchinterval(0.0005)
    return uvloop.run(_amain(number, sock, segment_fd))
