"""Every system call of the data plane fails once, at its first, second, … call, in each of the ways it can, under a set of exchanges.

Buffers are refused too: `levels` lowers buffers.total step by step, `buffers` refuses the n-th one (builds with a sanitizer only).

Run by test_faults.py with the shim loaded before libc. After each fault every exchange must have had a whole answer or an end, and
everything that was taken must have been given back. Prints one line for each combination that broke this.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import sys
import threading
import time
import traceback

from tests.support import Conversation, Upstream, get, ok, plane, read_reply

CALLS = {"recv": 1, "send": 2, "sendmsg": 3, "connect": 4, "accept4": 5, "socket": 6, "epoll_ctl": 7, "splice": 8, "pipe2": 9}
SHORT = -1
TRANSFER = {"short": SHORT, "EAGAIN": errno.EAGAIN, "EINTR": errno.EINTR, "ECONNRESET": errno.ECONNRESET}
FAULTS = {
    "recv": {**TRANSFER, "ENOMEM": errno.ENOMEM},
    "send": {**TRANSFER, "EPIPE": errno.EPIPE},
    "sendmsg": {**TRANSFER, "ENOBUFS": errno.ENOBUFS},
    "connect": {"ECONNREFUSED": errno.ECONNREFUSED, "EADDRNOTAVAIL": errno.EADDRNOTAVAIL, "ENETUNREACH": errno.ENETUNREACH},
    "accept4": {"EMFILE": errno.EMFILE, "ECONNABORTED": errno.ECONNABORTED, "ENOMEM": errno.ENOMEM},
    "socket": {"EMFILE": errno.EMFILE, "ENOBUFS": errno.ENOBUFS},
    "epoll_ctl": {"ENOMEM": errno.ENOMEM, "ENOSPC": errno.ENOSPC},
    "splice": {**TRANSFER, "EINVAL": errno.EINVAL},
    "pipe2": {"EMFILE": errno.EMFILE, "ENFILE": errno.ENFILE},
}
CONFIG = (
    "upstreams: {{be: {{endpoints: ['{address}'], pool: {pool}}}}}\n"
    "routes: [{{match: {{path: /own}}, respond: {{body: own}}}}, {{upstream: be}}]\ntimeouts: {{linger: 200ms}}\n"
)
BIG = bytes(range(256)) * 1200  # 300 KiB


def upstream(c: Conversation) -> None:
    while True:
        head, body = c.request()
        if b"/big" in head:
            c.send(ok(BIG))
        elif b"/chunked " in head:
            c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        elif b"/chunked-big" in head:
            c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BIG) + BIG + b"\r\n0\r\n\r\n")
        elif b"/trailers" in head:
            c.send(b"HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T")
            time.sleep(0.005)
            c.send(b": t\r\n\r\n")
        elif b"/ws" in head:
            c.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            while data := c.s.recv(65536):
                c.send(data)
            return
        else:
            c.send(ok(b"%d" % len(body)))


def reply(s: socket.socket, want: bytes, buffer: bytes = b"") -> bytes:
    """A good answer with this body, or an error of the gateway; what else comes is wrong."""
    r = read_reply(s, buffer=buffer)
    if r.status == 200:
        assert r.body == want, f"body {r.body[:40]!r}… of {len(r.body)} bytes"
    else:
        assert r.status in (400, 408, 502, 503, 504), r.line
    return r.rest


def exchanges(connect, more=()) -> None:
    """The set. An end of the connection is a fair end of an exchange; a wrong body or a hang is not."""
    plays = [
        lambda s: (s.sendall(get("/x")), reply(s, b"0"), s.sendall(get("/x")), reply(s, b"0")),
        lambda s: (s.sendall(get("/own")), reply(s, b"own")),
        lambda s: (s.sendall(get("/x") + get("/own")), reply(s, b"own", reply(s, b"0"))),
        lambda s: (s.sendall(get("/big")), reply(s, BIG)),
        lambda s: (s.sendall(get("/chunked")), reply(s, b"hello")),
        lambda s: (post(s, b"Content-Length: %d\r\n\r\n" % len(BIG) + BIG), reply(s, b"%d" % len(BIG))),
        lambda s: (
            post(s, b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BIG) + BIG + b"\r\n0\r\n\r\n"),
            reply(s, b"%d" % len(BIG)),
        ),
        tunnel,
        *more,
    ]
    for play in plays:
        with contextlib.suppress(EOFError, ConnectionError), connect() as s:
            play(s)


def post(s: socket.socket, rest: bytes) -> None:
    """Send in the background: the gateway may answer early and stop reading."""

    def run() -> None:
        with contextlib.suppress(OSError):
            s.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\n" + rest)

    threading.Thread(target=run, daemon=True).start()


def tunnel(s: socket.socket) -> None:
    s.sendall(get("/ws", Connection="upgrade", Upgrade="websocket"))
    r = read_reply(s)
    if r.status != 101:
        return
    s.sendall(b"ping")
    out = r.rest
    while len(out) < 4:
        data = s.recv(100)
        if not data:
            return
        out += data
    assert out == b"ping"


def drip(s: socket.socket, *parts: bytes) -> None:
    """Each part arrives alone, so what is not whole has to be kept."""
    for part in parts:
        s.sendall(part)
        time.sleep(0.003)


def slowly(s: socket.socket) -> None:
    """A reader who lets the gateway's queue fill."""
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    s.sendall(get("/chunked-big"))
    time.sleep(0.05)
    reply(s, BIG)


def trailers(s: socket.socket) -> None:
    s.sendall(b"POST /trailers HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: te\r\nTransfer-Encoding: chunked\r\n\r\n")
    drip(s, b"5\r\nhel", b"lo\r\n0\r\nX-A", b": b\r\nX-C: d\r\n", b"\r\n")
    reply(s, b"hello")


LONG = b"GET /x HTTP/1.1\r\nHost: a\r\n" + b"X-Long: " + b"x" * 7000 + b"\r\n"
KEPT = [  # what makes the gateway keep bytes
    lambda s: (drip(s, b"GET /x HT", b"TP/1.1\r\nHo", b"st: a\r\n", b"\r\n"), reply(s, b"0")),
    lambda s: (drip(s, LONG, LONG[27:], LONG[27:], b"\r\n"), reply(s, b"0")),
    lambda s: (drip(s, get("/x") + get("/own") + get("/x") * 20), reply(s, b"own", reply(s, b"0"))),
    slowly,
    trailers,
]


def main() -> int:
    shim = ctypes.CDLL(None)
    names = [x for x in sys.argv[1:] if x != "--warm"]
    up = Upstream(upstream)
    if names == ["levels"]:
        return levels(up)
    if names == ["buffers"]:
        return buffers(CONFIG.format(address=up.address, pool="{}"), ctypes.c_long.in_dll(shim, "fault_buffers"))
    endpoint, pool = up.address, "{}"
    if len(names) < len(sys.argv) - 1:  # a name with a second address that refuses, and warm connections
        endpoint, pool = f"be.example:{up.port}", "{min_idle: 2, max_connections: 4}"
    failures = tried = 0
    with plane(CONFIG.format(address=endpoint, pool=pool), addresses=lambda _: ["127.0.0.1", "::1"]) as p:
        thread = p.call(threading.get_native_id)
        exchanges(p.connect)
        for name in names or list(FAULTS):
            call = CALLS[name]
            shim.fault_arm(0, 0, 0, thread)
            exchanges(p.connect)
            p.at_rest()
            most = shim.fault_calls(call)
            for fault, number in FAULTS[name].items():
                for at in range(1, most + 1):
                    tried += 1
                    shim.fault_arm(call, number, at, thread)
                    try:
                        exchanges(p.connect)
                        shim.fault_arm(0, 0, 0, thread)
                        p.at_rest()
                    except (AssertionError, TimeoutError) as why:
                        shim.fault_arm(0, 0, 0, thread)
                        failures += 1
                        print(f"{name} {fault} at call {at} of {most}: {''.join(traceback.format_exception(why))}", flush=True)
                        if failures > 5:
                            os._exit(1)
    print(f"{tried} faults, {failures} failures")
    return 1 if failures else 0


def levels(up: Upstream) -> int:
    """Room for so many bytes of buffers, from none to plenty."""
    text = CONFIG.format(address=up.address, pool="{}")
    failures = 0
    rooms = [*range(1, 20), *range(20, 100, 8), *range(100, 400, 32)]
    with plane(text) as p:
        exchanges(p.connect, KEPT)
        for room in rooms:
            p.reload(f"{text}buffers: {{total: {room}KiB}}\n")
            failures += holds(f"buffers.total of {room} KiB", p, KEPT)
    print(f"{len(rooms)} levels, {failures} failures")
    return 1 if failures else 0


def buffers(text: str, left: ctypes.c_long) -> int:
    """The n-th buffer that is asked for is refused."""
    failures, at, most = 0, 0, 1
    with plane(text) as p:
        exchanges(p.connect, KEPT)
        p.at_rest()
        left.value = 1 << 40
        exchanges(p.connect, KEPT)
        p.at_rest()
        most = (1 << 40) - left.value
        for at in range(1, most + 1):
            left.value = at
            failures += holds(f"buffer {at} of {most} refused", p, KEPT)
        left.value = 0
    print(f"{at} buffers, {failures} failures")
    return 1 if failures or most < 10 else 0


def holds(what: str, p, more) -> int:
    """0 when all exchanges end well and everything is given back, else 1, with the story printed."""
    try:
        exchanges(p.connect, more)
        p.at_rest()
    except (AssertionError, TimeoutError) as why:
        print(f"{what}: {''.join(traceback.format_exception(why))}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
