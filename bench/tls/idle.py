"""Memory of an idle TLS connection that had one request: gwcore beside nginx and HAProxy, one worker each. `python -m bench.load.idle --tls`."""

from __future__ import annotations

import socket
import ssl
import statistics
import tempfile
import time
from pathlib import Path

from bench.load.common import Server, free_port, memory, raise_descriptors
from bench.tls.client import REQUEST
from bench.tls.common import GATEWAYS, certificate, client_context, here

GOAL = 0.9
KEPT = REQUEST.replace(b"Connection: close\r\n", b"")


def visit(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    s = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="localhost")
    s.sendall(KEPT)
    s.recv(4096)
    return s


def bytes_each(name: str, directory: Path, n: int) -> float:
    """What n idle connections add to the process tree of a gateway, divided among them."""
    port = free_port()
    extra = {"extra": "timeouts: {keepalive: 1h}\n"} if name == "gwcore" else {}
    server = Server(GATEWAYS[name](directory, port, certificate(directory), **extra), port, 0)
    context = client_context()
    for s in [visit(port, context) for _ in range(64)]:  # what is taken once is not the connections'
        s.close()
    time.sleep(1)
    before, held = memory(server.p.pid), []
    for _ in range(n):
        held.append(visit(port, context))
    time.sleep(1.5)
    found = (memory(server.p.pid) - before) / n
    for s in held:
        s.setblocking(False)
        try:
            if not s.recv(1):
                raise SystemExit(f"idle: {name} closed a connection")
        except ssl.SSLWantReadError:
            pass
        s.close()
    server.stop()
    return found


def compare(n: int, rounds: int) -> None:
    raise_descriptors()
    found: dict[str, list[float]] = {name: [] for name in here()}
    with tempfile.TemporaryDirectory() as d:
        for _ in range(rounds):
            for name in found:
                found[name].append(bytes_each(name, Path(d), n))
    median = {name: statistics.median(x) for name, x in found.items()}
    for name, x in found.items():
        print(f"{name:8} {median[name]:8.0f} bytes an idle TLS connection of {n} ({', '.join(f'{v:.0f}' for v in x)})")
    peers = [v for name, v in median.items() if name != "gwcore"]
    if peers:
        ratio = median["gwcore"] / min(peers)
        print(f"of the better peer: {ratio:.3f}; goal {GOAL}: {'met' if ratio <= GOAL else 'missed'}")
