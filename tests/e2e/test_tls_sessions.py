"""Sessions that the gateway keeps: on one machine, and in Redis for several (CONFORMANCE T4, T5)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gwcore._speedups.shm import Segment

from tests.e2e.process import Process
from tests.redis_server import RedisServer, redis_server
from tests.support import PlaneThread, Upstream, free_port, plane, read_reply, wait_until
from tests.tls import CA, client_context, issue, listener, secure

SECRET = "s" * 40
LONG = "deadline: 2s"  # nothing but the answer ends a look-up, however busy the machine is
Make = Callable[..., PlaneThread]


@pytest.fixture(params=[0, 2], ids=["inline", "threads"])
def machine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Planes with the same configuration, each on a machine (segment) of its own if not told otherwise."""
    tls = listener(issue(tmp_path, "a.test"), issue(tmp_path, "b.test"), more="sessions: store")
    with contextlib.ExitStack() as stack:

        def make(redis: str = "", redis_more: str = LONG, more: str = "", tls: str = tls, **kw: Any) -> PlaneThread:
            text = "routes: [{respond: {status: 200, body: OK}}]\n"
            shared = f", redis: on, secret: {SECRET}" if redis else ""
            text += f"tls: {{handshake_threads: {request.param}, sessions: {{cache: 800{shared}}}}}\n"
            text += f"redis: {{url: '{redis}', {redis_more}}}\n" if redis else ""
            return stack.enter_context(plane(text + more, listener=tls, address="127.0.0.1:1", **kw))

        yield make


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as r:
        yield r


class Client:
    """One that comes again with what it was given."""

    def __init__(self, version: str, **kw: Any) -> None:
        self.context = client_context(version=version, **kw)
        self.session: ssl.SSLSession | None = None

    def visit(self, p: PlaneThread, name: str = "a.test") -> bool:
        """A request; was the session resumed?"""
        kw = {"session": self.session} if self.session else {}
        with secure(p.connect(), name, self.context, **kw) as s:
            s.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            assert read_reply(s).status == 200
            self.session = s.session
            return bool(s.session_reused)


def figures(p: PlaneThread) -> dict[str, Any]:
    return p.segment.tls_figures()


def logged(path: Path) -> list[str]:
    return [json.loads(line)["tls_resumed"] for line in path.read_text().splitlines()]


@pytest.fixture(params=["1.2", "1.3"])
def client(request: pytest.FixtureRequest) -> Client:
    return Client(request.param)


def test_workers_of_a_machine_resume_each_others_sessions(machine, client, tmp_path):
    segment = Segment.create(2, 800)
    a, b = machine(segment=segment), machine(segment=segment, number=1, log=str(tmp_path / "log"))
    assert not client.visit(a)
    assert client.visit(b)
    assert client.visit(a)
    f = figures(a)
    assert f["resumed"] == {"ticket": 0, "local": 2, "redis": 0} and f["store"]["hits"] == 2 and f["tickets_issued"] == 0
    wait_until(lambda: logged(tmp_path / "log") == ["local"])


def test_names_and_machines_have_their_own(machine, client):  # T4
    a, b = machine(), machine()
    client.visit(a)
    session = client.session
    assert not client.visit(b)
    client.session = session
    assert not client.visit(a, "b.test")
    client.session = session
    assert client.visit(a)


def test_a_session_ends_and_can_be_forgotten(machine, tmp_path):
    c, d = Client("1.3"), Client("1.2")
    tls = listener(issue(tmp_path, "a.test"), more="sessions: store, session_lifetime: 1s")
    p, q = machine(tls=tls), machine()
    for x in (c, d):
        x.visit(p)
    wait_until(lambda: figures(p)["store"]["entries"] == 0)
    assert not c.visit(p) and not d.visit(p)
    for x in (c, d):
        x.visit(q)
        assert x.visit(q)
    q.segment.forget_sessions()
    assert figures(q)["store"]["entries"] == 0
    assert not c.visit(q) and not d.visit(q)


def test_client_certificates_are_remembered_but_never_across_authorities(machine, tmp_path):  # T4
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    auth = f"sessions: store, client_auth: {{mode: require, ca: {tmp_path / 'ca.pem'}}}"
    segment = Segment.create(2, 800)
    open_ = machine(segment=segment)
    closed = machine(tls=listener(issue(tmp_path, "a.test"), more=auth), segment=segment, number=1)
    c = Client("1.2")
    c.visit(open_)
    with pytest.raises((ssl.SSLError, ConnectionResetError, EOFError)):
        c.visit(closed)
    known = Client("1.2", identity=CA.issue_cert("client"))
    assert not known.visit(closed)
    assert known.visit(closed)


def test_other_machines_resume_through_redis(machine, client, redis, tmp_path):
    a, b = machine(redis.url), machine(redis.url, log=str(tmp_path / "log"))
    assert not client.visit(a)
    wait_until(lambda: figures(a)["redis"]["written"] == 1)
    assert client.visit(b)
    f = figures(b)
    assert (
        f["resumed"] == {"ticket": 0, "local": 0, "redis": 1} and f["redis"]["hits"] == 1 and f["redis"]["seconds"]["count"] == 1
    )
    assert client.session
    wait_until(lambda: figures(b)["store"]["entries"] >= 1)
    assert client.visit(b)
    assert figures(b)["resumed"]["local"] == 1
    wait_until(lambda: logged(tmp_path / "log") == ["redis", "local"])
    keys = redis.command("KEYS", "*")
    assert b"gwcore:" in keys and b":tls" in keys
    ttl = redis.command("TTL", keys.split(b"\r\n")[2].decode())
    assert 200 < int(ttl[1:]) <= 300


def test_a_cluster_of_redis(machine, client):
    with redis_server(cluster=True) as r:
        a, b = machine(r.url, f"{LONG}, cluster: on"), machine(r.url, f"{LONG}, cluster: on")
        client.visit(a)
        wait_until(lambda: figures(a)["redis"]["written"] == 1)
        assert client.visit(b) and figures(b)["redis"]["hits"] == 1


def test_a_deleted_session_is_a_full_handshake(machine, client, redis):
    a, b = machine(redis.url), machine(redis.url)
    client.visit(a)
    wait_until(lambda: figures(a)["redis"]["written"] == 1)
    redis.command("FLUSHALL")
    a.segment.forget_sessions()
    assert not client.visit(b)
    assert figures(b)["redis"]["misses"] == 1


def test_what_redis_holds_is_sealed_and_bound_to_its_key(machine, redis):
    a, b = machine(redis.url), machine(redis.url)
    c, d = Client("1.3"), Client("1.3")
    for n, x in enumerate((c, d), 1):
        x.visit(a)
        wait_until(lambda n=n: figures(a)["redis"]["written"] == n)
    keys = [k.decode() for k in redis.command("KEYS", "*").split(b"\r\n") if b":tls" in k]
    assert len(keys) == 2
    redis.command("COPY", keys[0], keys[1], "REPLACE")
    resumed = [c.visit(b), d.visit(b)]
    assert sorted(resumed) == [False, True]
    wait_until(lambda: figures(b)["redis"]["written"] >= 2)
    for key in (k.decode() for k in redis.command("KEYS", "*").split(b"\r\n") if b":tls" in k):
        redis.command("SET", key, "rubbish" * 10)
    b.segment.forget_sessions()
    assert not c.visit(b)
    assert figures(b)["redis"]["errors"] == 1


def test_redis_stopped_restarted_and_slow_fails_no_handshake(machine, client, redis):
    a, b = machine(redis.url), machine(redis.url, "deadline: 100ms")
    client.visit(a)
    wait_until(lambda: figures(a)["redis"]["written"] == 1)
    session = client.session
    redis.stop()
    for _ in range(8):
        client.session = session
        assert not client.visit(b)
    f = figures(b)["redis"]
    assert 1 <= f["errors"] <= 6 and f["dropped"] > 0
    redis.start()
    time.sleep(1.1)
    fresh = Client("1.3")

    def shared() -> bool:
        fresh.session = None
        fresh.visit(a)
        time.sleep(0.1)
        return fresh.visit(b)

    wait_until(shared, 10)
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", redis.port)) as sleeper:
        sleeper.sendall(b"DEBUG SLEEP 1\r\nDEBUG SLEEP 1\r\nCLIENT PAUSE 1000 ALL\r\n")
        for _ in range(8):
            client.session = session
            client.visit(b)
    assert figures(b)["failed"] == 0 == figures(a)["failed"]


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes everything and says nothing."""
    taken = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(server.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        server.shutdown(socket.SHUT_RDWR)
    for s in taken:
        s.close()


def test_after_misses_in_a_row_nobody_waits(machine, client, silent):
    a, b = machine(), machine(silent, "deadline: 50ms")
    client.visit(a)
    session = client.session
    for _ in range(10):
        client.session = session
        assert not client.visit(b)
    assert 5 <= figures(b)["redis"]["errors"] <= 6 and figures(b)["failed"] == 0


@pytest.mark.parametrize("how", ["fin", "rst", "timeout", "more"])
def test_a_client_that_leaves_while_it_waits_leaves_nothing(machine, silent, client, how):
    a = machine()
    p = machine(silent, "deadline: 700ms", more=f"timeouts: {{tls_handshake: {'200ms' if how == 'timeout' else '5s'}}}")
    client.visit(a)
    out = ssl.MemoryBIO()
    o = client.context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="a.test", session=client.session)
    with pytest.raises(ssl.SSLWantReadError):
        o.do_handshake()
    hello = out.read()
    socks = [p.connect() for _ in range(5)]
    for s in socks:
        s.sendall(hello)
    wait_until(lambda: p.counts()["connections"] == 5)
    time.sleep(0.1)
    for s in socks:
        if how == "rst":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        if how == "more":
            s.sendall(b"\x14\x03\x03\x00\x01\x01" * 3)
        if how in ("fin", "rst"):
            s.close()
    if how == "timeout":
        wait_until(lambda: p.reasons().get("tls_handshake_timeout") == 5)
    wait_until(lambda: figures(p)["redis"]["errors"] == 5)
    for s in socks:
        s.close()
    p.at_rest()


def test_a_stale_handle_resumes_nothing(machine):
    p = machine()
    assert not p.call(lambda: p.plane.resume(0)) and not p.call(lambda: p.plane.resume(7 << 32 | 3))
    with p.connect():
        wait_until(lambda: p.counts()["connections"] == 1)
        assert not p.call(lambda: p.plane.resume(1 << 32))


def test_the_store_is_bounded(machine):
    p = machine(segment=Segment.create(1, 16))
    clients = [Client("1.3") for _ in range(40)]
    for c in clients:
        c.visit(p)
    f = figures(p)["store"]
    assert f["entries"] <= 16 and f["kept"] == 40 and f["evicted"] == 40 - f["entries"]
    assert clients[-1].visit(p)
    assert sum(c.visit(p) for c in clients) < 20


def test_an_empty_port_is_as_good_as_a_silent_one(machine, client):
    a, b = machine(), machine(f"redis://127.0.0.1:{free_port()}/0")
    client.visit(a)
    for _ in range(8):
        client.visit(b)
    assert figures(b)["failed"] == 0


def test_workers_share_sessions_and_outlive_one_another(tmp_path: Path, redis: RedisServer, backend: Upstream):
    """As users run it: two workers, of which one dies; then the machine forgets, and Redis does not."""
    g = Process(tmp_path, backend, extra="# more")
    try:
        tls = listener(issue(tmp_path, "a.test"), more="sessions: store")
        g.replace(f'[{{address: "{g.address}"}}]', f'[{{address: "{g.address}", {tls}}}]')
        g.replace("# more", f"tls: {{sessions: {{redis: on, secret: {SECRET}}}}}\nredis: {{url: '{redis.url}', {LONG}}}")
        assert g.reload()["ok"]
        context = client_context()
        session = None

        def visit() -> bool:
            nonlocal session
            with secure(g.connect(), "a.test", context, session=session) as s:
                s.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
                assert read_reply(s).status == 200
                session = s.session
                return bool(s.session_reused)

        assert [visit() for _ in range(9)] == [False] + [True] * 8
        wait_until(lambda: g.status()["tls"]["redis"]["written"] == 9)
        pids = g.pids()
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: pids[0] not in g.pids() and all(w["up"] for w in g.status()["workers"]))
        assert all(visit() for _ in range(8))
        wait_until(lambda: g.status()["tls"]["redis"]["written"] == 17)
        status = g.status()["tls"]
        assert status["resumed"]["local"] == 16 and status["store"]["entries"] == 17
        g.get("/sessions/forget", "POST")
        assert visit()
        assert g.status()["tls"]["resumed"]["redis"] == 1
        text = g.get("/metrics").decode()
        assert 'gwcore_tls_redis_total{event="hits"} 1.0' in text and "gwcore_tls_redis_seconds_bucket" in text
        assert SECRET not in g.get("/status").decode()
    finally:
        g.clean_up()


def test_use_keeps_a_session_alive_here_and_in_redis(machine, redis, tmp_path):
    tls = listener(issue(tmp_path, "a.test"), more="sessions: store, session_lifetime: 3s")
    a, b = machine(redis.url, tls=tls), machine(redis.url, tls=tls)
    c = Client("1.2")
    assert not c.visit(a)
    session = c.session
    for _ in range(9):
        time.sleep(0.5)
        c.session = session
        assert c.visit(a)
    c.session = session
    assert c.visit(b) and figures(b)["resumed"]["redis"] == 1
