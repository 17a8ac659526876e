"""The zygote: a small single-threaded process that has everything imported which a worker needs, and forks workers in milliseconds.

It is forked from the supervisor before that has a loop or a thread. Workers are its children; it ends when the supervisor does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback

from gwcore.control import Channel

NAME = "gwcore-zygote"


def start() -> Channel:
    """Fork the zygote; returns the supervisor's end of its channel. Call before any thread or loop exists."""
    channel, theirs = Channel.pair()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() == 0:
        channel.close()
        status = 1
        try:
            _serve(theirs)
            status = 0
        except BaseException:  # noqa: BLE001  the process ends here, whatever happened
            traceback.print_exc()
        finally:
            os._exit(status)
    theirs.close()
    return channel


def _serve(sock: socket.socket) -> None:
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(s, signal.SIG_IGN)  # the supervisor decides
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    import gc

    import gwcore.worker

    gc.collect()
    gc.freeze()  # pages stay shared after the fork
    channel = Channel(sock)
    sock.setblocking(True)
    while (got := channel.receive()) is not None:
        message, fds = got
        if os.fork() == 0:
            sock.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            status = 1
            try:
                status = gwcore.worker.main(message["worker"], socket.socket(fileno=fds[0]), fds[1])
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        for fd in fds:
            os.close(fd)
