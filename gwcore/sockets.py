"""Listening sockets. The supervisor makes one per listener and worker (SO_REUSEPORT) and keeps them open while workers come and go, so
that a connection in a queue is served by whoever comes next."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from gwcore.config.schema import Listener, split_address


class BindError(Exception):
    """An address that cannot be listened on; the text says why and what to do."""


def somaxconn() -> int:
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return socket.SOMAXCONN


def _explain(address: str, why: OSError) -> str:
    hint = {
        13: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
        98: "another process listens there; stop it or choose another port",
        99: "no interface has this address",
    }.get(why.errno or 0, "")
    return f"cannot listen on {address}: {os.strerror(why.errno or 0)}" + (f" ({hint})" if hint else "")


def open_listener(listener: Listener, workers: int) -> list[socket.socket]:
    """One listening socket per worker; for a unix socket the same one for all. BindError when the address cannot be had."""
    host, port = split_address(listener.address)
    backlog = somaxconn() if listener.backlog == "auto" else int(listener.backlog)
    try:
        if not port:
            return [_unix(host, backlog)] * workers
        return _tcp(host, port, backlog, workers)
    except OSError as why:
        raise BindError(_explain(listener.address, why)) from None


def _tcp(host: str, port: int, backlog: int, workers: int) -> list[socket.socket]:
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    out: list[socket.socket] = []
    probe = socket.socket(family, socket.SOCK_STREAM)  # REUSEPORT would share silently with a stranger's socket of the same user
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)
    finally:
        probe.close()
    try:
        for _ in range(workers):
            s = socket.socket(family, socket.SOCK_STREAM)
            out.append(s)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit both
            s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if family == socket.AF_INET6:
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            s.bind(where)
            s.listen(backlog)
            s.setblocking(False)
    except OSError:
        for s in out:
            s.close()
        raise
    return out


def _unix(path: str, backlog: int) -> socket.socket:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            try:
                s.connect(path)
            except OSError:
                os.unlink(path)  # left behind by a process that is gone
            else:
                raise OSError(98, "in use")
            s.close()
            s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        s.bind(path)
        s.listen(backlog)
        s.setblocking(False)
    except OSError:
        s.close()
        raise
    return s
