"""What a hit costs: CPU of an answer from the local cache, beside the gateway's own direct answer with the same head and body, and nginx's
`proxy_cache`; in short rounds one after the other on servers that all run all the time.

python -m bench.load.cache_hit [--connections 64] [--rounds 6] [--seconds 2] [--bytes 75]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from bench.load.common import Server, cpu_seconds, free_port, need, nginx, wrk


def origin(directory: Path, port: int, body: str) -> list[str]:
    return nginx(
        directory,
        "origin",
        f"server {{ listen 127.0.0.1:{port}; location / {{ default_type application/json; add_header Cache-Control max-age=3600; return 200 '{body}'; }} }}",
    )


def gateway(directory: Path, port: int, upstream: int, body: str) -> list[str]:
    file = directory / "gwcore.yaml"
    file.write_text(
        f'workers: 1\nlisteners: [{{address: "127.0.0.1:{port}"}}]\nadmin: {{address: "127.0.0.1:{free_port()}"}}\naccess_log: {{path: "off"}}\n'
        f"upstreams: {{be: {{endpoints: ['127.0.0.1:{upstream}']}}}}\n"
        "routes:\n  - match: {path: /direct}\n    respond: {status: 200, headers: {Content-Type: application/json, Cache-Control: max-age=3600, "
        f"Server: nginx/1.22.1}}, body: '{body}'}}\n  - {{upstream: be, cache: on}}\n"
    )
    return [sys.executable, "-m", "gwcore", "run", "-c", str(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--bytes", type=int, default=75)
    args = parser.parse_args()
    need("wrk", "taskset", "nginx")
    body = "x" * args.bytes
    with tempfile.TemporaryDirectory() as d:
        directory = Path(d)
        directory.chmod(0o777)  # nginx started by root writes its store as another user
        back, port, peer = free_port(), free_port(), free_port()
        behind = Server(origin(directory, back, body), back, 1)
        ours = Server(gateway(directory, port, back, body), port, 0)
        theirs = Server(
            nginx(
                directory,
                "cache",
                f"proxy_cache_path {directory}/store levels=1:2 keys_zone=z:10m; keepalive_requests 100000000; server {{ listen 127.0.0.1:{peer}; "
                f"location / {{ proxy_cache z; proxy_pass http://127.0.0.1:{back}; }} }}",
            ),
            peer,
            0,
        )
        servers = {
            "direct": (ours, f"http://127.0.0.1:{port}/direct"),
            "hit": (ours, f"http://127.0.0.1:{port}/api/v1/items"),
            "nginx": (theirs, f"http://127.0.0.1:{peer}/api/v1/items"),
        }
        rows: dict[str, list[float]] = {name: [] for name in servers}
        for k in range(args.rounds + 1):
            for name, (server, url) in servers.items():
                before = cpu_seconds(server.p.pid)
                r = wrk(url, args.connections, args.seconds)
                if r["errors"]:
                    sys.exit(f"bench: {name}: {r['errors']}")
                if k:  # the first warms up, and fills the caches
                    rows[name].append((cpu_seconds(server.p.pid) - before) / r["n"] * 1e6)
        for server in (ours, theirs, behind):
            server.stop()
    print(f"{args.bytes} bytes, {args.connections} clients, {args.rounds} rounds of {args.seconds} s")
    for name, found in rows.items():
        print(f"{name}: {statistics.median(found):.2f} us of CPU per request")
    for other in ("direct", "nginx"):
        print(f"hit / {other}: {statistics.median(a / b for a, b in zip(rows['hit'], rows[other], strict=True)):.3f}")


if __name__ == "__main__":
    main()
