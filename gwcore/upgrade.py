"""The upgrade in place: the supervisor becomes a new program under the same PID, on the same sockets, while the old workers serve on.

What the new program needs stands in one environment variable: numbers of inherited descriptors, and how it was told to run.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field

VARIABLE = "GWCORE_INHERIT"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
CHECK = (
    "import sys, uvloop, gwcore.supervisor, gwcore.worker, gwcore.admin.server; from gwcore.cli import main; "
    "main(['check', '-c', sys.argv[1]], prog_name='gwcore')"
)


@dataclass
class Legacy:
    """What one supervisor leaves to the next."""

    listeners: dict[str, list[int]] = field(default_factory=dict)
    """Listening sockets by address."""
    admin: dict[str, list[int]] = field(default_factory=dict)
    """The admin interface's, likewise."""
    elders: list[int] = field(default_factory=list)
    """Channels of workers that are to drain once their successors serve, oldest first."""
    started: float = 0.0
    """When the first program of this process began (unix time)."""
    upgrades: int = 0
    secrets: int = -1
    """A memfd with keys of session tickets; -1 = none."""
    health: int = -1
    """A memfd with the verdicts of health checks; -1 = none."""


def leave(text: bytes) -> int:
    """Hand over what is too secret or too long for the environment: a memfd, -1 for nothing."""
    if not text:
        return -1
    fd = os.memfd_create("gwcore-legacy", os.MFD_CLOEXEC)
    view = memoryview(text)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def read(fd: int) -> bytes:
    """What the program before us left by `leave`; it is gone afterwards."""
    if fd < 0:
        return b""
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(fd, "rb") as f:
        return f.read()


def receive() -> Legacy:
    """What the program before us left; empty at a first start."""
    return Legacy(**json.loads(os.environ.pop(VARIABLE, "{}")))


async def check(config_path: str) -> str:
    """Load the code that is installed now in a process of its own and let it check the configuration; "" or what it says against it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHECK,
        config_path,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    text, _ = await process.communicate()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the loop took it to wait for the check
    return text.decode(errors="replace").strip() or "it ended without a word" if process.returncode else ""


def become(legacy: Legacy, arguments: list[str]) -> None:
    """Turn into the new program. Returns only by OSError, and then nothing has changed.

    Signals that come before the new program has its handlers wait; without that a SIGHUP in between would end the process.
    """
    inherited = {*legacy.elders, *(fd for fds in [*legacy.listeners.values(), *legacy.admin.values()] for fd in fds)}
    inherited |= {fd for fd in (legacy.secrets, legacy.health) if fd >= 0}
    for fd in inherited:
        os.set_inheritable(fd, True)
    os.environ[VARIABLE] = json.dumps(asdict(legacy))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        os.execv(sys.executable, [sys.executable, "-m", "gwcore", *arguments])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        del os.environ[VARIABLE]
        for fd in inherited:
            os.set_inheritable(fd, False)
