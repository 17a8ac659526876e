"""What the TLS benchmarks share: certificates, gateways and peers that answer /proxy by themselves behind TLS 1.3, a client that counts handshakes."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from bench.load import common
from bench.load.common import Server, cpu_seconds, free_port, pin


class Pair(NamedTuple):
    """Files of a certificate, its key, and both in one."""

    cert: Path
    key: Path
    both: Path


def certificate(directory: Path, kind: str = "p256", name: str = "bench") -> Pair:
    """A self-signed certificate for localhost; kind: p256 or rsa2048."""
    pair = Pair(*(directory / f"{name}-{kind}.{end}" for end in ("crt", "key", "pem")))
    how = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"] if kind == "p256" else ["rsa:2048"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", *how, "-nodes", "-keyout", str(pair.key), "-out", str(pair.cert), "-days", "30", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    pair.both.write_text(pair.key.read_text() + pair.cert.read_text())
    return pair


def gwcore(
    directory: Path,
    port: int,
    pair: Pair,
    *,
    listener: str = "",
    tls: str = "",
    extra: str = "",
    plain: int = 0,
    host: str = "127.0.0.1",
) -> list[str]:
    """The command of a gateway of one worker; `listener` goes into its listener's tls, `tls` into the tls of all, `plain` is a port without TLS."""
    file = directory / f"gwcore-{host}-{port}.yaml"
    more = f'{{address: "127.0.0.1:{plain}"}}, ' if plain else ""
    file.write_text(
        f'workers: 1\nlisteners: [{more}{{address: "{host}:{port}", tls: {{certificates: [{{cert: {pair.cert}, key: {pair.key}}}], versions: ["1.3"]'
        f'{", " + listener if listener else ""}}}}}]\nadmin: {{address: "127.0.0.1:{free_port()}"}}\naccess_log: {{path: "off"}}\n'
        "routes: [{respond: {status: 200, headers: {X-Gateway: gwcore}, body: OK}}]\n"
        + (f"tls: {{{tls}}}\n" if tls else "")
        + extra
    )
    return [sys.executable, "-m", "gwcore", "run", "-c", str(file)]


def nginx(directory: Path, port: int, pair: Pair) -> list[str]:
    return common.nginx(
        directory,
        f"nginx-{port}",
        f"keepalive_requests 100000000; keepalive_timeout 1h; server {{ listen 127.0.0.1:{port} ssl reuseport backlog=4096;\n"
        f"ssl_certificate {pair.cert}; ssl_certificate_key {pair.key}; ssl_protocols TLSv1.3; ssl_session_cache shared:s:10m;\n"
        "location / { add_header X-Gateway nginx; return 200 'OK'; } }",
    )


def haproxy(directory: Path, port: int, pair: Pair) -> list[str]:
    file = directory / f"haproxy-{port}.cfg"
    file.write_text(
        "global\n  nbthread 1\n  maxconn 8192\ndefaults\n  mode http\n  timeout client 1h\n  timeout server 30s\n  timeout connect 5s\n"
        f"frontend f\n  bind 127.0.0.1:{port} ssl crt {pair.both} ssl-min-ver TLSv1.3\n"
        "  http-request return status 200 content-type text/plain string OK hdr X-Gateway haproxy\n"
    )
    return ["haproxy", "-f", str(file)]


GATEWAYS = {"gwcore": gwcore, "nginx": nginx, "haproxy": haproxy}


def here() -> list[str]:
    """gwcore and those of the peers that are installed."""
    return ["gwcore", *(p for p in ("nginx", "haproxy") if shutil.which(p))]


def client_context(group: str = "") -> ssl.SSLContext:
    """TLS 1.3 without a look at the certificate; `group`: the only key share."""
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
    c.minimum_version = ssl.TLSVersion.TLSv1_3
    if group:
        c.set_ecdh_curve(group)
    return c


CURVES = {"X25519": "X25519", "P-256": "prime256v1"}


def handshakes(server: Server, port: int, seconds: float, *, group: str = "", resume: bool = False, clients: int = 4) -> dict:
    """Handshakes of some clients in closed loops on the other CPU, no request; CPU microseconds of the server for each."""
    command = [
        sys.executable,
        "-m",
        "bench.tls.client",
        str(port),
        "--seconds",
        str(seconds),
        *(["--group", group] if group else []),
    ]
    before = cpu_seconds(server.p.pid)
    running = [
        subprocess.Popen([*pin(1), *command, *(["--resume"] if resume else [])], stdout=subprocess.PIPE, text=True)
        for _ in range(clients)
    ]
    found = [json.loads(p.communicate()[0]) for p in running]
    n = sum(f["done"] for f in found)
    cpu_us = (cpu_seconds(server.p.pid) - before) / max(n, 1) * 1e6
    return {
        "done": n, "reused": sum(f["reused"] for f in found), "failed": sum(f["failed"] for f in found), "rate": n / seconds, "cpu_us": cpu_us
    }  # fmt: skip
