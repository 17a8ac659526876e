"""Faults against gateways: time to detect, failed requests, good requests refused, time to recover.

python -m bench.resilience [SCENARIO …] [--quick] [--gateways none,gwcore,nginx] [--check] [--out bench/results]

Ten scripted endpoints for each gateway answer in 10 ms; a client sends 100 requests a second in the open loop, the same to each gateway. All gateways meet
a scenario at the same time, each with endpoints of its own, so that a scenario takes (before + fault + after) seconds whoever takes part. Without names all scenarios
run. Figures of other scenarios in the file of results stay, so that they can be run one by one. --check compares gwcore with the figures of RESILIENCE (report.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop

from bench.load.common import Server, free_port, raise_descriptors
from bench.resilience import report
from bench.resilience.figures import figures
from bench.resilience.gateways import SETTINGS, Setting, installed
from bench.resilience.scenarios import SCENARIOS, Scenario
from bench.resilience.world import World, requests

TIMES = {
    "whole": (30.0, 65.0, 20.0),
    "quick": (15.0, 25.0, 15.0),
}  # before, fault, after: no multiple of the 10 s that peers wait


async def play(s: Scenario, gateways: list[Setting], before: float, fault: float, after: float, tmp: Path) -> dict[str, Any]:
    """One scenario for all of them; figures by gateway."""
    length = s.fault_s or fault
    loop = asyncio.get_running_loop()
    worlds = [World(s, length, 20 + i, requests(s, before, length, after)) for i in range(len(gateways))]
    servers: list[Server] = []
    playing: list[tuple[Setting, World, int]] = []
    try:
        for world, g in zip(worlds, gateways, strict=True):
            await world.listen()
            port = free_port()
            command = g.command(tmp, port, world.addresses, s.timeout_s)
            try:
                servers.append(await loop.run_in_executor(None, Server, command, port))
                playing.append((g, world, port))
            except SystemExit as why:  # an older gwcore does not know every key
                print(f"{g.name} takes no part: {why}", file=sys.stderr)
        zero = loop.time() + before + 0.5
        end = length + max(after, s.timeout_s) + 1  # what gateways wait for is over then
        await asyncio.gather(*(world.run(port, zero, end) for _, world, port in playing))
    finally:
        for server in servers:
            await loop.run_in_executor(None, server.stop)
    return {g.name: figures(s, world.plan, length, after).plain() for g, world, _ in playing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS], metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="15 s before, 25 s of fault, 15 s after instead of 30, 65, 20")
    parser.add_argument("--gateways", default=",".join(SETTINGS), help=",".join(SETTINGS))
    parser.add_argument("--fault", type=float, default=0, help="seconds of fault, instead of those")
    parser.add_argument("--rate", type=float, default=0, help="requests a second, instead of the scenario's")
    parser.add_argument(
        "--check", action="store_true", help="only compare what the file of results has; exit 1 when gwcore is over"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    file = args.out / "resilience.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if args.check:
        sys.exit(report.check(results))
    raise_descriptors()
    wanted = args.gateways.split(",")
    if unknown := set(wanted) - SETTINGS.keys():
        parser.error(f"unknown gateways: {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}")
    gateways = installed(wanted)
    missing = [name for name in wanted if SETTINGS[name] not in gateways]
    if missing:
        print(f"not installed: {', '.join(missing)} (bench/README.md says from where)", file=sys.stderr)
    before, fault, after = TIMES["quick" if args.quick else "whole"]
    fault = args.fault or fault
    for name in args.scenarios or SCENARIOS:
        s = SCENARIOS[name]
        if args.rate:
            s = Scenario(**{**vars(s), "rate": args.rate})
        with tempfile.TemporaryDirectory() as tmp:
            told = uvloop.run(play(s, gateways, before, fault, after, Path(tmp)))
        results[name] = {
            "before_s": before, "fault_s": s.fault_s or fault, "after_s": after, "rate": s.rate,
            "gateways": {**results.get(name, {}).get("gateways", {}), **told},
        }  # fmt: skip
        args.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(report.table(s, results[name]), flush=True)
    (args.out / "resilience.md").write_text(report.whole(results))
    report.draw(results, args.out / "resilience.png")


if __name__ == "__main__":
    main()
