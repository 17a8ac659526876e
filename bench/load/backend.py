"""The backend of the benchmarks: answers every request with the same JSON, after `delay` milliseconds when asked. Bare epoll and os.read / os.write,
because it shares a CPU with the load: about 3 us of Python a request. It knows a request by the end of its head; bodies are read and dropped.

python -m bench.load.backend PORT [DELAY_MS]
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import sys
import time
from collections import deque

from bench.load.common import BODY, raise_descriptors

TEXT = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}".encode()
END = b"\r\n\r\n"


def main(port: int, delay_s: float) -> None:
    """The delay is the same for all, so one queue in order of time does for every connection."""
    raise_descriptors()
    server = socket.create_server(("127.0.0.1", port), backlog=4096)
    server.setblocking(False)
    ep = select.epoll()
    ep.register(server.fileno(), select.EPOLLIN)
    listener, read, write, clock = server.fileno(), os.read, os.write, time.monotonic
    open_: dict[int, socket.socket] = {}
    tails: dict[int, bytes] = {}  # the beginning of an end of a head, at the end of what was read
    waiting: deque[tuple[float, int, socket.socket]] = deque()
    gc.disable()
    while True:
        for fd, _ in ep.poll(0.001 if waiting else None, 1024):
            if fd == listener:
                with contextlib.suppress(OSError):
                    while True:
                        s, _ = server.accept()
                        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        s.setblocking(False)
                        open_[s.fileno()] = s
                        ep.register(s.fileno(), select.EPOLLIN)
                continue
            try:
                data = read(fd, 65536)
            except OSError:
                data = b""
            if not data:
                ep.unregister(fd)
                open_.pop(fd).close()
                tails.pop(fd, None)
                continue
            if fd in tails:
                data = tails.pop(fd) + data
            n = data.count(END)
            if data[-1] in END and not data.endswith(END):
                tails[fd] = data[-3:]
            if delay_s:
                s, due = open_[fd], clock() + delay_s
                for _ in range(n):
                    waiting.append((due, fd, s))
            elif n:
                with contextlib.suppress(OSError):
                    write(fd, TEXT * n)
        now = clock() if waiting else 0
        while waiting and waiting[0][0] <= now:
            _, fd, s = waiting.popleft()
            if open_.get(fd) is s:  # not a later connection of that number
                with contextlib.suppress(OSError):
                    write(fd, TEXT)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]) / 1000 if len(sys.argv) > 2 else 0)
