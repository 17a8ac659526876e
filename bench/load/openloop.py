"""An open-loop client: requests at a fixed rate over many connections, each latency counted from the moment when its request was due.

A closed loop (wrk) sends less while the server stalls, and so hides the stall (coordinated omission). Here request number j is due at j / rate
on connection j modulo their number; when that is still busy the request waits for it, and the wait counts. One thread over a bare epoll and
os.read / os.write: about 4 us of Python a request, more over https. `lag` says how late the client itself sent what could have been sent at once: when it is near
the latencies, they are the client's own. `python -m bench.load.openloop` alone shows the floor, straight at the backend.

python -m bench.load.openloop URL --rate 10000 --connections 1000 --seconds 10 [--post] [--close] [--warm 2]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import select
import socket
import ssl
import statistics
import subprocess
import sys
import time
from array import array
from urllib.parse import urlsplit

from bench.load.common import FIELDS, Server, cpu_seconds, free_port, pin, raise_descriptors

BATCH_S = (
    0.0002  # requests due within so short a time leave together: a wake-up for each would load the CPU that the backend needs
)
GRACE_S = 2.0  # after the end, for what is still under way
LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)\r\n", re.IGNORECASE)
POST = b'{"id": 1, "name": "widget"}'


def request(host: str, path: str, post: bool, close: bool) -> bytes:
    fields = "".join(f"{x}\r\n" for x in FIELDS[1::2]) + ("Connection: close\r\n" if close else "")
    if post:
        fields += f"Content-Type: application/json\r\nContent-Length: {len(POST)}\r\n"
    return f"{'POST' if post else 'GET'} {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode() + (POST if post else b"")


class Load:
    """One run. `run()` returns the figures: milliseconds, counts, and the rate reached. `close`: a new connection for each request."""

    def __init__(
        self, url: str, rate: float, connections: int, seconds: float, warm: float = 1, post: bool = False, close: bool = False
    ):
        where = urlsplit(url)
        self.address = (where.hostname or "127.0.0.1", where.port or 80)
        self.tls = None
        if where.scheme == "https":
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE
        self.text = request(where.netloc, where.path or "/", post, close)
        self.step, self.n, self.seconds, self.warm, self.close = 1 / rate, 0 if close else connections, seconds, warm, close
        self.ep = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.fds = [0] * self.n  # descriptor of each place
        self.place: dict[int, int] = {}  # and the way back
        self.due: list[list[float]] = [[] for _ in range(self.n)]  # what each place has to answer; the first is on its way
        self.part: dict[int, bytes] = {}
        self.whole: set[int] = set()  # lengths of answers that were parsed once: another of that length is whole
        self.latencies, self.lags = array("d"), array("d")
        self.errors = self.sent = 0

    def open(self, i: int) -> None:
        s = socket.create_connection(self.address, 10)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            s = self.tls.wrap_socket(s)
        s.setblocking(False)
        self.sockets[s.fileno()] = s
        self.fds[i] = s.fileno()
        self.place[s.fileno()] = i
        self.ep.register(s.fileno(), select.EPOLLIN)

    def forget(self, i: int) -> None:
        fd = self.fds[i]
        self.part.pop(fd, None)
        self.ep.unregister(fd)
        self.place.pop(fd)
        self.sockets.pop(fd).close()

    def broken(self, i: int) -> None:
        """The connection ended or answered badly: what it had under way is lost."""
        self.errors += 1
        self.forget(i)
        if self.due[i]:
            self.due[i].pop(0)
        if not self.close:
            self.open(i)
            if self.due[i]:
                self.send(i)

    def send(self, i: int) -> None:
        self.sent += 1
        try:
            if self.tls:
                self.sockets[self.fds[i]].send(self.text)
            else:
                os.write(self.fds[i], self.text)
        except OSError:
            self.broken(i)

    def is_whole(self, fd: int, data: bytes) -> bool:
        """One good answer and nothing behind it."""
        head = data.find(b"\r\n\r\n")
        length = LENGTH.search(data, 0, head + 2)
        if head < 0 or length is None:
            return False
        if len(data) != head + 4 + int(length[1]):
            return False
        self.whole.add(len(data))
        return True

    def received(self, fd: int, now: float) -> None:
        i = self.place[fd]
        try:
            data = self.sockets[fd].recv(65536) if self.tls else os.read(fd, 65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            return self.broken(i)
        if not data or not self.due[i]:
            return self.broken(i)
        if fd in self.part:
            data = self.part.pop(fd) + data
        if data[:12] != b"HTTP/1.1 200":
            return self.broken(i)
        if len(data) not in self.whole and not self.is_whole(fd, data):
            self.part[fd] = data
            return
        waiting = self.due[i]
        begun = waiting.pop(0)
        if begun >= self.counted_from:
            self.latencies.append(now - begun)
        if self.close:
            self.forget(i)
        elif waiting:
            self.send(i)

    def run(self) -> dict:
        for i in range(self.n):
            self.open(i)
        gc.disable()
        clock, poll, due, lags = time.perf_counter, self.ep.poll, self.due, self.lags
        begin = clock() + 0.2
        spent = time.process_time()
        self.counted_from = begin + self.warm
        end = self.counted_from + self.seconds
        j, at = 0, begin
        while True:
            now = clock()
            while at <= now and at < end:
                if self.close:
                    i = j
                    due.append([])
                    self.fds.append(0)
                    self.open(i)
                else:
                    i = j % self.n
                due[i].append(at)
                if len(due[i]) == 1:
                    if at >= self.counted_from:
                        lags.append(now - at)
                    self.send(i)
                j += 1
                at = begin + j * self.step
            events = poll(0, 1024)
            if events:
                now = clock()
                for fd, _ in events:
                    if fd in self.place:
                        self.received(fd, now)
            elif at < end:
                select.select([self.ep], [], [], max(at - now, BATCH_S))
            elif now > end + GRACE_S or not any(due):
                break
            else:
                poll(0.01)
        self.cpu = (time.process_time() - spent) / (clock() - begin)
        gc.enable()
        unanswered = sum(map(len, due))
        for s in self.sockets.values():
            s.close()
        self.ep.close()
        return self.figures(unanswered)

    def figures(self, unanswered: int) -> dict:
        late, lag = sorted(self.latencies), sorted(self.lags)

        def at(part: float, of: list[float]) -> float:
            return of[min(int(len(of) * part), len(of) - 1)] * 1000 if of else 0.0

        return {
            "n": len(late), "rps": len(late) / self.seconds, "mean": sum(late) / max(len(late), 1) * 1000,
            "p50": at(0.5, late), "p90": at(0.9, late), "p99": at(0.99, late), "p999": at(0.999, late), "max": at(1, late),
            "lag_p50": at(0.5, lag), "lag_p99": at(0.99, lag), "cpu": self.cpu, "errors": self.errors, "unanswered": unanswered,
        }  # fmt: skip


def openloop(
    url: str,
    rate: float,
    connections: int,
    seconds: float,
    *extra: str,
    warm: float = 1,
    cpu: int | None = 1,
    servers: dict[str, Server] | None = None,
) -> dict:
    """One run in a process of its own, on a CPU of its choice. `servers`: whose share of a CPU is wanted, as `cpu_<name>`."""
    command = [sys.executable, "-m", "bench.load.openloop", url, "--json", "--rate", str(rate), "--connections", str(connections)]
    before = {name: cpu_seconds(s.p.pid) for name, s in (servers or {}).items()}
    begun = time.monotonic()
    done = subprocess.run(
        [*pin(cpu), *command, "--seconds", str(seconds), "--warm", str(warm), *extra],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    took = time.monotonic() - begun
    shares = {f"cpu_{name}": (cpu_seconds(s.p.pid) - before[name]) / took for name, s in (servers or {}).items()}
    return json.loads(done.stdout) | shares


COLUMNS = ("mean", "p50", "p99", "p999")
HEAD = "| rate | gateway | mean ms | p50 ms | p99 ms | p99.9 ms | CPU of gateway, backend, client | errors |\n|---|---|---|---|---|---|---|---|"


def row(rate: str, name: str, found: list[dict]) -> str:
    """A line under HEAD: medians of some runs with the servers `gateway` and `backend`."""
    m = {k: statistics.median(r.get(k, 0) for r in found) for k in (*COLUMNS, "cpu_gateway", "cpu_backend", "cpu")}
    errors = sum(r["errors"] + r["unanswered"] for r in found)
    return (
        f"| {rate} | {name} | "
        + " | ".join(f"{m[k]:.2f}" for k in COLUMNS)
        + (f" | {m['cpu_gateway']:.0%}, {m['cpu_backend']:.0%}, {m['cpu']:.0%} | {errors or 'none'} |")
    )


def told(r: dict) -> str:
    return (
        f"{r['n']} answers, {r['rps']:.0f}/s, mean {r['mean']:.2f}, p50 {r['p50']:.2f}, p99 {r['p99']:.2f}, p99.9 {r['p999']:.2f}, most {r['max']:.1f} ms; "
        f"the client's own lag p50 {r['lag_p50']:.2f}, p99 {r['lag_p99']:.2f} ms, CPU {r['cpu']:.0%}; {r['errors']} errors, {r['unanswered']} unanswered"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", help="a backend of its own when not given: the floor")
    parser.add_argument("--rate", type=float, default=10000)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--warm", type=float, default=1)
    parser.add_argument("--post", action="store_true")
    parser.add_argument("--close", action="store_true", help="a new connection for each request")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    raise_descriptors()
    backend = None
    if not args.url:
        port = free_port()
        backend = Server([sys.executable, "-m", "bench.load.backend", str(port)], port, 0)
        args.url = f"http://127.0.0.1:{port}/json"
    r = Load(args.url, args.rate, args.connections, args.seconds, args.warm, args.post, args.close).run()
    if backend:
        backend.stop()
    print(json.dumps(r) if args.json else told(r))


if __name__ == "__main__":
    main()
