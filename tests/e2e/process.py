"""What the process tests share: a gateway as its users run it, and a small closed-loop client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.support import Upstream, free_port, read_reply, wait_until

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


class Process:
    """`python -m gwcore run` on a configuration of its own: one upstream `be`, one route `all`, a listener, admin and log."""

    def __init__(
        self,
        tmp: Path,
        upstream: Upstream,
        workers: int = 2,
        extra: str = "",
        host: str = "127.0.0.1",
        args: tuple[str, ...] = (),
        listener: str = "",
    ):
        self.host, self.port, self.admin = host, free_port(), free_port()
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.file = tmp / "gw.yaml"
        self.log = tmp / "access.log"
        self.upstream, self.workers, self.listener = upstream, workers, listener and f", {listener}"
        self.write(extra)
        self.messages = tmp / "stderr"
        with open(self.messages, "w") as out:
            self.p = subprocess.Popen([sys.executable, "-m", "gwcore", "run", "-c", str(self.file), *args], stderr=out)
        wait_until(lambda: self.p.poll() is not None or self.ready(), 20, "the gateway's start")

    def write(self, extra: str = "") -> None:
        self.file.write_text(
            f'workers: {self.workers}\nlisteners: [{{address: "{self.address}"{self.listener}}}]\n'
            f'admin: {{address: "127.0.0.1:{self.admin}"}}\naccess_log: {{path: {self.log}, flush: 50ms}}\n'
            f'upstreams: {{be: {{endpoints: ["{self.upstream.address}"]}}}}\nroutes: [{{name: all, upstream: be}}]\n{extra}'
        )

    def replace(self, old: str, new: str) -> None:
        """Change the configuration file."""
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))

    def ready(self) -> bool:
        try:
            return self.get("/readyz") == b"ready\n"
        except OSError:
            return False

    def get(self, path: str, method: str = "GET", port: int = 0) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{port or self.admin}{path}", method=method)
        with urllib.request.urlopen(request, timeout=30) as r:
            return r.read()

    def status(self) -> dict[str, Any]:
        return json.loads(self.get("/status"))

    def reload(self) -> dict[str, Any]:
        """POST /reload; its result, good or bad."""
        try:
            return json.loads(self.get("/reload", "POST"))
        except urllib.error.HTTPError as refused:
            return json.load(refused)

    def pids(self) -> list[int]:
        return [w["pid"] for w in self.status()["workers"]]

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), 5)

    def answers(self, port: int = 0) -> bool:
        """Does a new connection get a 200?"""
        try:
            with socket.create_connection((self.host, port or self.port), 1) as s:
                s.sendall(GET)
                return read_reply(s).status == 200
        except (OSError, EOFError):
            return False

    def said(self) -> str:
        return self.messages.read_text()

    def signal(self, number: int) -> None:
        self.p.send_signal(number)

    def stop(self) -> int:
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
        return self.p.wait(40)

    def clean_up(self) -> None:
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait()


def run_failing(file: Path) -> subprocess.CompletedProcess[str]:
    """Run a configuration that cannot be run, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gwcore", "run", "-c", str(file)], capture_output=True, text=True, timeout=30, check=False
    )


def alive(pid: int) -> bool:
    """Runs, and is no zombie that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def switches(pid: int) -> int:
    """How often a process was put to sleep or interrupted so far."""
    return sum(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "ctxt_switches" in line)


class Clients:
    """n closed-loop keep-alive clients; counts answers, lost requests (a byte was sent, no whole answer came) and connections."""

    def __init__(self, port: int, n: int = 16):
        self.port, self.n, self.answers, self.lost, self.connects = port, n, 0, 0, 0
        self.statuses: dict[int, int] = {}
        self.stopping = False
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(n)]
        for t in self.threads:
            t.start()

    def _run(self) -> None:
        s = None
        while not self.stopping:
            if s is None:
                try:
                    s = socket.create_connection(("127.0.0.1", self.port), 5)
                except OSError:
                    time.sleep(0.01)
                    continue
                with self.lock:
                    self.connects += 1
            try:
                s.sendall(GET)
                r = read_reply(s)
            except (OSError, EOFError):
                with self.lock:
                    self.lost += 1
                s.close()
                s = None
                continue
            with self.lock:
                self.answers += 1
                self.statuses[r.status] = self.statuses.get(r.status, 0) + 1
            if r.get("Connection") == "close":
                s.close()
                s = None
        if s is not None:
            s.close()

    def warm(self) -> None:
        """Until every client is connected and got answers."""
        wait_until(lambda: self.connects == self.n and self.answers > 10 * self.n)

    def more(self, n: int = 200) -> None:
        """Until n more answers came."""
        so_far = self.answers
        wait_until(lambda: self.answers > so_far + n)

    def stop(self) -> None:
        self.stopping = True
        for t in self.threads:
            t.join(10)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
