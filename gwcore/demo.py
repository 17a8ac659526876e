"""`python -m gwcore` without arguments: a gateway and an embedded upstream to play with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from urllib.parse import parse_qs, urlsplit

CONFIG = """\
listeners: [{{address: "127.0.0.1:{port}"}}]
admin: {{address: "127.0.0.1:{admin}"}}
access_log: {{path: "off"}}
upstreams:
  demo: {{endpoints: ["127.0.0.1:{upstream}"], pool: {{max_connections: 4096, max_idle: 4096}}}}
routes:
  - {{name: proxy, match: {{path: /proxy}}, respond: {{status: 200, headers: {{X-Gateway: gwcore}}, body: OK}}}}
  - {{name: all, match: {{prefix: /}}, upstream: demo}}
"""

TRY = """\
gwcore demo. The gateway is on http://127.0.0.1:{port}, its admin on http://127.0.0.1:{admin}. Ctrl-C ends it. Try:

  curl -i http://127.0.0.1:{port}/proxy                 an answer from the gateway itself
  curl -i http://127.0.0.1:{port}/json                  proxied to the embedded upstream
  curl -d hello http://127.0.0.1:{port}/echo            what the upstream sees of a request
  curl -i http://127.0.0.1:{port}/delay?ms=200          a slow answer
  curl -s http://127.0.0.1:{admin}/status               everything it knows about itself
  curl -s http://127.0.0.1:{admin}/metrics              the same for Prometheus
  wrk -t1 -c64 -d5s http://127.0.0.1:{port}/proxy       its speed alone
  wrk -t1 -c64 -d5s http://127.0.0.1:{port}/json        with an upstream (the embedded one is the slower part)
"""

JSON = json.dumps({"id": 12345, "name": "widget", "price": 12.5, "tags": ["a", "b", "c"], "stock": True}).encode()


class Upstream(asyncio.Protocol):
    """A small HTTP/1.1 server: /json, /echo, /delay?ms=N. It trusts its only client, the gateway."""

    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].decode("latin-1")
            length = next((int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0)
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            self.answer(head, body)

    def answer(self, head: str, body: bytes) -> None:
        method, target, _ = head.split("\r\n")[0].split(" ", 2)
        url = urlsplit(target)
        if url.path == "/echo":
            out = json.dumps(
                {"method": method, "target": target, "headers": head.split("\r\n")[1:], "body": body.decode("latin-1")}, indent=1
            ).encode()
        else:
            out = JSON
        try:
            delay = min(float(parse_qs(url.query).get("ms", ["0"])[0]), 60_000) / 1000 if url.path == "/delay" else 0
        except ValueError:
            delay = 0
        text = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(out) + (
            b"" if method == "HEAD" else out
        )
        if delay:
            asyncio.get_running_loop().call_later(delay, self.write, text)
        else:
            self.write(text)

    def write(self, text: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(text)  # type: ignore[attr-defined]


def serve_upstream(ready_fd: int) -> None:
    """Run the embedded upstream; writes its port to ready_fd."""
    import uvloop

    async def amain() -> None:
        server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=1024)
        os.write(ready_fd, str(server.sockets[0].getsockname()[1]).encode())
        os.close(ready_fd)
        await server.serve_forever()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(amain())


def main(port: int = 8080, admin: int = 9901) -> int:
    """Run the demo until a signal; returns the exit status."""
    from gwcore.supervisor import run

    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(here)
        serve_upstream(there)
        os._exit(0)
    os.close(there)
    upstream = int(os.read(here, 16))
    os.close(here)
    fd, path = tempfile.mkstemp(prefix="gwcore-demo-", suffix=".yaml")
    os.write(fd, CONFIG.format(port=port, admin=admin, upstream=upstream).encode())
    os.close(fd)
    print(TRY.format(port=port, admin=admin), flush=True)
    try:
        return run(path)
    finally:
        os.unlink(path)
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
