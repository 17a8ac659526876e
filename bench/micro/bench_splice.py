"""From which size on does splice(2) win? A body crosses this process from one loopback connection to another, by read and write through 128 KiB
or through a pipe of 1 MiB; CPU of this thread per body, interleaved, ratio splice / copy. `python bench/micro/bench_splice.py`
"""

from __future__ import annotations

import fcntl
import os
import socket
import statistics
import threading
import time

SIZES = [8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20]
ROUNDS = 7
BYTES = 64 << 20  # moved in each round


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        a = socket.create_connection(server.getsockname())
        b, _ = server.accept()
    for s in (a, b):
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return a, b


def serve(source: socket.socket, sink: socket.socket, size: int, bodies: int, go: threading.Semaphore) -> None:
    """Send a body, wait until it has arrived, and so on."""
    body, into = bytes(size), bytearray(1 << 20)
    for _ in range(bodies):
        go.acquire()
        source.sendall(body)
        left = size
        while left:
            left -= sink.recv_into(into, left)


def copy(a: int, b: int, size: int, buffer: memoryview) -> None:
    while size:
        n = os.readv(a, [buffer[: min(size, len(buffer))]])
        os.write(b, buffer[:n])
        size -= n


def splice(a: int, b: int, size: int, pipe: tuple[int, int]) -> None:
    while size:
        n = os.splice(a, pipe[1], min(size, 1 << 20))
        size -= n
        while n:
            n -= os.splice(pipe[0], b, n)


def run(kind: str, size: int) -> float:
    """CPU microseconds per body."""
    source, a = pair()
    b, sink = pair()
    bodies = max(16, BYTES // size // 4)
    go = threading.Semaphore(0)
    thread = threading.Thread(target=serve, args=(source, sink, size, bodies, go))
    thread.start()
    pipe = os.pipe()
    fcntl.fcntl(pipe[1], 1031, 1 << 20)  # F_SETPIPE_SZ
    buffer = memoryview(bytearray(128 << 10))
    started = time.thread_time_ns()
    for _ in range(bodies):
        go.release()
        if kind == "copy":
            copy(a.fileno(), b.fileno(), size, buffer)
        else:
            splice(a.fileno(), b.fileno(), size, pipe)
    took = time.thread_time_ns() - started
    thread.join()
    for s in (source, a, b, sink):
        s.close()
    for fd in pipe:
        os.close(fd)
    return took / bodies / 1000


def main() -> None:
    for size in SIZES:
        rounds = [(run("copy", size), run("splice", size)) for _ in range(ROUNDS)]
        print(
            f"{size >> 10:5} KiB  copy {statistics.median(c for c, _ in rounds):7.1f} us  splice {statistics.median(s for _, s in rounds):7.1f} us"
            f"  ratio {statistics.median(s / c for c, s in rounds):.2f}"
        )


if __name__ == "__main__":
    main()
