"""What the load benchmarks share: processes pinned to a CPU, their CPU time, wrk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

BODY = '{"id":12345,"name":"widget","price":12.5,"tags":["a","b","c"],"stock":true}'
FIELDS = ["-H", "User-Agent: bench", "-H", "Accept: application/json, text/plain, */*", "-H", "Accept-Language: en-US,en;q=0.9"]


def need(*programs: str) -> None:
    """End with a remedy when a program is missing."""
    packages = {"wrk": "wrk", "nginx": "nginx", "haproxy": "haproxy"}
    missing = [p for p in programs if not shutil.which(p)]
    if missing:
        sys.exit(
            "bench: missing "
            + ", ".join(missing)
            + "; on Debian: apt-get install "
            + " ".join(packages.get(p, p) for p in missing)
        )


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def raise_descriptors() -> int:
    """As many descriptors as the hard limit lets this process have; returns how many."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def far_socket(k: int) -> socket.socket:
    """A TCP socket that will connect from the k-th loopback address: ports are counted for each address apart."""
    s = socket.socket()
    s.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the port is chosen at connect, when both ends are known
    s.bind((f"127.{1 + k // 62500}.{1 + k // 250 % 250}.{1 + k % 250}", 0))
    return s


def pin(cpu: int | None) -> list[str]:
    return [] if cpu is None or (os.cpu_count() or 1) < 2 else ["taskset", "-c", str(cpu)]


def tree(pid: int) -> list[int]:
    out = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                out += tree(int(child))
    except OSError:
        pass
    return out


def memory(pid: int) -> int:
    """Bytes of a process tree, shared pages divided among their users."""
    total = 0
    for p in tree(pid):
        for line in Path(f"/proc/{p}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(pid: int) -> float:
    """User and system time of a process tree, in nanosecond steps."""
    total = 0
    for p in tree(pid):
        try:
            for task in os.listdir(f"/proc/{p}/task"):
                total += int(Path(f"/proc/{p}/task/{task}/schedstat").read_text().split()[0])
        except OSError:
            pass
    return total / 1e9


class Server:
    """A process that listens on `port`, pinned to a CPU."""

    def __init__(self, command: list[str], port: int, cpu: int | None = None, host: str = "127.0.0.1"):
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        self.p = subprocess.Popen([*pin(cpu), *command], stdout=self.log, stderr=subprocess.STDOUT)
        for _ in range(200):
            try:
                socket.create_connection((host, port), 1).close()
                break
            except OSError:
                if self.p.poll() is not None:
                    sys.exit(f"bench: {command[0]} ended: {Path(self.log.name).read_text()[-500:]}")
                time.sleep(0.05)
        time.sleep(0.3)

    def stop(self) -> None:
        self.p.terminate()
        try:
            self.p.wait(10)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()
        self.log.close()


def wrk(url: str, connections: int, seconds: int, *extra: str, cpu: int | None = 1, threads: int = 1) -> dict:
    """Requests, rate, latency (ms) and errors of one wrk run."""
    out = subprocess.run(
        [*pin(cpu), "wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--latency", *FIELDS, *extra, url],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    unit = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60000.0}

    def ms(label: str) -> float:
        m = re.search(rf"{label}%\s+([\d.]+)(us|ms|s|m)", out)
        return float(m[1]) * unit[m[2]] if m else 0.0

    n = re.search(r"(\d+) requests in", out)
    spread = re.search(r"Latency\s+([\d.]+)(us|ms|s|m)\s+([\d.]+)(us|ms|s|m)", out)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    return {
        "n": int(n[1]) if n else 0,
        "rps": float(rate[1]) if rate else 0.0,
        "mean": float(spread[1]) * unit[spread[2]] if spread else 0.0,
        "stdev": float(spread[3]) * unit[spread[4]] if spread else 0.0,
        "p50": ms("50"),
        "p99": ms("99"),
        "errors": " ".join(re.findall(r"Non-2xx.*|Socket errors.*", out)),
    }


def measure(server: Server, url: str, connections: int, seconds: int, *extra: str, warm: int = 1) -> dict:
    """wrk after a warm-up, with the CPU microseconds of the server per request."""
    wrk(url, connections, warm, *extra)
    before = cpu_seconds(server.p.pid)
    result = wrk(url, connections, seconds, *extra)
    result["cpu_us"] = (cpu_seconds(server.p.pid) - before) / max(result["n"], 1) * 1e6
    return result


POOL = "max_connections: 4096, max_idle: 4096"


def gwcore(
    directory: Path,
    port: int,
    upstream: str,
    log: str = "off",
    workers: int = 1,
    extra: str = "",
    pool: str = POOL,
    policy: str = "",
) -> list[str]:
    """The command of a gateway whose / goes to upstream and whose /proxy answers by itself."""
    file = directory / f"gwcore-{port}.yaml"
    file.write_text(
        f'workers: {workers}\nlisteners: [{{address: "127.0.0.1:{port}"}}]\nadmin: {{address: "127.0.0.1:{free_port()}"}}\naccess_log: {{path: "{log}"}}\n'
        f'upstreams: {{be: {{endpoints: ["{upstream}"], pool: {{{pool}}}{policy and ", " + policy}}}}}\n'
        "routes:\n  - {match: {path: /proxy}, respond: {status: 200, headers: {X-Gateway: gwcore}, body: OK}}\n  - {upstream: be}\n"
        + extra
    )
    return [sys.executable, "-m", "gwcore", "run", "-c", str(file)]


def nginx(directory: Path, name: str, http: str, workers: int = 1) -> list[str]:
    """The command of an nginx whose `http` block holds that, beside what every one of them needs; files begin with name."""
    file = directory / f"{name}.conf"
    temps = "".join(f"{d}_temp_path {directory}/{name}-{d};" for d in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    file.write_text(
        f"worker_processes {workers}; daemon off; error_log {directory}/{name}.err; pid {directory}/{name}.pid; events {{ worker_connections 9000; }}\n"
        f"http {{ access_log off; {temps} {http} }}\n"
    )
    return ["nginx", "-c", str(file)]


def admin_of(command: list[str]) -> str:
    """The admin address of a `gwcore` command."""
    return Path(command[-1]).read_text().split('admin: {address: "')[1].split('"')[0]


def status(command: list[str]) -> dict:
    """/status of a gateway that runs with that command."""
    with urllib.request.urlopen(f"http://{admin_of(command)}/status", timeout=10) as r:
        return json.load(r)


class Watch:
    """Looks at a figure twice a second until it is stopped; keeps the highest."""

    def __init__(self, look: Callable[[], float]):
        self.peak, self.stopped = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._run, args=(look,))
        self.thread.start()

    def _run(self, look: Callable[[], float]) -> None:
        while not self.stopped.wait(0.5):
            self.peak = max(self.peak, look())

    def stop(self) -> float:
        self.stopped.set()
        self.thread.join()
        return self.peak


def descriptors(pid: int) -> int:
    """Open descriptors of a process tree."""
    n = 0
    for p in tree(pid):
        with contextlib.suppress(OSError):
            n += len(os.listdir(f"/proc/{p}/fd"))
    return n
