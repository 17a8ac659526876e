"""`python -m gwcore` without arguments: a gateway and an embedded upstream to play with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
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
  curl -i "http://127.0.0.1:{port}/delay?ms=200"        a slow answer
  curl -s http://127.0.0.1:{admin}/status               everything it knows about itself
  curl -s http://127.0.0.1:{admin}/metrics              the same for Prometheus
  curl -X POST http://127.0.0.1:{admin}/reload          read {path} again
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


def serve_upstream(ready_fd: int, life_fd: int) -> None:
    """Run the embedded upstream until nobody holds the other end of the pipe life_fd. Writes its port to ready_fd."""
    import uvloop

    async def amain() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Upstream, "127.0.0.1", 0, backlog=1024)
        over = asyncio.Event()
        loop.add_reader(life_fd, over.set)
        os.write(ready_fd, str(server.sockets[0].getsockname()[1]).encode())
        os.close(ready_fd)
        await over.wait()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the gateway, which still needs us to drain
    uvloop.run(amain())


def start_upstream() -> int:
    """Start the embedded upstream in a process which ends after this one; returns its port."""
    ready, ready_end = os.pipe()
    life, life_end = os.pipe()
    if os.fork() == 0:
        os.close(ready)
        os.close(life_end)
        try:
            serve_upstream(ready_end, life)
        finally:
            os._exit(0)
    os.close(ready_end)
    os.close(life)
    os.set_inheritable(life_end, True)  # an upgrade in place keeps it
    port = os.read(ready, 16)
    os.close(ready)
    if not port:
        raise OSError("the embedded upstream did not start; its messages stand above")
    return int(port)


def main(port: int = 8080, admin: int = 9901) -> int:
    """Run the demo until a signal; returns the exit status."""
    from gwcore.supervisor import run

    upstream = start_upstream()
    with tempfile.TemporaryDirectory(prefix="gwcore-demo-") as directory:
        path = os.path.join(directory, "demo.yaml")
        with open(path, "w", encoding="ascii") as f:
            f.write(CONFIG.format(port=port, admin=admin, upstream=upstream))
        print(TRY.format(port=port, admin=admin, path=path), flush=True)
        return run(path)


if __name__ == "__main__":
    sys.exit(main())
