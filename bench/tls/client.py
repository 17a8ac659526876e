"""A client of the TLS benchmarks: one handshake after the other in a closed loop, each on a connection of its own, without a request. Prints JSON.

python -m bench.tls.client PORT [--seconds 2] [--group prime256v1] [--resume]
"""

from __future__ import annotations

import argparse
import json
import socket
import ssl
import time

from bench.tls.common import client_context

REQUEST = b"GET /proxy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def session_of(port: int, context: ssl.SSLContext) -> ssl.SSLSession | None:
    """A session that can be resumed: with TLS 1.3 its ticket comes beside the answer."""
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="localhost") as s:
        s.sendall(REQUEST)
        while s.recv(4096):
            pass
        return s.session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--group", default="")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    context = client_context(args.group)
    session = session_of(args.port, context) if args.resume else None
    done = reused = failed = 0
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        s = None
        try:
            raw = socket.create_connection(("127.0.0.1", args.port), 10)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            s = context.wrap_socket(raw, server_hostname="localhost", session=session)
            done += 1
            reused += bool(s.session_reused)
        except OSError:
            failed += 1
            time.sleep(0.001)
        if s:
            s.close()
    print(json.dumps({"done": done, "reused": reused, "failed": failed}))


if __name__ == "__main__":
    main()
