"""Upstream connections over their life: made ahead, made beside another, idle for as long as their endpoint likes, waited for in turn."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support import Upstream, echo_handler, get, ok, plane, proxy_config, read_reply, wait_until


def be(p) -> dict:
    return p.segment.snapshot()["upstreams"]["be"]


def asks(p, path: str = "/") -> int:
    with p.connect() as s:
        s.sendall(get(path))
        return read_reply(s).status


def answer_all(c) -> None:
    while True:
        c.request()
        c.send(ok())


# ---- pool.min_idle ------------------------------------------------------------------------------------------------


def test_connections_are_warm_before_the_first_request_and_again_after_it(upstream):
    up = upstream(echo_handler)
    text = proxy_config(up.address, upstream="pool: {min_idle: 12}")
    with plane(text) as p:
        wait_until(lambda: be(p)["idle"] == 12)
        assert be(p)["opens"] == be(p)["warmed"] == 12
        wait_until(lambda: len(up.seen) == 12)
        with p.connect() as s, p.connect() as other:
            s.sendall(get())
            assert read_reply(s).status == 200
            assert be(p)["reuses"] == 1  # it found one ready
            other.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")  # holds one for longer
            wait_until(lambda: be(p)["in_use"] == 1 and be(p)["idle"] == 12)
            assert be(p)["opens"] == 13
            other.sendall(b"cde")
            assert read_reply(other).status == 200
        for s in up.open:  # the upstream closes them all: they are made again, each once
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: be(p)["closed"]["peer"] == 13)
        wait_until(lambda: be(p)["idle"] == 12)
        assert be(p)["opens"] == 25


def test_an_endpoint_that_joins_is_warmed_and_one_that_leaves_is_not(upstream):
    a, b = upstream(echo_handler), upstream(echo_handler)
    warm = "pool: {min_idle: 2}"
    with plane(proxy_config(a.address, upstream=warm)) as p:
        wait_until(lambda: be(p)["idle"] == 2)
        p.reload(proxy_config(b.address, upstream=warm))
        wait_until(lambda: len(b.seen) == 2 and be(p)["idle"] == 2)
        time.sleep(0.3)
        assert len(a.seen) == 2 and be(p)["closed"]["drain"] == 2
        p.reload(proxy_config(b.address))
        time.sleep(0.2)
        assert be(p)["idle"] == 2 and be(p)["opens"] == 4


def test_warm_connections_never_go_beyond_the_cap_and_give_way_to_requests(upstream):
    up = upstream(echo_handler)
    with plane(proxy_config(up.address, upstream="pool: {min_idle: 3, max_connections: 4}")) as p:
        wait_until(lambda: be(p)["idle"] == 3)
        held = [p.connect() for _ in range(4)]
        for s in held:
            s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n")
        wait_until(lambda: be(p)["in_use"] == 4)
        time.sleep(0.8)
        assert be(p)["opens"] == 4 and be(p)["idle"] == 0
        for s in held:
            s.sendall(b"x")
            assert read_reply(s).status == 200
            s.close()
        wait_until(lambda: be(p)["idle"] == 4)


def test_nothing_is_warmed_in_a_drain(upstream):
    up = upstream(echo_handler)
    with plane(proxy_config(up.address, upstream="pool: {min_idle: 3}")) as p:
        wait_until(lambda: be(p)["idle"] == 3 == len(up.open))
        p.call(p.plane.begin_drain)
        for s in up.open:
            s.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: be(p)["closed"]["peer"] == 3)
        time.sleep(0.6)  # a first failure would be mended by then
        assert be(p)["opens"] == 3


def test_the_workers_keep_them_together(upstream):
    up = upstream(echo_handler)
    counts = []
    for number in range(3):
        with plane(proxy_config(up.address, upstream="pool: {min_idle: 4}"), workers=3, number=number) as p:
            wait_until(lambda p=p: be(p)["idle"] >= 1)
            time.sleep(0.2)
            counts.append(be(p)["idle"])
    assert sorted(counts) == [1, 1, 2]


@pytest.mark.parametrize("how", ["refuses", "closes"])
def test_an_endpoint_that_does_not_want_them_is_not_stormed(how):
    if how == "refuses":
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{s.getsockname()[1]}"
            up = None
            with plane(proxy_config(address, upstream="pool: {min_idle: 200}")) as p:
                time.sleep(2)
                opens = be(p)["opens"]
                assert 2 <= opens <= 8 * 6  # at most eight a look, and ever fewer looks: 0.25 s, 0.5 s, 1 s ...
    else:
        up = Upstream(lambda c: None)  # takes connections and closes them
        with plane(proxy_config(up.address, upstream="pool: {min_idle: 200}")) as p:
            time.sleep(2)
            opens = be(p)["opens"]
            assert 2 <= opens <= 8 * 8
        up.close()


# ---- how long a connection may idle -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field, idle_ms",
    [(b"timeout=2", 1000), (b"max=5, timeout=1", 500), (b"timeout=0", 0), (b"timeout=x", None), (b"timeout=86400", None)],
)
def test_a_connection_idles_no_longer_than_its_upstream_says(upstream, field, idle_ms):
    def serve(c):
        while True:
            c.request()
            c.send(ok(extra=b"Keep-Alive: %s\r\n" % field))

    up = upstream(serve)
    with plane(proxy_config(up.address, upstream="pool: {idle_timeout: 3s}")) as p, p.connect() as s:
        s.sendall(get())
        reply = read_reply(s)
        assert reply.status == 200 and reply.get("Keep-Alive") is None  # of this hop alone
        if idle_ms == 0:
            wait_until(lambda: sum(be(p)["closed"].values()) == 1)
            return
        wait_until(lambda: be(p)["idle"] == 1)
        began = time.monotonic()
        wait_until(lambda: be(p)["closed"]["idle"] == 1)
        took = time.monotonic() - began
        assert took < 2.5 if idle_ms else took > 2.5  # which of the two it was; the figure itself is the pool's test


def test_closes_seen_lower_the_idle_life(upstream):
    """A server that closes after 1.2 s: the next connections are given up before it does."""

    def serve(c):
        c.s.settimeout(1.2)
        while True:
            c.request()
            c.send(ok())

    up = upstream(serve)
    with plane(proxy_config(up.address)) as p:
        assert asks(p) == 200
        wait_until(lambda: be(p)["closed"]["peer"] == 1)
        assert asks(p) == 200
        wait_until(lambda: sum(be(p)["closed"].values()) == 2)
        assert be(p)["closed"]["idle"] == 1


# ---- names with several addresses ---------------------------------------------------------------------------------


@contextlib.contextmanager
def hole(host: str, port: int = 0) -> Iterator[int]:
    """A port that never answers a connection: its queue is full."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.bind((host, port))
        s.listen(0)
        full = []
        for _ in range(4):
            full.append(socket.socket(s.family))
            full[-1].setblocking(False)
            full[-1].connect_ex(s.getsockname()[:2])
        time.sleep(0.05)
        yield s.getsockname()[1]
        for f in full:
            f.close()


class Server(Upstream):
    """At an address of its own."""

    def __init__(self, host: str, port: int, handler):
        self.server = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=64)
        self.handler, self.port, self.seen, self.open = handler, self.server.getsockname()[1], [], []
        threading.Thread(target=self._accept, daemon=True).start()


def named(addresses: list[str]):
    return lambda host: addresses if host == "be.example" else []


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


FAMILIES = pytest.param(["127.0.0.1", "::1"], marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here"))
SIBLINGS = ["127.0.0.1", "127.0.0.2"]
FAST = "timeouts: {connect: 4s}, slow_start: off"


@pytest.mark.parametrize("addresses", [FAMILIES, SIBLINGS])
@pytest.mark.parametrize("first", ["silent", "refuses"])
def test_the_next_address_of_a_name_is_tried(addresses, first):
    with contextlib.ExitStack() as stack:
        if first == "silent":
            port = stack.enter_context(hole(addresses[0]))
        else:
            taken = stack.enter_context(socket.socket())
            taken.bind((addresses[0], 0))
            port = taken.getsockname()[1]
        up = Server(addresses[1], port, answer_all)
        text = proxy_config(f"be.example:{port}", upstream=f"balance: round_robin, retry: {{attempts: 0}}, {FAST}")
        with plane(text, addresses=named(addresses)) as p:
            for _ in range(4):  # round robin meets the bad one at least once
                began = time.monotonic()
                assert asks(p) == 200
                assert time.monotonic() - began < 3  # not connect's four seconds
            wait_until(lambda: be(p)["connecting"] == be(p)["in_use"] == 0)
            figures = be(p)
            assert figures["raced"] >= 1 and figures["retries"] == 0
            assert figures["closed"]["aborted"] == figures["raced"]  # each loser is closed, and counted once
            if ":" in addresses[1]:  # the way that worked is gone first from then on
                assert figures["raced"] == 1
        up.close()


def test_nothing_is_raced_when_the_first_answers(upstream):
    up = Server("127.0.0.1", 0, answer_all)
    with plane(proxy_config(f"be.example:{up.port}"), addresses=named(["127.0.0.1", "::1"])) as p:
        for _ in range(3):
            assert asks(p) == 200
        assert be(p)["raced"] == 0 and be(p)["opens"] == 1
    up.close()


@pytest.mark.parametrize("end", ["client leaves", "time is over", "plane closes"])
def test_what_a_race_holds_is_given_back(end):
    with hole("127.0.0.1") as port, hole("127.0.0.2", port):
        text = proxy_config(f"be.example:{port}", upstream="timeouts: {connect: 900ms}, retry: {attempts: 0}")
        with plane(text, addresses=named(SIBLINGS)) as p:
            s = p.connect()
            s.sendall(get())
            wait_until(lambda: be(p)["connecting"] == 2)
            assert p.counts()["upstream_connections"] == 2
            if end == "client leaves":
                s.close()
            elif end == "time is over":
                assert read_reply(s).status == 504
                s.close()
            else:
                p.call(p.plane.close_requests)
            wait_until(lambda: be(p)["connecting"] == 0)
            assert be(p)["opens"] == 2 == sum(be(p)["closed"].values())
            s.close()
            p.at_rest()
            assert p.counts()["upstream_connections"] == 0


def test_a_race_does_not_go_beyond_the_cap():
    with hole("127.0.0.1") as port:
        up = Server("127.0.0.2", port, answer_all)
        text = proxy_config(
            f"be.example:{port}",
            upstream="pool: {max_connections: 1}, timeouts: {connect: 600ms}, retry: {attempts: 0}, balance: round_robin",
        )
        with plane(text, addresses=named(SIBLINGS)) as p, p.connect() as a, p.connect() as b:
            hold = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"
            a.sendall(hold)
            wait_until(lambda: be(p)["connecting"] == 1 or be(p)["in_use"] == 1)
            b.sendall(hold)
            wait_until(lambda: be(p)["in_use"] == 1 and be(p)["connecting"] == 1)
            time.sleep(0.4)
            assert be(p)["opens"] == sum(be(p)["closed"].values()) + be(p)["in_use"] + be(p)["connecting"]
            assert be(p)["in_use"] + be(p)["connecting"] <= 2  # one at each address
        up.close()


# ---- the queue ----------------------------------------------------------------------------------------------------


def test_the_queue_is_served_and_expires_in_order(upstream):
    go = threading.Event()
    order: list[bytes] = []

    def serve(c):
        while True:
            head, _ = c.request()
            order.append(head.split(b" ")[1])
            go.wait(20)
            c.send(ok())

    up = upstream(serve)
    text = proxy_config(up.address, upstream="pool: {max_connections: 1, queue: {size: 8, timeout: 700ms, order: fifo}}")
    with plane(text) as p:
        clients = [p.connect() for _ in range(7)]
        clients[0].sendall(get("/0"))
        wait_until(lambda: order == [b"/0"])
        for i, s in enumerate(clients[1:4], 1):  # these wait in vain
            s.sendall(get(f"/{i}"))
            wait_until(lambda i=i: be(p)["waiting"] == i)
            time.sleep(0.1)
        ends = []
        for s in clients[1:4]:
            assert read_reply(s).status == 503
            ends.append(time.monotonic())
            # those that came later still wait when the first is told
            assert be(p)["waiting"] <= 3 - len(ends) and be(p)["queue_timeout"] >= len(ends)
        assert ends == sorted(ends)
        for i, s in enumerate(clients[4:], 4):
            s.sendall(get(f"/{i}"))
            wait_until(lambda i=i: be(p)["waiting"] == i - 3)
        go.set()
        for s in [clients[0], *clients[4:]]:
            assert read_reply(s).status == 200
            s.close()
        assert order == [b"/0", b"/4", b"/5", b"/6"]
        wait_until(lambda: p.counts()["exchanges"] == 0)
        waits = be(p)["queue_seconds"]
        assert waits["count"] == 6  # each that waited, once
        assert 3 * 0.69 <= waits["sum"] < 6 * 3
        for s in clients[1:4]:
            s.close()


# ---- figures ------------------------------------------------------------------------------------------------------


def test_round_trips_are_measured_when_connections_open_and_close(upstream):
    def serve(c):
        c.request()
        c.send(ok(extra=b"Connection: close\r\n"))

    up = upstream(serve)
    with plane(proxy_config(up.address)) as p:
        for _ in range(5):
            assert asks(p) == 200
        wait_until(lambda: sum(be(p)["closed"].values()) == 5)
        rtt = be(p)["rtt"]
        assert rtt["count"] == 10 and 0 <= rtt["sum"] < 10 and rtt["squares"] * rtt["count"] >= rtt["sum"] ** 2 * 0.999


def test_memory_is_accounted_by_kind(upstream):
    from gwcore._speedups.plane import sizes

    from gwcore.admin.figures import memory_by_kind

    up = upstream(echo_handler)
    with plane(proxy_config(up.address)) as p:
        clients = [p.connect() for _ in range(20)]
        for s in clients:
            s.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        wait_until(lambda: p.counts()["buffers"] == 20)

        def memory() -> dict[str, int]:
            return memory_by_kind(p.segment.snapshot()["workers"])

        wait_until(lambda: memory() == {"struct": 20 * sizes()["conn"], "request": 0, "buffers": 20 * 1024, "tls": 0})
        for s in clients:
            s.sendall(b"\r\n")
            assert read_reply(s).status == 200
        wait_until(lambda: memory()["buffers"] == memory()["request"] == 0)
        worker = p.segment.snapshot()["workers"][0]
        assert memory()["struct"] == (20 + worker["upstream_connections"]) * sizes()["conn"] <= worker["held_bytes"]
        for s in clients:
            s.close()


# ---- how connections end ------------------------------------------------------------------------------------------


def test_max_requests_ends_a_connection_after_so_many(upstream):
    up = upstream(answer_all)
    with plane(proxy_config(up.address, upstream="pool: {max_requests: 3}")) as p, p.connect() as s:
        for _ in range(8):
            s.sendall(get())
            assert read_reply(s).status == 200
        assert [bytes(r).count(b"GET ") for r in up.seen] == [3, 3, 2]
        assert be(p)["closed"]["max_requests"] == 2 and be(p)["opens"] == 3 and be(p)["reuses"] == 5


def test_max_age_ends_connections_of_one_moment_at_different_ones(upstream):
    """They were opened together; closed together they would be opened together again, for ever."""
    n, age = 16, 1.5

    def serve(c):
        c.request()
        wait_until(lambda: len(up.seen) >= n)
        c.send(ok())
        answer_all(c)

    up = upstream(serve)
    with plane(proxy_config(up.address, upstream=f"pool: {{max_age: {age}s}}")) as p, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(p.connect()) for _ in range(n)]
        opened = time.monotonic()
        for s in clients:
            s.sendall(get())
        for s in clients:
            assert read_reply(s).status == 200
        assert be(p)["opens"] == n
        ages, looks = [], 0
        while len(ages) < n:  # the pool looks at its connections when one is taken
            looks += 1
            time.sleep(0.01)
            for s in clients:  # all at once, so that all are taken
                s.sendall(get())
            for s in clients:
                with contextlib.suppress(EOFError):
                    read_reply(s)
            new = min(be(p)["closed"]["max_age"], n) - len(ages)
            ages += [time.monotonic() - opened] * new
            assert looks < 1000
        assert len(set(ages)) >= 4 and max(ages) - min(ages) > age * 0.05
        assert min(ages) > age * 0.85


STRAY = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


ANSWERS = {
    "answer": ok() + STRAY,
    "byte": ok() + b"\n",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + STRAY,
    "no body": b"HTTP/1.1 304 Not Modified\r\n\r\nhello",
    "last": ok(extra=b"Connection: close\r\n") + STRAY,
    "spliced": ok(b"x" * 1_000_000) + STRAY,
}
# late: an answer comes when nobody has asked, on a connection that lives on after the first one
CASES = [(name, late) for late in (False, True) for name in (("answer", "chunked", "spliced") if late else ANSWERS)]


@pytest.mark.parametrize(("name", "late"), CASES)
def test_bytes_behind_an_answer_close_the_connection_and_are_counted(upstream, name, late):
    """U4: whether they come with it, or when nobody has asked for anything."""

    answer = ANSWERS[name]

    def serve(c):
        c.request()
        if late:
            c.send(answer.removesuffix(STRAY))
            time.sleep(0.05)
            c.send(STRAY)
        else:
            c.send(answer)
        with contextlib.suppress(EOFError):
            c.more()

    with plane(proxy_config(upstream(serve).address)) as p, p.connect() as s:
        for n in (1, 2):
            s.sendall(get())
            reply = read_reply(s)
            assert reply.rest == b"" and b"evil" not in reply.body
            wait_until(lambda n=n: be(p)["closed"]["stray"] == n)
        assert sum(be(p)["closed"].values()) == 2 == be(p)["opens"]


def test_an_end_behind_an_answer_is_not_taken_for_bytes(upstream):
    def serve(c):
        head, _ = c.request()
        c.send(ok(b"x" * 1_000_000 if b"/long" in head else b"x"))

    with plane(proxy_config(upstream(serve).address)) as p, p.connect() as s:
        for path in ("/", "/long"):
            s.sendall(get(path))
            assert read_reply(s).status == 200
        wait_until(lambda: sum(be(p)["closed"].values()) == 2)
        assert be(p)["closed"]["stray"] == 0
