"""The control channel between supervisor and a worker: a socket pair of whole messages (SOCK_SEQPACKET), msgpack inside, descriptors
beside. End of file on it means that the other side is gone."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

MESSAGE_BYTES = 65536
TEXT_BYTES = 8192  # the longest text in a message: a reason is cut, never lost
FDS = 8
FDS_BYTES = socket.CMSG_LEN(FDS * array.array("i").itemsize)
QUEUE_BYTES = 1 << 20


class Channel:
    """One end. Not thread-safe. `send` never blocks; `receive` does as the socket does."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        sock.setblocking(False)

    @staticmethod
    def pair() -> tuple[Channel, socket.socket]:
        """Our end, and the raw other end to be passed to a child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)
        return Channel(ours), theirs

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self.sock.fileno()

    def send(self, op: str, fds: Sequence[int] = (), **values: Any) -> bool:
        """Send one message with copies of `fds`. False when the other end is gone (or does not read: then it is as good as gone)."""
        data = msgpack.packb({"op": op, **{k: v[:TEXT_BYTES] if isinstance(v, str) else v for k, v in values.items()}})
        try:
            socket.send_fds(self.sock, [data], list(fds))
        except OSError:
            return False
        return True

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and its descriptors, which are the caller's. None at the end of file; BlockingIOError when none waits."""
        # socket.recv_fds of Python 3.11 forgets its flags, and a descriptor must not be open for inheriting even for a moment
        data, beside, _flags, _from = self.sock.recvmsg(MESSAGE_BYTES, FDS_BYTES, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None
        fds = array.array("i")
        for _level, _type, packed in beside:
            fds.frombytes(packed)
        return msgpack.unpackb(data), fds.tolist()

    def pump(self, handle: Callable[[dict[str, Any], list[int]], None], ended: Callable[[], None]) -> None:
        """Hand every waiting message to `handle`, then close its descriptors; at the end of file call `ended`."""
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
            message, fds = got
            try:
                handle(message, fds)
            finally:
                for fd in fds:
                    os.close(fd)

    def close(self) -> None:
        """Close this end; the other sees the end of file."""
        self.sock.close()
