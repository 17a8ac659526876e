"""A gateway run from Python."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

from gwcore.admin.client import ask
from gwcore.config.schema import Config

LOOK_S = 0.1
NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")  # JSON lets them stand in a text, YAML does not


class Gateway:
    """A gateway in processes of its own.

    >>> with Gateway(load_config("gateway.yaml")) as gateway:       # doctest: +SKIP
    ...     print(gateway.address)

    `config` is a checked configuration (see `load_config`). `start` returns when the gateway accepts connections. The object may be
    started and stopped again; it is not thread-safe.
    """

    def __init__(self, config: Config):
        self.config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._file = ""

    @property
    def address(self) -> str:
        """The first listener's address."""
        return self.config.listeners[0].address

    @property
    def pid(self) -> int:
        """Of the supervisor; 0 while it is not running."""
        return self._process.pid if self._process else 0

    def start(self, timeout: float = 10.0) -> None:
        """Start and wait up to `timeout` seconds until it serves. RuntimeError when it ends instead, TimeoutError when it is late."""
        if self._process is not None:
            raise RuntimeError("the gateway runs already; stop it first")
        self._directory = tempfile.TemporaryDirectory(prefix="gwcore-")
        self._file = os.path.join(self._directory.name, "gateway.yaml")
        self._write(self.config)
        path = os.path.join(self._directory.name, "ready")  # a service manager's socket: the gateway says READY=1 there
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(path)
            ready.settimeout(LOOK_S)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gwcore", "run", "-c", self._file], env={**os.environ, "NOTIFY_SOCKET": path}
            )
            deadline = time.monotonic() + timeout
            while True:
                with contextlib.suppress(TimeoutError):
                    if ready.recv(100) == b"READY=1":
                        return
                if (status := self._process.poll()) is not None:
                    self._forget()
                    raise RuntimeError(f"the gateway ended with status {status}; its messages are on stderr")
                if time.monotonic() > deadline:
                    self.stop(0)
                    raise TimeoutError(f"the gateway did not serve within {timeout:g}s; its messages are on stderr")

    def _write(self, config: Config) -> None:
        with open(self._file, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as f:
            f.write(_as_yaml(config))

    def stop(self, timeout: float = 40.0) -> int:
        """Drain and end; returns the exit status. After `timeout` seconds it is killed."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._forget()
        return status

    def _forget(self) -> None:
        self._process = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def run(self) -> int:
        """Start, wait until the gateway ends (by a signal, for example Ctrl-C), return its exit status."""
        self.start()
        assert self._process is not None
        while True:
            try:
                status = self._process.wait()
                self._forget()
                return status
            except KeyboardInterrupt:  # the gateway got it too and drains
                continue

    def _admin(self, path: str, method: str = "GET") -> tuple[int, Any]:
        """Status and JSON of an answer of the admin interface."""
        status, text = ask(self.config.admin, path, method)
        return status, json.loads(text)

    def status(self) -> dict[str, Any]:
        """What /status says. OSError when the admin address does not answer."""
        return dict(self._admin("/status")[1])

    def reload(self, config: Config) -> list[str]:
        """Let the running gateway take another configuration; nothing is interrupted. Returns warnings; RuntimeError says why it was
        refused, and then nothing has changed."""
        self._write(config)
        status, result = self._admin("/reload", "POST")
        if status != 200:
            self._write(self.config)  # the next upgrade or reload by signal reads the file
            raise RuntimeError("; ".join(result["errors"]))
        self.config = config
        return list(result["warnings"])

    def __enter__(self) -> Gateway:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _as_yaml(config: Config) -> str:
    """The configuration as a file that reads back to the same models: JSON is YAML, durations and sizes get their units back."""
    from gwcore.config.dump import dump

    text = json.dumps(dump(config), indent=1, ensure_ascii=False).replace("$", "$$")
    return NOT_IN_YAML.sub(lambda m: f"\\u{ord(m[0]):04x}", text)
