"""POST of a small JSON at 1,000, 2,500 and 4,000 clients against a backend of 15 ms, beside nginx and HAProxy where they are installed:
descriptors, established connections, mean and p99, errors, memory. wrk is a closed loop: its latency says how long a request takes when every
client waits for its answer.

Then an open loop (bench.load.openloop) at half of what gwcore reached with 2,500 clients, over 2,500 connections: latency counts from the moment
at which a request was due. Goal: p99 at most 25 ms. `--clients` without any number runs this part alone, with a capacity of its own.

python -m bench.load.ladder [--seconds 30] [--clients 1000 2500 4000]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.load.common import Server, Watch, descriptors, free_port, gwcore, memory, need, wrk
from bench.load.openloop import HEAD, openloop, row
from bench.load.peers import haproxy, nginx

FIXED = 2500  # connections of the part at a fixed rate


def established(port: int) -> int:
    """Connections established at a local port."""
    hexport = f":{port:04X}"
    return sum(
        x.split()[1].endswith(hexport) and x.split()[3] == "01" for x in Path("/proc/net/tcp").read_text().splitlines()[1:]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--clients", type=int, nargs="*", default=[1000, 2500, 4000])
    args = parser.parse_args()
    need("wrk", "taskset")
    makers = {"gwcore": lambda tmp, port, up: gwcore(tmp, port, f"127.0.0.1:{up}")}
    makers |= {name: make for name, make in (("nginx", nginx), ("haproxy", haproxy)) if shutil.which(name)}
    print(
        "| clients | gateway | requests/s | mean ms | p99 ms | descriptors | established | memory MB | errors |\n|---|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as d:
        tmp = Path(d)
        script = tmp / "post.lua"
        script.write_text(
            'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = \'{"id": 1, "name": "widget"}\'\n'
        )
        upstream = free_port()
        backend = Server([sys.executable, "-m", "bench.load.backend", str(upstream), "15"], upstream, 1)
        capacity = 0.0
        for clients in args.clients:
            for name, make in makers.items():
                port = free_port()
                server = Server(make(tmp, port, upstream), port, 0)
                fds = Watch(lambda server=server: descriptors(server.p.pid))  # type: ignore[misc]
                open_ = Watch(lambda port=port: established(port))  # type: ignore[misc]
                held = Watch(lambda server=server: memory(server.p.pid))  # type: ignore[misc]
                r = wrk(f"http://127.0.0.1:{port}/json", clients, args.seconds, "-s", str(script), "--timeout", "10s")
                print(
                    f"| {clients} | {name} | {r['rps']:.0f} | {r['mean']:.0f} | {r['p99']:.0f} | {fds.stop():.0f} | {open_.stop():.0f} "
                    f"| {held.stop() / 1e6:.1f} | {r['errors'] or 'none'} |",
                    flush=True,
                )
                server.stop()
                if name == "gwcore" and clients == FIXED:
                    capacity = r["rps"]
        fixed(tmp, makers, upstream, backend, capacity, min(args.seconds, 15), script)
        backend.stop()


def fixed(
    tmp: Path,
    makers: dict[str, Callable[[Path, int, int], list[str]]],
    upstream: int,
    backend: Server,
    capacity: float,
    seconds: int,
    script: Path,
) -> None:
    """Half of the capacity over FIXED connections, open loop."""
    rate = capacity / 2
    print("\n" + HEAD)
    for name, make in {**makers, "none: the backend itself": None}.items():
        port = free_port() if make else upstream
        server = Server(make(tmp, port, upstream), port, 0) if make else None
        if name == "gwcore" and not capacity:
            rate = wrk(f"http://127.0.0.1:{port}/json", FIXED, 8, "-s", str(script), "--timeout", "10s")["rps"] / 2
            time.sleep(1)
        servers = {"backend": backend, **({"gateway": server} if server else {})}
        r = openloop(f"http://127.0.0.1:{port}/json", rate, FIXED, seconds, "--post", warm=2, servers=servers)
        print(row(f"{rate:.0f}", name, [r]), flush=True)
        if server:
            server.stop()


if __name__ == "__main__":
    main()
