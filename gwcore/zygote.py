"""The zygote: a small single-threaded process that has everything imported which a worker needs, and forks workers in milliseconds.

It is forked from the supervisor before that has a loop or a thread. Workers are its children; it reports how they ended, and ends when
the supervisor does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from gwcore.control import Channel

FOR_SUPERVISOR = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def start() -> Channel:
    """Fork the zygote; returns the supervisor's end of its channel. Call before any thread or loop exists."""
    channel, theirs = Channel.pair()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() == 0:
        _end_after(_serve, theirs)
    theirs.close()
    return channel


def _end_after(work: Any, *args: Any) -> None:
    """Run `work`, whose result is an exit status, and end the process there, whatever happens: no caller's frame may run on here."""
    status = 1
    try:
        status = work(*args)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _name(name: str) -> None:
    """What `ps -o comm` and `top` show."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def _serve(sock: socket.socket) -> int:
    import gc

    # What an upgrade left open for the supervisor would live on here and in every worker: a listening socket that nobody accepts on,
    # a channel whose end of file never comes.
    os.closerange(3, sock.fileno())
    os.closerange(sock.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    for s in FOR_SUPERVISOR:  # a Ctrl-C reaches the whole group, but the supervisor decides
        signal.signal(s, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _name("gwcore-zygote")
    import gwcore.worker

    gc.collect()
    gc.freeze()  # pages stay shared after the fork
    channel = Channel(sock)
    sock.setblocking(True)

    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                channel.send("ended", pid=ended[0], status=os.waitstatus_to_exitcode(ended[1]))

    signal.signal(signal.SIGCHLD, reap)
    while (got := channel.receive()) is not None:
        message, fds = got
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            sock.close()
            _name(f"gwcore-w{message['worker']}")
            _end_after(gwcore.worker.main, message["worker"], socket.socket(fileno=fds[0]), fds[1])
        for fd in fds:
            os.close(fd)
    return 0
