"""The backend of the benchmarks: a small HTTP/1.1 server on uvloop; answers JSON, after `delay` milliseconds when asked."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from typing import ClassVar

import uvloop

from bench.load.common import BODY

TEXT = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}".encode()


class Protocol(asyncio.Protocol):
    """The delay is the same for all, so one queue in order of time and one timer do for every connection."""

    delay = 0.0
    waiting: ClassVar[deque[tuple[float, Protocol]]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            self.buffer = self.buffer[end + 4 :]
            if self.delay:
                self.waiting.append((time.monotonic() + self.delay, self))
            else:
                self.answer()

    def answer(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(TEXT)  # type: ignore[attr-defined]

    @classmethod
    async def serve_waiting(cls) -> None:
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            while cls.waiting and cls.waiting[0][0] <= now:
                cls.waiting.popleft()[1].answer()


async def main(port: int, delay_ms: float) -> None:
    Protocol.delay = delay_ms / 1000
    server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", port, backlog=4096)
    if delay_ms:
        await Protocol.serve_waiting()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0))
