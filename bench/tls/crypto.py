"""What AES-GCM and ChaCha20-Poly1305 cost on this machine: with all instructions of the CPU and with them switched off one after the other
(OPENSSL_ia32cap), for each provider of OpenSSL that is configured. The gap is the most that an offload of records could win, or lose.

The engine is `openssl speed` in a child process for each row, because OpenSSL looks at the CPU once; one thread, so all of the time is CPU time.
AEAD with 16 KiB is one TLS record. A provider is used by name: -provider default -provider NAME -propquery provider=NAME.

python -m bench.tls.crypto [--seconds 1] [--provider NAME ...] [--path DIRECTORY]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys

from bench.load.common import pin

ALGORITHMS = ["aes-128-gcm", "aes-256-gcm", "chacha20-poly1305"]
RECORD = 16384
# OPENSSL_ia32cap: bits of CPUID to leave out, as OPENSSL_ia32cap(3) counts them
PCLMUL, SSSE3, AESNI, AVX = 1 << 33, 1 << 41, 1 << 57, 1 << 60
AVX2, AVX512, VAES, VPCLMUL = 1 << 5, 1 << 16 | 1 << 17 | 1 << 21 | 1 << 30 | 1 << 31, 1 << 41, 1 << 42
MASKS = {
    "all that the CPU has": "",
    "no AVX-512, VAES": f"~0x0:~0x{AVX512 | VAES | VPCLMUL:x}",
    "no AVX either": f"~0x{AVX:x}:~0x{AVX512 | VAES | VPCLMUL | AVX2:x}",
    "no AES-NI, PCLMULQDQ either": f"~0x{AVX | AESNI | PCLMUL:x}:~0x{AVX512 | VAES | VPCLMUL | AVX2:x}",
    "no SSSE3 either: plain code": f"~0x{AVX | AESNI | PCLMUL | SSSE3:x}:~0x{AVX512 | VAES | VPCLMUL | AVX2:x}",
}


def providers() -> list[str]:
    """Those that the configuration of OpenSSL loads."""
    out = subprocess.run(["openssl", "list", "-providers"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^  (\S+)$", out, re.MULTILINE) or ["default"]


def speed(algorithm: str, provider: str, mask: str, seconds: int, path: str) -> float | None:
    """Bytes a second of one CPU; None where the provider does not have the algorithm."""
    environment = {k: v for k, v in os.environ.items() if k != "OPENSSL_ia32cap"}
    if mask:
        environment["OPENSSL_ia32cap"] = mask
    other = [] if provider == "default" else ["-provider", provider, "-propquery", f"provider={provider}"]
    done = subprocess.run(
        [*pin(1), "openssl", "speed", "-mr", "-seconds", str(seconds), "-bytes", str(RECORD), "-evp", algorithm, "-aead"]
        + (["-provider-path", path] if path else []) + ["-provider", "default", *other],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    m = re.search(r"^\+F:\d+:[^:]+:([\d.]+)", done.stdout, re.MULTILINE)
    return float(m[1]) if m else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--provider", action="append", help="those that OpenSSL's configuration loads when not given")
    parser.add_argument("--path", default="", help="directory of provider modules")
    args = parser.parse_args()
    if not shutil.which("openssl"):
        sys.exit("bench: missing openssl; on Debian: apt-get install openssl")
    print(subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True).stdout.split("(")[0].strip())
    print(
        "| provider | instructions | algorithm | MB/s of one CPU | us for a record of 16 KiB | cost against all |\n|---|---|---|---|---|---|"
    )
    for provider in args.provider or providers():
        best: dict[str, float] = {}
        for name, mask in MASKS.items() if os.uname().machine == "x86_64" else [("all that the CPU has", "")]:
            for algorithm in ALGORITHMS:
                found = speed(algorithm, provider, mask, args.seconds, args.path)
                if not found:
                    print(f"| {provider} | {name} | {algorithm} | not there | | |", flush=True)
                    continue
                best.setdefault(algorithm, found)
                print(
                    f"| {provider} | {name} | {algorithm} | {found / 1e6:.0f} | {RECORD / found * 1e6:.2f} | {best[algorithm] / found:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
