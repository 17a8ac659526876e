"""A gateway run from Python."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import Any

from gwcore.config.schema import Config, split_address


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
            raise RuntimeError("the gateway runs already")
        fd, self._file = tempfile.mkstemp(prefix="gwcore-", suffix=".yaml")
        with os.fdopen(fd, "w") as f:
            f.write(_as_yaml(self.config))
        self._process = subprocess.Popen([sys.executable, "-m", "gwcore", "run", "-c", self._file])
        deadline = time.monotonic() + timeout
        while not self._accepts():
            if self._process.poll() is not None:
                status = self._process.returncode
                self._forget()
                raise RuntimeError(f"the gateway ended with status {status}; its messages are on stderr")
            if time.monotonic() > deadline:
                self.stop(0)
                raise TimeoutError(f"the gateway did not accept connections within {timeout:g}s")
            time.sleep(0.01)

    def _accepts(self) -> bool:
        host, port = split_address(self.address)
        try:
            if port:
                socket.create_connection((host if host != "0.0.0.0" else "127.0.0.1", port), 1).close()
            else:
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect(host)
        except OSError:
            return False
        return True

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
        os.unlink(self._file)

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

    def _admin(self, path: str, method: str = "GET") -> Any:
        host, port = split_address(self.config.admin.address)
        request = urllib.request.Request(f"http://{host}:{port}{path}", method=method)
        if self.config.admin.token:
            request.add_header("Authorization", f"Bearer {self.config.admin.token}")
        with urllib.request.urlopen(request, timeout=15) as answer:
            return json.load(answer)

    def status(self) -> dict[str, Any]:
        """What /status says. OSError when the admin address does not answer."""
        return dict(self._admin("/status"))

    def reload(self, config: Config) -> None:
        """Let the running gateway take another configuration; nothing is interrupted. RuntimeError says why it was refused."""
        from urllib.error import HTTPError

        with open(self._file, "w") as f:
            f.write(_as_yaml(config))
        try:
            self._admin("/reload", "POST")
        except HTTPError as refused:
            raise RuntimeError("; ".join(json.load(refused)["errors"])) from None
        self.config = config

    def __enter__(self) -> Gateway:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _as_yaml(config: Config) -> str:
    """The configuration as a file that reads back to the same models: JSON is YAML, durations and sizes get their units back."""
    from gwcore.config.dump import dump

    return json.dumps(dump(config), indent=1).replace("$", "$$")
