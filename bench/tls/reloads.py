"""Many reloads of certificates under load: SIGHUP after SIGHUP, each with other certificate files, while wrk asks over TLS on kept connections and
other clients make new ones. Nothing may be lost: no error of wrk, no failed handshake, no refused reload, no worker gone.

python -m bench.tls.reloads [--reloads 1000] [--seconds 90]     it ends at either
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench.load.common import Server, free_port, need, pin, status, wrk
from bench.tls.common import certificate, gwcore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reloads", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=90)
    args = parser.parse_args()
    need("wrk", "openssl")
    with tempfile.TemporaryDirectory() as d:
        directory = Path(d)
        live, pairs = certificate(directory), [certificate(directory, name=n) for n in ("one", "two")]
        port = free_port()
        command = gwcore(directory, port, live)
        command_file = Path(command[-1])
        command_file.write_text(command_file.read_text().replace("workers: 1", "workers: 2"))
        server = Server(command, port)
        answered: dict = {}

        def load() -> None:
            answered.update(wrk(f"https://127.0.0.1:{port}/", 32, args.seconds))

        asking = threading.Thread(target=load)
        asking.start()
        client = [*pin(1), sys.executable, "-m", "bench.tls.client", str(port), "--seconds", str(args.seconds)]
        new = subprocess.Popen(client, stdout=subprocess.PIPE, text=True)
        begun, done = time.monotonic(), 0
        while done < args.reloads and time.monotonic() - begun < args.seconds - 2:
            pair = pairs[done % 2]
            shutil.copy(pair.cert, live.cert)
            shutil.copy(pair.key, live.key)
            before = status(command)["plan"]
            server.p.send_signal(signal.SIGHUP)
            while status(command)["plan"] == before:
                if time.monotonic() - begun > args.seconds + 10 or server.p.poll() is not None:
                    sys.exit(f"reloads: number {done} did not come about: {status(command).get('last_reload')}")
                time.sleep(0.005)
            done += 1
        took = time.monotonic() - begun
        asking.join()
        found = json.loads(new.communicate()[0])
        end = status(command)
        server.stop()
    restarts = sum(w["restarts"] for w in end["workers"])
    reasons = {k: n for k, n in end["reasons"].items() if n}
    print(
        f"{done} reloads in {took:.0f}s, {took / max(done, 1) * 1000:.0f} ms each; {answered['n']} answers to wrk at {answered['rps']:.0f}/s, "
        f"errors: {answered['errors'] or 'none'}; {found['done']} new handshakes, {found['failed']} failed; {restarts} restarts; reasons: {reasons or 'none'}"
    )
    lost = bool(answered["errors"]) or found["failed"] or restarts or done < args.reloads
    print("nothing lost" if not lost else "LOST or not finished")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
