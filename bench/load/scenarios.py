"""A minimal gateway at 1,000 connections: its own answer; JSON with log and metrics on and off; a backend of 100 ms.

python -m bench.load.scenarios [own] [log] [slow] [routes]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from bench.load.common import Server, admin_of, free_port, gwcore, measure, need, status, wrk

ROUNDS = 3


def own(tmp: Path) -> None:
    port = free_port()
    server = Server(gwcore(tmp, port, "127.0.0.1:9"), port, 0)
    r = measure(server, f"http://127.0.0.1:{port}/proxy", 1000, 4)
    server.stop()
    print(f"own answer, 1000 connections: {r['rps']:.0f} rps, {r['cpu_us']:.1f} us CPU, p99 {r['p99']:.1f} ms {r['errors']}")


def log(tmp: Path) -> None:
    """The same load with the log off, on (a file), and off with somebody reading /metrics each second; interleaved."""
    upstream = free_port()
    backend = Server([sys.executable, "-m", "bench.load.backend", str(upstream)], upstream, 1)
    cpu: dict[str, list[float]] = {"off": [], "log": [], "metrics": []}
    for _ in range(ROUNDS):
        for kind in cpu:
            port = free_port()
            command = gwcore(tmp, port, f"127.0.0.1:{upstream}", str(tmp / "access.log") if kind == "log" else "off")
            server = Server(command, port, 0)
            stop = threading.Event()
            if kind == "metrics":
                admin = admin_of(command)

                def scrape(admin: str = admin, stop: threading.Event = stop) -> None:
                    while not stop.wait(5):
                        urllib.request.urlopen(f"http://{admin}/metrics").read()

                threading.Thread(target=scrape, daemon=True).start()
            r = measure(server, f"http://127.0.0.1:{port}/json", 1000, 6, warm=2)
            stop.set()
            server.stop()
            (tmp / "access.log").unlink(missing_ok=True)
            if r["errors"]:
                print(f"  {kind}: {r['errors']}")
            cpu[kind].append(r["cpu_us"])
    backend.stop()
    for kind in ("log", "metrics"):
        ratio = statistics.median(a / b for a, b in zip(cpu[kind], cpu["off"], strict=True))
        print(
            f"JSON, 1000 connections, {kind} on: {statistics.median(cpu[kind]):.1f} us, {ratio:.3f} of off ({statistics.median(cpu['off']):.1f} us)"
        )


def slow(tmp: Path) -> None:
    """The backend alone, then through the gateway. wrk opens its 1,000 connections at once, and that first wave is 100 / (10 x seconds) %
    of all requests: 20 seconds keep it out of the 99th percentile."""
    upstream = free_port()
    port = free_port()
    backend = Server([sys.executable, "-m", "bench.load.backend", str(upstream), "100"], upstream)
    server = Server(gwcore(tmp, port, f"127.0.0.1:{upstream}", workers=2), port)
    for what, to in (("alone", upstream), ("through the gateway", port)):
        wrk(f"http://127.0.0.1:{to}/json", 1000, 2, cpu=None)
        r = wrk(f"http://127.0.0.1:{to}/json", 1000, 20, cpu=None)
        print(
            f"backend of 100 ms, 1000 connections, {what}: {r['rps']:.0f} rps of 10000 possible, "
            f"p50 {r['p50']:.1f} ms, p99 {r['p99']:.1f} ms {r['errors']}"
        )
    server.stop()
    backend.stop()


def faults(tmp: Path) -> None:
    """256 wrk connections: kill -9 of one of two workers, 20 reloads, SIGTERM. wrk counts what was lost."""
    upstream = free_port()
    backend = Server([sys.executable, "-m", "bench.load.backend", str(upstream)], upstream)
    import os
    import signal

    for what in ("kill", "reload", "term"):
        port = free_port()
        command = gwcore(tmp, port, f"127.0.0.1:{upstream}", workers=2)
        admin = admin_of(command)
        server = Server(command, port)
        load = subprocess.Popen(
            ["wrk", "-t1", "-c256", "-d6s", f"http://127.0.0.1:{port}/json"], stdout=subprocess.PIPE, text=True
        )
        time.sleep(2)
        note = ""
        if what == "kill":
            os.kill(status(command)["workers"][0]["pid"], signal.SIGKILL)
            started = time.monotonic()
            while True:
                first = status(command)["workers"][0]
                if first["restarts"] == 1 and first["up"]:
                    break
                time.sleep(0.005)
            note = f"replaced within {time.monotonic() - started:.3f}s"
        elif what == "reload":
            before = status(command)
            for _ in range(20):
                urllib.request.urlopen(urllib.request.Request(f"http://{admin}/reload", method="POST")).read()
                time.sleep(0.1)
            after = status(command)
            note = f"connections accepted: {sum(w['accepted'] for w in before['workers'])} before, {sum(w['accepted'] for w in after['workers'])} after"
        else:
            load.send_signal(signal.SIGINT)
            server.p.send_signal(signal.SIGTERM)
            note = f"exit status {server.p.wait(40)}"
        out = load.communicate()[0]
        lost = [line.strip() for line in out.splitlines() if "Socket errors" in line or "Non-2xx" in line]
        print(f"{what}: {lost or 'nothing lost'}; {note}")
        if server.p.poll() is None:
            server.stop()
    backend.stop()


def main() -> None:
    need("wrk", "taskset")
    with tempfile.TemporaryDirectory() as d:
        for name in sys.argv[1:] or ["own", "log", "slow", "faults"]:
            {"own": own, "log": log, "slow": slow, "faults": faults}[name](Path(d))


if __name__ == "__main__":
    main()
