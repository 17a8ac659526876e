"""The control channel between supervisor and a worker: a socket pair of whole messages (SOCK_SEQPACKET), msgpack inside, descriptors
beside. End of file on it means that the other side is gone."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import msgpack

MESSAGE_BYTES = 65536
FDS = 8


class Channel:
    """One end. `send(op, fd=…, **values)`; `receive()` gives (message, descriptors) or None at end of file."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        sock.setblocking(False)

    @staticmethod
    def pair() -> tuple[Channel, socket.socket]:
        """Our end, and the raw other end to be passed to a child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        return Channel(ours), theirs

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, op: str, fds: list[int] | None = None, **values: Any) -> bool:
        """False when the other end is gone (or does not read: then it is as good as gone)."""
        data = msgpack.packb({"op": op, **values})
        try:
            socket.send_fds(self.sock, [data], fds or [])
        except OSError:
            return False
        return True

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message. BlockingIOError when none waits; None at the end."""
        data, fds, _flags, _from = socket.recv_fds(self.sock, MESSAGE_BYTES, FDS)
        for fd in fds:
            os.set_inheritable(fd, False)
        if not data:
            return None
        return msgpack.unpackb(data), fds

    def pump(self, handle: Callable[[dict[str, Any], list[int]], None], ended: Callable[[], None]) -> None:
        """Handle all messages that wait; call `ended` at the end of file. Descriptors not taken by `handle` are its to close."""
        while self.sock.fileno() >= 0:
            try:
                got = self.receive()
            except BlockingIOError:
                return
            except OSError:
                got = None
            if got is None:
                ended()
                return
            handle(*got)

    def close(self) -> None:
        self.sock.close()
