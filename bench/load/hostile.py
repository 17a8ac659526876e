"""What a soak adds to honest traffic: an upstream that misbehaves now and then, and clients that leave at a random byte."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys

import uvloop

REQUESTS = [
    b"GET /json HTTP/1.1\r\nHost: a\r\n\r\n" * 3,
    b"POST /json HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100000,
    b"POST /json HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n",
    b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + b"ping" * 100,
    b"GET /bad\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
]
BIG = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
GOOD = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"ok": true}'
FAULTS = [
    b"",  # closes without an answer
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
    b"rubbish\r\n\r\n",
    GOOD + b"and more",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
]


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection of the upstream: mostly good, one answer in fifty not."""
    dice = random.Random()
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"chunked" in head:
                await reader.readuntil(b"0\r\n\r\n")
            elif b"content-length: " in head:
                await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
            if b"upgrade: websocket" in head:
                writer.write(SWITCH)
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
                break
            if dice.random() < 0.02:
                writer.write(dice.choice(FAULTS))
                if dice.random() < 0.5:
                    writer.transport.abort()
                break
            writer.write(BIG if b"/big" in head else GOOD)
            await writer.drain()
    writer.close()


async def leave(port: int, dice: random.Random) -> None:
    """Send a part of a request, perhaps read a part of the answer, and go."""
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        text = dice.choice(REQUESTS)
        writer.write(text[: dice.randrange(1, len(text) + 1)])
        if dice.random() < 0.7:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(dice.choice([1, 100, 100_000])), dice.random() * 0.2)
        if dice.random() < 0.5:
            writer.transport.abort()
        writer.close()


async def clients(port: int, n: int) -> None:
    async def one(seed: int) -> None:
        dice = random.Random(seed)
        while True:
            await leave(port, dice)

    await asyncio.gather(*[one(i) for i in range(n)])


async def upstream(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=1 << 21, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    kind, where = sys.argv[1], int(sys.argv[2])
    uvloop.run(upstream(where) if kind == "upstream" else clients(where, 32))
