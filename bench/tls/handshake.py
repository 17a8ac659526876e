"""Where the server's CPU goes in a TLS 1.3 handshake on this OpenSSL, then full and resumed handshakes beside nginx and HAProxy.

The first table times libcrypto's functions at the border to libssl, handshakes in memory (where.c): key share (making ours, deriving), signature
(of a resumed handshake: its binder), key schedule (HKDF and Finished), transcript hash, records, tickets; the rest is libssl itself, memory and
fetching. The second one has clients on the other CPU, gateways interleaved, no request: CPU of the gateway's whole tree for each handshake with its
connection, and what one core would do of them a second.

python -m bench.tls.handshake [--rounds 2] [--seconds 2] [--n 1000]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.load.common import Server, free_port, pin
from bench.tls.common import CURVES, GATEWAYS, certificate, handshakes, here

KINDS = ("p256", "rsa2048")
PARTS = ("share", "sign", "schedule", "hash", "records", "ticket")


def where(directory: Path, n: int) -> None:
    program = directory / "where"
    source = Path(__file__).with_name("where.c")
    if not shutil.which("gcc"):
        return print("where: no gcc")
    command = ["gcc", "-O2", "-rdynamic", "-o", str(program), str(source), "-lssl", "-lcrypto", "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    print(
        f"{subprocess.run(['openssl', 'version'], capture_output=True, text=True, check=True).stdout.split('(')[0].strip()}, server's us in memory:"
    )
    print("| certificate | group | handshake | all | " + " | ".join(PARTS) + " | the rest |\n" + "|---" * (len(PARTS) + 5) + "|")
    for kind in KINDS:
        pair = certificate(directory, kind)
        for group in (*CURVES, "X25519MLKEM768"):
            for how, sign in (("full", 1), ("resumed", -1)):
                done = subprocess.run(
                    [*pin(0), str(program), str(pair.cert), str(pair.key), group, str(n * sign)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode == 3:
                    print(f"| {kind} | {group} | not in this OpenSSL |")
                    break
                if done.returncode:
                    sys.exit(f"where: ended with {done.returncode}")
                _, whole, *parts = done.stdout.split()
                found = [float(x.split("=")[1]) for x in parts]
                cells = [f"{x:.0f} ({x / float(whole):.0%})" for x in (*found, float(whole) - sum(found))]
                print(f"| {kind} | {group} | {how} | {float(whole):.0f} | " + " | ".join(cells) + " |", flush=True)


def compare(directory: Path, rounds: int, seconds: float) -> None:
    names = here()
    print(
        "\n| certificate | group | handshake | "
        + " | ".join(f"{n}: us, a second and core" for n in names)
        + " | of the better peer |"
    )
    print("|---" * (len(names) + 4) + "|")
    for kind in KINDS:
        for group, curve in CURVES.items():
            for resume in (False, True):
                if resume and kind != "p256":
                    continue  # a resumed handshake has no signature
                found: dict[str, list[float]] = {name: [] for name in names}
                wrong = 0
                for _ in range(rounds):
                    for name in names:
                        port = free_port()
                        server = Server(GATEWAYS[name](directory, port, certificate(directory, kind)), port, 0)
                        handshakes(server, port, 0.5, group=curve, resume=resume)
                        r = handshakes(server, port, seconds, group=curve, resume=resume)
                        server.stop()
                        wrong += r["failed"] + abs(r["reused"] - (r["done"] if resume else 0))
                        found[name].append(r["cpu_us"])
                peers = [n for n in names if n != "gwcore"]
                best = min(peers, key=lambda n: statistics.median(found[n]), default="gwcore")
                ratio = statistics.median(a / b for a, b in zip(found["gwcore"], found[best], strict=True))
                cells = [f"{(m := statistics.median(found[n])):.0f}, {1e6 / m:.0f}" for n in names]
                print(
                    f"| {kind} | {group} | {'resumed' if resume else 'full'} | " + " | ".join(cells) + f" | {ratio:.2f} of {best}{f'; {wrong} WRONG' if wrong else ''} |",
                    flush=True,
                )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--n", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as d:
        where(Path(d), args.n)
        compare(Path(d), args.rounds, args.seconds)


if __name__ == "__main__":
    main()
