"""System calls of a request in steady state, counted by strace: 4 for a proxied one, 2 for an own answer, and a share of epoll_wait."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from tests.support import SLACK, free_port, read_reply, wait_until

pytestmark = pytest.mark.skipif(
    not shutil.which("strace") or bool(os.environ.get("GWCORE_SANITIZED")), reason="needs strace, and a build without sanitizers"
)

SERVE = textwrap.dedent("""
    import asyncio, os, socket, sys, threading
    import uvloop
    from gwcore._speedups.plane import Plane
    from gwcore._speedups.shm import Segment
    from gwcore.config.compile import compile_plan
    from gwcore.config.load import load_text
    port, upstream = sys.argv[1:]
    config = load_text(f'''workers: 1
    listeners: [{{address: "127.0.0.1:{port}"}}]
    upstreams: {{be: {{endpoints: ["127.0.0.1:{upstream}"]}}}}
    routes: [{{match: {{path: /own}}, respond: {{body: OK}}}}, {{upstream: be}}]'''.replace("\\n    ", "\\n")).config
    segment = Segment.create(1)
    fd = os.memfd_create("plan")
    os.write(fd, compile_plan(config, segment))
    async def main():
        plane = Plane(0, segment.fd)
        plane.prepare(1, fd)
        plane.commit(1)
        s = socket.create_server(("127.0.0.1", int(port)), backlog=512)
        plane.listen("x", s.fileno())
        asyncio.get_running_loop().add_reader(plane.fileno(), plane.drain)
        print(os.getpid(), flush=True)
        await asyncio.sleep(3600)
    uvloop.run(main())
""")
CLIENTS, ROUNDS = 32, 60


def rounds(socks: list[socket.socket], path: str, n: int) -> None:
    """Every client sends, then every client reads: the gateway meets many events in one turn."""
    text = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    for _ in range(n):
        for s in socks:
            s.sendall(text)
        for s in socks:
            assert read_reply(s).status == 200


@pytest.mark.parametrize(("path", "calls"), [("/x", 4.0), ("/own", 2.0)])
def test_system_calls_of_a_request(upstream, tmp_path, path, calls):
    def handler(c):
        while True:
            c.request()
            c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    up = upstream(handler)
    port = free_port()
    gateway = subprocess.Popen([sys.executable, "-c", SERVE, str(port), str(up.port)], stdout=subprocess.PIPE, text=True)
    tracer = None
    try:
        assert gateway.stdout is not None
        pid = gateway.stdout.readline().strip()
        socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(CLIENTS)]
        rounds(socks, path, 5)
        out = tmp_path / "calls"
        tracer = subprocess.Popen(["strace", "-c", "-f", "-o", str(out), "-p", pid], stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        assert "attached" in tracer.stderr.readline()
        time.sleep(0.1)
        rounds(socks, path, ROUNDS)
        tracer.terminate()
        tracer.wait(10 * SLACK)
        text = wait_until(lambda: out.exists() and out.read_text())
        counts = {m[2]: int(m[1]) for m in re.finditer(r"(?m)^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", text)}
        requests = CLIENTS * ROUNDS
        own = sum(counts.get(c, 0) for c in ("recvfrom", "recvmsg", "sendto", "sendmsg", "read", "write", "readv", "writev"))
        waits = counts.get("epoll_wait", 0) + counts.get("epoll_pwait", 0)
        assert calls <= own / requests <= calls + 0.1, text
        assert waits / requests < 1.5, text  # the outer and the nested wait of each turn; few requests share one here
        assert counts.get("epoll_ctl", 0) / requests < 0.02, text
        assert counts.get("timerfd_settime", 0) / requests < 0.05, text
        assert not {"mmap", "brk", "munmap"} & {c for c, n in counts.items() if n > 5}, text
        errors = sum(int(m[1]) for m in re.finditer(r"(?m)^\s*[\d.]+\s+[\d.]+\s+\d+\s+\d+\s+(\d+)\s+(?:recvfrom|recvmsg)$", text))
        assert errors / requests < 0.02, text  # no read that only returns EAGAIN
    finally:
        if tracer is not None and tracer.poll() is None:
            tracer.kill()
        gateway.kill()
        gateway.wait()
