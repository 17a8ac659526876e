"""Private-key work by an asynchronous engine and by an asynchronous provider, which the test builds. They are loaded for a whole process, so each
gateway is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent
GATEWAY = """
import sys, time, os, ssl, socket, threading
from pathlib import Path
from tests.support import plane, read_reply, wait_until, SLACK
from tests.tls import client_context, issue, issue_ed25519, listener, secure
directory, crypto, more = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
RESPOND = "routes: [{respond: {status: 200, body: OK}}]"
text = RESPOND + f"\\ntls: {{crypto: {{{crypto}, asynchronous: on}}}}\\ntimeouts: {{tls_handshake: {sys.argv[4]}, linger: 100ms}}"
made = issue_ed25519 if "providers" in crypto else issue
with plane(text, listener=listener(made(directory, "a.test"), more=more)) as p:
    exec(sys.stdin.read())
print("good")
"""


@pytest.fixture(scope="module", params=["engine", "provider"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """How `tls.crypto` names it."""
    out = tmp_path_factory.mktemp("modules") / "gwtest.so"
    source = SOURCES / f"async_{request.param}.c"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(out), str(source), "-lcrypto", "-lpthread"], check=True)
    if request.param == "engine":
        return f"engine: '{out}'"
    return f"providers: [default, gwtest], path: '{out.parent}', properties: '?provider=gwtest'"


def run(tmp_path: Path, engine: str, what: str, more: str = "", limit: str = "10s", **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GATEWAY, str(tmp_path), engine, more, limit],
        input=what,
        text=True,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=100,
    )
    assert done.returncode == 0 and done.stdout.endswith("good\n"), done.stdout + done.stderr


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_handshakes_wait_for_it_side_by_side(engine, tmp_path, version):
    """Twenty that take 200 ms each, in one thread: one after the other they would take four seconds."""
    run(
        tmp_path,
        engine,
        f"""
def one():
    with secure(p.connect(), context=client_context(version="{version}")) as s:
        s.sendall(b"GET / HTTP/1.1\\r\\nHost: a.test\\r\\n\\r\\n")
        got.append(read_reply(s).status)
got = []
threads = [threading.Thread(target=one) for _ in range(20)]
began = time.monotonic()
for t in threads: t.start()
for t in threads: t.join()
assert got == [200] * 20
assert 0.2 <= time.monotonic() - began < 3.5 * SLACK, time.monotonic() - began
""",
        GWCORE_ENGINE_MS="200",
    )


def test_clients_that_leave_meanwhile_leave_nothing(engine, tmp_path):
    run(
        tmp_path,
        engine,
        """
into = ssl.MemoryBIO()
o = client_context().wrap_bio(ssl.MemoryBIO(), into, server_hostname="a.test")
try: o.do_handshake()
except ssl.SSLWantReadError: pass
hello = into.read()
for n in range(20):
    with p.connect() as s:
        s.sendall(hello)
        time.sleep(0.02)
        if n % 2: s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\x01\\0\\0\\0\\0\\0\\0\\0")
wait_until(lambda: p.counts()["jobs"] == 0 and p.counts()["connections"] == 0)
with secure(p.connect()) as s: pass
""",
        GWCORE_ENGINE_MS="150",
    )


def test_one_that_never_comes_back_meets_the_time_limit(engine, tmp_path):
    run(
        tmp_path,
        engine,
        """
try: secure(p.connect())
except (ssl.SSLError, OSError): pass
else: raise AssertionError
wait_until(lambda: p.reasons().get("tls_handshake_timeout") == 1)
wait_until(lambda: p.counts()["jobs"] == 0)
""",
        limit="1s",
        GWCORE_ENGINE_MS="1800",
    )


def test_one_that_fails_ends_the_handshake(engine, tmp_path):
    run(
        tmp_path,
        engine,
        """
for _ in range(5):
    try: secure(p.connect())
    except (ssl.SSLError, OSError): pass
    else: raise AssertionError
wait_until(lambda: p.reasons().get("tls_handshake") == 5)
""",
        GWCORE_ENGINE_FAILS="1",
    )


def test_what_cannot_be_loaded_is_refused(tmp_path):
    config = tmp_path / "gw.yaml"
    for crypto, want in [
        ("{providers: [nothere]}", "providers: nothere cannot be loaded"),
        ("{engine: /nothere.so}", "engine /nothere.so"),
        ("{engine: nothere}", "engine nothere: is not known"),
    ]:
        config.write_text(
            f"listeners: [{{address: '127.0.0.1:1'}}]\nroutes: [{{respond: {{status: 200}}}}]\ntls: {{crypto: {crypto}}}\n"
        )
        done = subprocess.run([sys.executable, "-m", "gwcore", "check", "-c", str(config)], capture_output=True, text=True)
        assert done.returncode == 2 and want in done.stderr + done.stdout, done.stderr + done.stdout
    config.write_text(config.read_text().replace("{engine: nothere}", "{providers: [default, legacy]}"))
    done = subprocess.run([sys.executable, "-m", "gwcore", "check", "-c", str(config)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
