"""Section 12 of the promises: whatever a system call answers, nothing crashes, leaks or hangs. See sweep.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", out, HERE / "shim.c", "-ldl"], check=True)
    return out


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "call",
    [[c] for c in ("recv", "send", "sendmsg", "connect", "accept4", "socket", "epoll_ctl", "splice", "pipe2", "levels")]
    + [["--warm", c] for c in ("connect", "socket", "epoll_ctl")]
    + [
        pytest.param(
            ["buffers"],
            marks=pytest.mark.skipif(not os.environ.get("GWCORE_SANITIZED"), reason="only builds with a sanitizer count buffers"),
        )
    ],
    ids=lambda c: "-".join(c),
)
def test_every_call_fails_once_in_every_way(shim, call):
    environment = {**os.environ, "LD_PRELOAD": " ".join(filter(None, [os.environ.get("LD_PRELOAD", ""), str(shim)]))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.sweep", *call],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
