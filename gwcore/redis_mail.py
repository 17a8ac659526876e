"""What a worker asks of Redis and writes there for its data plane, whatever it is about: a client, a writer behind the requests' back, and a rest while
Redis does not answer. `sessions` and `copies_redis` say what their letters mean."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gwcore._speedups.plane import Plane

MISSED = 5  # look-ups in a row without an answer, and nobody asks for REST_S
REST_S = 1.0
GATHER_S = 0.005  # until a batch is written
WRITE_S = 2.0  # most time for writing one batch


class RedisMail(ABC):
    """All of it in the plane's loop. `settings` has at least url and cluster; None = closed."""

    settings: Any

    def __init__(self, plane: Plane):
        self.plane = plane
        self.loop = asyncio.get_running_loop()
        self.settings = None
        self.client: Any = None
        self.missed = 0
        self.tasks: set[asyncio.Task[Any]] = set()
        self.written = asyncio.Event()  # something is to be written
        self.writer: asyncio.Task[None] | None = None
        self.rest: asyncio.TimerHandle | None = None

    @abstractmethod
    def asking(self, on: bool) -> None:
        """Tell the data plane whether Redis may be asked; when not, let those who wait go on where they would wait in vain."""

    @abstractmethod
    def batch(self) -> list[Any]:
        """What is written next; empty = nothing waits."""

    @abstractmethod
    async def send(self, batch: list[Any]) -> None:
        """Write a batch, and count it."""

    @abstractmethod
    def dropped(self, n: int) -> None:
        """Count so many that could not be written."""

    def start(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def open(self, settings: Any) -> None:
        from gwcore.redis_client import connect

        self.settings = settings
        self.client = connect(settings.url, settings.cluster, WRITE_S)
        self.missed = 0
        self.writer = self.loop.create_task(self.write())

    def close(self) -> None:
        """Ask and write no more."""
        for task in (*self.tasks, self.writer):
            if task is not None:
                task.cancel()
        if self.rest is not None:
            self.rest.cancel()
        self.settings = self.writer = self.rest = None
        if self.client is not None:
            from gwcore.redis_client import close

            self.start(close(self.client))
            self.client = None

    def unanswered(self) -> None:
        """A look-up failed. After several in a row nobody waits for Redis for a while."""
        self.missed += 1
        if self.missed >= MISSED and self.rest is None and self.settings is not None:
            self.rest = self.loop.call_later(REST_S, self.try_again)
            self.asking(False)

    def try_again(self) -> None:
        self.rest = None
        self.missed = MISSED - 1
        self.asking(True)

    async def write(self) -> None:
        """Batch by batch, for ever. What cannot be written is lost, and counted."""
        with contextlib.suppress(Exception):  # make the first connection before anybody needs it
            async with asyncio.timeout(WRITE_S):
                await self.client.initialize()
                await self.client.ping()
        while True:
            await self.written.wait()
            self.written.clear()
            await asyncio.sleep(GATHER_S)
            while batch := self.batch():
                try:
                    async with asyncio.timeout(WRITE_S):
                        await self.send(batch)
                except Exception:
                    self.dropped(len(batch))
                    await asyncio.sleep(REST_S / 4)
