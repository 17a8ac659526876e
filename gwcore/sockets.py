"""Listening sockets. The supervisor makes one per listener and worker (SO_REUSEPORT) and keeps them open while workers come and go, so
that a connection in a queue is served by whoever comes next."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

from gwcore.config.base import split_address
from gwcore.config.schema import Listener

KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
REMEDY = {
    errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
    errno.EADDRINUSE: "another process listens there; stop it or choose another port",
    errno.EADDRNOTAVAIL: "no interface has this address; see `ip address`, or listen on 0.0.0.0",
    errno.EAFNOSUPPORT: "this kernel has no IPv6; use an IPv4 address",
}
UNIX_REMEDY = {
    errno.EACCES: "the directory is not writable for this user",
    errno.ENOENT: "the directory does not exist; make it",
    errno.EADDRINUSE: "another process listens there, or the file is not a socket; stop it or choose another path",
}


class SetupError(Exception):
    """Something that the gateway needs cannot be had; the text says what, why and what to do."""


class BindError(SetupError):
    """An address that cannot be listened on."""


def _bind_error(address: str, why: OSError) -> BindError:
    if isinstance(why, socket.gaierror):
        return BindError(f"cannot listen on {address}: {why.strerror} (no such host name; write an IP address)")
    code = why.errno or 0
    remedy = (UNIX_REMEDY if address.startswith("unix:") else REMEDY).get(code)
    return BindError(f"cannot listen on {address}: {os.strerror(code)}" + (f" ({remedy})" if remedy else ""))


def somaxconn() -> int:
    """The longest queue that the kernel allows a listening socket."""
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return socket.SOMAXCONN


def bind(address: str, *, shared: bool = False, ours: bool = False) -> socket.socket:
    """A bound, non-blocking socket that does not listen yet. `shared`: with SO_REUSEPORT, for several of them; `ours`: we have one
    there already. BindError says why an address cannot be had."""
    host, port = split_address(address)
    try:
        if not port:
            return _bind_unix(host)
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        if shared and not ours:  # REUSEPORT would share in silence with a stranger's socket of the same user
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                _options(probe, family)
                probe.bind(where)
        s = socket.socket(family, socket.SOCK_STREAM)
        try:
            _options(s, family)
            if shared:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            s.bind(where)
            s.setblocking(False)
        except OSError:
            s.close()
            raise
        return s
    except OSError as why:
        raise _bind_error(address, why) from None


def _options(s: socket.socket, family: int) -> None:
    """What accepted sockets inherit."""
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        s.setsockopt(socket.IPPROTO_TCP, option, value)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def _bind_unix(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(path)
                except OSError:
                    os.unlink(path)  # left behind by a process that is gone
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        s.bind(path)
        s.setblocking(False)
    except OSError:
        s.close()
        raise
    return s


def listen(address: str, sockets: Iterable[socket.socket], backlog: int) -> None:
    """Let the kernel queue connections on bound sockets. BindError when somebody was faster."""
    try:
        for s in set(sockets):
            s.listen(backlog)
    except OSError as why:
        raise _bind_error(address, why) from None


class Listeners:
    """The sockets of all listeners: for each address one per worker, for a unix socket the same one for all."""

    def __init__(self, workers: int):
        self.workers = workers
        self.sockets: dict[str, list[socket.socket]] = {}

    def open(self, addresses: Iterable[str]) -> list[str]:
        """Bind what is not there yet; returns those addresses. BindError leaves everything as it was."""
        fresh: list[str] = []
        try:
            for address in addresses:
                if address not in self.sockets:
                    fresh.append(address)
                    self.sockets[address] = []
                self._fill(address)
        except BindError:
            self.close(fresh)
            raise
        return fresh

    def _fill(self, address: str) -> None:
        have = self.sockets[address]
        if address.startswith("unix:"):
            have[:] = [have[0] if have else bind(address)] * self.workers
            return
        while len(have) < self.workers:
            have.append(bind(address, shared=True, ours=bool(have)))
        while len(have) > self.workers:  # after an upgrade to fewer workers: the old ones empty the queue
            have.pop().close()

    def listen(self, listeners: Iterable[Listener]) -> None:
        """Let the kernel queue connections. Again for an open one: its backlog is set anew."""
        for x in listeners:
            listen(x.address, self.sockets[x.address], somaxconn() if x.backlog == "auto" else x.backlog)

    def close(self, addresses: Iterable[str]) -> None:
        """Give up our copies; a worker that still has its own takes in what is queued there."""
        for address in list(addresses):
            sockets = self.sockets.pop(address)
            for s in set(sockets):
                s.close()
            if address.startswith("unix:") and sockets:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(address[5:])

    def numbers(self) -> dict[str, list[int]]:
        """The descriptors, as `inherit` takes them after an exec."""
        return {address: [s.fileno() for s in sockets] for address, sockets in self.sockets.items()}

    def inherit(self, numbers: dict[str, list[int]], wanted: Iterable[str]) -> None:
        """Take over what `numbers` gave before an exec; addresses that are not wanted any more are closed."""
        for address, fds in numbers.items():
            by_number = {fd: socket.socket(fileno=fd) for fd in set(fds)}
            for s in by_number.values():
                s.set_inheritable(False)
            self.sockets[address] = [by_number[fd] for fd in fds]
        self.close(numbers.keys() - set(wanted))
