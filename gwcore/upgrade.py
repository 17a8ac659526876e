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


def leave_secrets(legacy: Legacy, text: bytes) -> None:
    """Hand over what must not stand in the environment."""
    if text:
        legacy.secrets = os.memfd_create("gwcore-secrets", os.MFD_CLOEXEC)
        os.write(legacy.secrets, text)


def secrets(legacy: Legacy) -> bytes:
    """What the program before us left by leave_secrets; it is gone afterwards."""
    if legacy.secrets < 0:
        return b""
    os.lseek(legacy.secrets, 0, os.SEEK_SET)
    with os.fdopen(legacy.secrets, "rb") as f:
        legacy.secrets = -1
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
    if legacy.secrets >= 0:
        inherited.add(legacy.secrets)
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
