"""What the router and the balancer do to real requests: rewrites, header edits, weights, hashing."""

from __future__ import annotations

import re
import time
from collections import Counter

import pytest

from tests.support import Conversation, get, ok, plane, read_reply


def named(name: str, delay: float = 0.0):
    """An upstream that answers with its name and the request's head."""

    def handler(c: Conversation) -> None:
        while True:
            head, _ = c.request()
            time.sleep(delay)
            c.send(ok(name.encode() + b"\n" + head, b"X-Up: 1\r\nX-Other: 2\r\n"))

    return handler


@pytest.mark.parametrize(
    ("rewrite", "path", "sent"),
    [
        ("{strip_prefix: /api}", "/api/users?x=1", "/users?x=1"),
        ("{strip_prefix: /api}", "/api", "/"),
        ("{replace_prefix: /v2}", "/api/users", "/v2/users"),
        ("{strip_prefix: /api, replace_prefix: /v2/}", "/api/users", "/v2/users"),
        ("{strip_prefix: /api}", "/api//x", "//x"),
        ("{strip_prefix: /api}", "/api/a/../b", "/b"),
        ("{strip_prefix: /api}", "/api/%2e%2e/api/x", "/x"),
    ],
)
def test_rewrites(upstream, rewrite, path, sent):
    # R7: what was matched is what is sent, also after a prefix is stripped
    up = upstream(named("u"))
    text = f"upstreams: {{u: {{endpoints: ['{up.address}']}}}}\nroutes: [{{match: {{prefix: /api}}, upstream: u, rewrite: {rewrite}}}]"
    with plane(text) as p, p.connect() as s:
        s.sendall(get(path))
        assert read_reply(s).body.decode().split("\n")[1].startswith(f"GET {sent} HTTP/1.1")
        s.sendall(get("/api/../../x"))
        assert read_reply(s).status == 400


def test_header_edits(upstream):
    up = upstream(named("u"))
    text = f"""
upstreams: {{u: {{endpoints: ['{up.address}'], host: backend.internal}}}}
routes:
  - upstream: u
    request_headers: {{set: {{X-Set: new}}, add: {{X-Add: more}}, remove: [X-Gone]}}
    response_headers: {{set: {{X-Up: changed}}, add: {{X-Add: out}}, remove: [x-other]}}
"""
    with plane(text) as p, p.connect() as s:
        s.sendall(get("/", X_Set="old", X_Add="mine", X_Gone="1", x_gone="2"))
        r = read_reply(s)
        seen = r.body.decode()
        assert "X-Set: new" in seen and "old" not in seen and "Gone" not in seen and "gone" not in seen
        assert "X-Add: mine" in seen and "X-Add: more" in seen
        assert "Host: backend.internal" in seen and "Host: a\r" not in seen.replace("X-Forwarded-Host: a", "")
        assert r.get("X-Up") == "changed" and r.get("X-Other") is None and r.get("X-Add") == "out"


def test_canary_weights(upstream):
    a, b = upstream(named("a")), upstream(named("b"))
    text = f"""
upstreams: {{a: {{endpoints: ['{a.address}']}}, b: {{endpoints: ['{b.address}']}}}}
routes: [{{targets: [{{upstream: a, weight: 3}}, {{upstream: b, weight: 1}}]}}]
"""
    with plane(text) as p, p.connect() as s:
        got: Counter[str] = Counter()
        for _ in range(400):
            s.sendall(get())
            got[read_reply(s).body.decode().split("\n")[0]] += 1
        assert 50 < got["b"] < 150 and got["a"] + got["b"] == 400


def pool(upstream, balance: str, weights=(1, 1, 1), delays=(0, 0, 0)):
    ups = [upstream(named(str(i), d)) for i, d in enumerate(delays)]
    endpoints = ", ".join(f"{{address: '{u.address}', weight: {w}}}" for u, w in zip(ups, weights, strict=True))
    return f"upstreams: {{u: {{endpoints: [{endpoints}], {balance}}}}}\nroutes: [{{upstream: u}}]"


def spread(p, n: int, **fields: str) -> Counter:
    got: Counter[str] = Counter()
    with p.connect() as s:
        for _ in range(n):
            s.sendall(get("/", **fields))
            got[read_reply(s).body.decode().split("\n")[0]] += 1
    return got


def test_round_robin_is_smooth_and_weighted(upstream):
    with plane(pool(upstream, "balance: round_robin", (2, 1, 0))) as p:
        assert spread(p, 30) == {"0": 20, "1": 10}


@pytest.mark.parametrize("balance", ["least_request", "random"])
def test_drawn_by_weight(upstream, balance):
    with plane(pool(upstream, f"balance: {balance}", (1, 1, 0))) as p:
        got = spread(p, 200)
        assert set(got) == {"0", "1"} and min(got.values()) > 40


@pytest.mark.parametrize("balance", ["least_request", "random", "round_robin"])
@pytest.mark.parametrize(("slow_start", "least", "most"), [("1h", 0, 30), ("off", 35, 100)])
def test_an_endpoint_that_joins_others_starts_slowly(upstream, balance, slow_start, least, most):
    text = pool(upstream, f"balance: {balance}, slow_start: {slow_start}", (1, 1, 1))
    two = re.sub(r", \{address: [^}]*\}\]", "]", text)
    assert two != text
    with plane(two) as p:
        assert set(spread(p, 30)) == {"0", "1"}  # these two were there from the beginning
        p.reload(text)
        got = spread(p, 200)
        assert least <= got.get("2", 0) <= most, got


def test_ewma_prefers_the_quick(upstream):
    with plane(pool(upstream, "balance: ewma", delays=(0.0, 0.02, 0.02))) as p:
        got = spread(p, 150)
        assert got["0"] > 80, got


@pytest.mark.parametrize(("by", "fields"), [("header, name: X-User", "X_User"), ("cookie, name: uid", "Cookie")])
def test_hash_is_sticky_and_spreads(upstream, by, fields):
    with plane(pool(upstream, f"balance: hash, hash: {{by: {by}}}")) as p:
        homes = set()
        for user in range(20):
            got = spread(p, 3, **{fields: f"a=b; uid={user}; c=d" if fields == "Cookie" else str(user)})
            assert len(got) == 1
            homes |= set(got)
        assert homes == {"0", "1", "2"}
        assert len(spread(p, 5)) == 1  # without one: by the client's address


def test_no_endpoint_with_weight_is_a_reason(upstream):
    with plane(pool(upstream, "balance: round_robin", (0, 0, 0))) as p, p.connect() as s:
        s.sendall(get())
        r = read_reply(s)
        assert r.status == 503 and b"no_endpoint" in r.body


def test_a_name_that_does_not_resolve_is_a_reason():
    text = "upstreams: {u: {endpoints: ['no-such-host.invalid:80']}}\nroutes: [{upstream: u}]"
    with plane(text) as p, p.connect() as s:
        s.sendall(get())
        r = read_reply(s)
        assert r.status == 502 and b"dns_failed" in r.body


def test_unix_sockets_upstream(tmp_path, upstream):
    import socket
    import threading

    path = str(tmp_path / "up.sock")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()

    def serve() -> None:
        s, _ = server.accept()
        c = Conversation(s, bytearray())
        while True:
            try:
                c.request()
            except EOFError:
                return
            c.send(ok(b"unix"))

    threading.Thread(target=serve, daemon=True).start()
    with plane(f"upstreams: {{u: {{endpoints: ['unix:{path}']}}}}\nroutes: [{{upstream: u}}]") as p:
        with p.connect() as s:
            for _ in range(3):
                s.sendall(get())
                assert read_reply(s).body == b"unix"
        server.close()
