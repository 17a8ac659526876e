"""Mixed traffic for some minutes with reloads in between; memory after the first minute and at the end. `--minutes 10`"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from bench.load.common import Server, admin_of, free_port, gwcore, memory, need, status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument(
        "--faults", action="store_true", help="kill workers, leave in the middle, answer badly; fail unless all ends at rest"
    )
    args = parser.parse_args()
    need("wrk")
    with tempfile.TemporaryDirectory() as d:
        upstream, port = free_port(), free_port()
        kind = ["bench.load.hostile", "upstream", str(upstream)] if args.faults else ["bench.load.backend", str(upstream)]
        backend = Server([sys.executable, "-m", *kind], upstream)
        command = gwcore(Path(d), port, f"127.0.0.1:{upstream}", workers=2)
        admin = admin_of(command)
        server = Server(command, port)
        post = Path(d) / "post.lua"
        post.write_text('wrk.method="POST"\nwrk.body=string.rep("x",20000)\n')
        end = time.monotonic() + args.minutes * 60
        first, begun = 0, time.monotonic()
        while time.monotonic() < end:
            loads = [
                subprocess.Popen(
                    ["wrk", "-t1", f"-c{c}", "-d8s", *extra, f"http://127.0.0.1:{port}{path}"], stdout=subprocess.DEVNULL
                )
                for c, path, extra in (
                    (128, "/json", []),
                    (32, "/proxy", ["-H", "Connection: close"]),
                    (16, "/json", ["-s", str(post)]),
                )
            ]
            if args.faults:
                loads.append(subprocess.Popen([sys.executable, "-m", "bench.load.hostile", "clients", str(port)]))
            time.sleep(4)
            if args.faults:
                os.kill(random.choice(status(command)["workers"])["pid"], signal.SIGKILL)
            urllib.request.urlopen(urllib.request.Request(f"http://{admin}/reload", method="POST")).read()
            for load in loads[:3]:
                load.wait()
            for load in loads[3:]:
                load.terminate()
                load.wait()
            time.sleep(3 if args.faults else 0.5)  # lingering connections
            now = memory(server.p.pid)
            if not first and time.monotonic() - begun >= min(60, args.minutes * 30):
                first = now
            found = status(command)
            rest = {k: sum(w[k] for w in found["workers"]) for k in ("connections", "exchanges", "illegal_moves", "requests")}
            print(f"{time.monotonic() - begun:6.0f}s  {now / 1e6:.1f} MB  {rest}  {found['reasons']}", flush=True)
        print(f"memory after the first minute {first / 1e6:.1f} MB, at the end {now / 1e6:.1f} MB: {now / max(first, 1):.3f}")
        restless = {k: n for k, n in rest.items() if k != "requests" and n}
        if args.faults and (restless or now > first * 1.1):
            sys.exit(f"soak: not at rest: {restless}, memory {now / first:.3f}")
        server.stop()
        backend.stop()


if __name__ == "__main__":
    main()
