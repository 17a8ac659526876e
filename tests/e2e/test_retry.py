"""Retries on real sockets: what is sent again and what is not, where to, when, and at whose cost."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time

import pytest
from gwcore._speedups.breakers import Breakers
from gwcore._speedups.shm import Segment

from tests.support import SLACK, PlaneThread, get, ok, plane, proxy_config, read_all, read_reply, wait_until

ALL = "on: [connect, stale, reset, timeout], statuses: [429, 500, 502, 503, 504]"
TRUST = "trusted_proxies: [127.0.0.1]\n"
SMALL, LARGE = 100, 200_000  # bytes: within buffers.replay, beyond it


def be(p) -> dict:
    return p.segment.snapshot()["upstreams"]["be"]


def config(*endpoints, retry: str = ALL, upstream: str = "", extra: str = "", route: str = "") -> str:
    text = proxy_config(
        *(e if isinstance(e, str) else e.address for e in endpoints),
        upstream=f"balance: round_robin, retry: {{{retry}}}" + upstream,
        extra=extra,
    )
    return text.replace("upstream: be}]", f"upstream: be{route}}}]")


class Script:
    """What upstreams do with requests, in the order in which these come, whoever gets them; the last step is for all that follow."""

    def __init__(self, *steps):
        self.steps, self.lock = list(steps), threading.Lock()
        self.got: list[tuple[int, bytes, bytes]] = []  # (which upstream, head, body) of those read whole
        self.heads: list[bytes] = []

    def step(self):
        with self.lock:
            return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]

    def handler(self, number):
        def handle(c):
            while True:
                head = c.head()
                self.heads.append(head)
                step = self.step()
                if step == "cut":  # before the body is read
                    return c.reset()
                c.buffer = head + b"\r\n\r\n" + c.buffer
                head, body = c.request()
                self.got.append((number, head, body))
                if step == "reset":
                    return c.reset()
                if step == "close":
                    return None
                if step == "silent":
                    with contextlib.suppress(EOFError):
                        c.more()
                    return None
                if isinstance(step, bytes):
                    c.send(step)
                    if step.endswith(b"!"):
                        return c.reset()
                elif isinstance(step, int):
                    c.send(
                        b"HTTP/1.1 %d Sorry\r\nContent-Length: 3\r\n\r\nno\n" % step
                        if not head.startswith(b"HEAD")
                        else b"HTTP/1.1 %d Sorry\r\nContent-Length: 3\r\n\r\n" % step
                    )
                else:
                    c.send(ok(body) if not head.startswith(b"HEAD") else b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")

        return handle


@pytest.fixture
def scripted(upstream):
    """Two upstreams that follow one script."""

    def make(*steps, n=2):
        script = Script(*steps)
        return script, [upstream(script.handler(i)) for i in range(n)]

    return make


def request(method: str, body: bytes = b"", chunked: bool = False, fields: str = "") -> bytes:
    framing = ""
    if chunked:
        framing = "Transfer-Encoding: chunked\r\n"
        half = len(body) // 2 or 1
        parts = [body[:half], body[half:]]
        body = b"".join(b"%x\r\n%s\r\n" % (len(x), x) for x in parts if x) + b"0\r\n\r\n"
    elif body:
        framing = f"Content-Length: {len(body)}\r\n"
    return f"{method} /x HTTP/1.1\r\nHost: a\r\n{framing}{fields}\r\n".encode() + body


def reason(reply) -> str:
    return json.loads(reply.body)["reason"] if reply.get("Content-Type") == "application/problem+json" else "-"


def ask(p, data: bytes, **kw):
    with p.connect() as s:
        s.sendall(data)
        return read_reply(s, **kw)


def attempts_of(heads) -> list[int]:
    return [int(m[1]) if (m := re.search(rb"X-Gwcore-Attempt: (\d+)", h)) else 1 for h in heads]


# ---- method x failure x body

KEY = 'Idempotency-Key: "k"\r\n'
FAILURES = {
    "reset": ("upstream_reset", 502),
    "close": ("upstream_reset", 502),
    "silent": ("response_timeout", 504),
    503: ("-", 503),
    500: ("-", 500),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("body", [0, SMALL, LARGE])
@pytest.mark.parametrize(
    ("method", "fields", "again"),
    [
        ("GET", "", True),
        ("HEAD", "", True),
        ("OPTIONS", "", True),
        ("PUT", "", True),
        ("DELETE", "", True),
        ("POST", "", False),
        ("PATCH", "", False),
        ("POST", KEY, True),
    ],
)
def test_what_was_sent_goes_again_only_if_that_is_safe(scripted, method, fields, again, body, failure):
    script, ups = scripted(failure, "ok")
    text = config(*ups, upstream=f", timeouts: {{response: {int(200 * SLACK)}ms}}")
    again = again and body != LARGE
    content = bytes(i % 251 for i in range(body))
    with plane(text) as p:
        reply = ask(p, request(method, content, fields=fields), to_head=method == "HEAD")
        if again:
            assert reply.status == 200
            assert [n for n, _, _ in script.got] == [0, 1]
            assert script.got[0][2] == script.got[1][2] == content
            assert (
                script.got[1][1].replace(b"X-Gwcore-Attempt: 2\r\n", b"") + b"\r\n"
                in (script.got[0][1] + b"\r\n", script.got[0][1])
                or script.got[1][1].replace(b"\r\nX-Gwcore-Attempt: 2", b"") == script.got[0][1]
            )
        else:
            assert reply.status == FAILURES[failure][1]
            assert method == "HEAD" or reason(reply) == FAILURES[failure][0]  # an answer to HEAD has no body to say it
            assert len(script.heads) == 1
        assert be(p)["retries"] == again and p.counts()["illegal_moves"] == 0


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("body", [0, SMALL, LARGE])
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_what_was_never_sent_goes_again_whatever_it_is(scripted, dead, method, body, chunked):
    script, (up,) = scripted("ok", n=1)
    content = b"x" * body
    with plane(config(dead, up, retry="")) as p:
        reply = ask(p, request(method, content, chunked))
        assert reply.status == 200 and reply.body == content
        assert attempts_of(script.heads) == [2] and be(p)["retried"]["connect"] == 1


@pytest.fixture
def dead():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{s.getsockname()[1]}"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_still_being_sent_goes_on_at_the_next(scripted, chunked):
    script, ups = scripted("cut", "ok")
    data = request("PUT", b"a" * 3000, chunked)
    with plane(config(*ups)) as p, p.connect() as s:
        s.sendall(data[:1000])
        wait_until(lambda: len(script.heads) == 2)
        s.sendall(data[1000:])
        assert read_reply(s).body == b"a" * 3000
        s.sendall(get())  # still in step
        assert read_reply(s).status == 200


def test_the_default_is_connect_and_stale(scripted):
    for failure, status in (("reset", 502), (503, 503)):
        script, ups = scripted(failure, "ok")
        with plane(config(*ups, retry="")) as p:
            assert ask(p, get()).status == status and len(script.heads) == 1


def test_methods_are_as_configured(scripted):
    script, ups = scripted("reset", "ok", "reset", "ok")
    with plane(config(*ups, retry=ALL + ", methods: [POST]")) as p:
        assert ask(p, request("POST", b"abc")).status == 200
        assert ask(p, get()).status == 502


# ---- answers


def test_an_answer_that_is_there_whole_leaves_its_connection_in_use(scripted):
    script, ups = scripted(503, "ok", n=1)
    with plane(config(*ups)) as p:
        assert ask(p, get()).status == 200
        assert (be(p)["opens"], be(p)["reuses"]) == (1, 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 No\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 503 No\r\n\r\nabc",
        b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_any_other_is_closed_with_its_connection(scripted, answer):
    script, ups = scripted(answer, "ok", n=1)
    with plane(config(*ups)) as p:
        assert ask(p, get()).status == 200
        assert be(p)["opens"] == 2 and be(p)["closed"]["aborted"] == 1


def test_the_last_answer_goes_out_as_it_is(scripted):
    script, ups = scripted(503)
    with plane(config(*ups)) as p:
        reply = ask(p, get())
        assert (reply.status, reply.body, len(script.heads)) == (503, b"no\n", 2)
        assert reply.get("X-Gwcore-Attempt") is None


def test_only_statuses_that_are_named(scripted):
    script, ups = scripted(502, 200)
    with plane(config(*ups, retry="statuses: [503]")) as p:
        assert ask(p, get()).status == 502


def test_an_answer_of_another_gateway_passes(scripted):
    script, ups = scripted(
        b"HTTP/1.1 503 No\r\nproxy-status: gwcore; error=destination_unavailable\r\nContent-Length: 0\r\n\r\n", "ok"
    )
    with plane(config(*ups)) as p:
        assert ask(p, get()).status == 503 and len(script.heads) == 1


@pytest.mark.parametrize(("after", "again"), [("1", True), ("9", False), ("soon", True), ("Fri, 31 Dec 2100 23:59:59 GMT", True)])
def test_retry_after_beyond_the_deadline_ends_it(scripted, after, again):
    script, ups = scripted(b"HTTP/1.1 503 No\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n" % after.encode(), "ok")
    with plane(config(*ups, route=", deadline: 5s")) as p:
        assert ask(p, get()).status == (200 if again else 503)


@pytest.mark.parametrize(
    "step", [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n!", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc!"]
)
def test_never_after_the_client_has_seen_something(scripted, step):
    script, ups = scripted(step, "ok")
    with plane(config(*ups)) as p, p.connect() as s:
        s.sendall(get())
        data = read_all(s) if b"200" in step else b""
        if b"200" in step:
            assert data.endswith(b"abc!") or data.endswith(b"abc") or not data
        else:
            first = read_reply(s)
            assert first.status == 103 and read_reply(s, buffer=first.rest).status == 502
        assert len(script.heads) == 1 and be(p)["retries"] == 0


def test_half_a_head_is_no_answer(scripted):
    script, ups = scripted(b"HTTP/1.1 200 OK\r\nContent-!", "ok")
    with plane(config(*ups)) as p:
        assert ask(p, get()).status == 200


def test_what_cannot_be_read_is_not_asked_for_again(scripted):
    script, ups = scripted(b"HTTP/1.1 2000 OK\r\n\r\n", "ok")
    with plane(config(*ups)) as p:
        assert reason(ask(p, get())) == "bad_response" and len(script.heads) == 1


# ---- how often, and who else


def test_attempts_are_bounded_and_numbered(scripted):
    script, ups = scripted("reset")
    with plane(config(*ups, retry=ALL + ", attempts: 3")) as p:
        assert reason(ask(p, get())) == "upstream_reset"
        assert attempts_of(script.heads) == [1, 2, 3, 4]
        assert [n for n, _, _ in script.got] == [0, 1, 0, 1]


def test_nobody_retries_behind_a_gateway_that_does(scripted):
    script, ups = scripted("reset")
    with plane(config(*ups, extra=TRUST)) as p:
        assert ask(p, get(X_Gwcore_Attempt="2")).status == 502
        assert attempts_of(script.heads) == [2]
        assert ask(p, get(X_Gwcore_Attempt="1")).status == 502
        assert attempts_of(script.heads) == [2, 1, 2]


def test_what_a_stranger_says_of_attempts_does_not_count(scripted):
    script, ups = scripted("reset", "ok")
    with plane(config(*ups)) as p:
        assert ask(p, get(X_Gwcore_Attempt="2")).status == 200
        assert attempts_of(script.heads) == [1, 2]


def test_two_gateways_in_a_row_do_not_multiply(scripted):
    script, ups = scripted("reset")
    with (
        plane(config(*ups, extra=TRUST)) as inner,
        plane(config(f"127.0.0.1:{inner.port}", extra="via: {name: outer}\n")) as outer,
    ):
        reply = ask(outer, get())
        assert reply.status == 502 and reply.get("Proxy-Status")
        assert attempts_of(script.heads) == [1, 2]  # the inner one's; the outer one passes its 502


def test_a_stale_connection_costs_nothing_and_is_no_attempt_to_the_upstream(scripted):
    script, ups = scripted("ok", "close", "ok", n=1)
    with plane(config(*ups, retry="attempts: 0, budget: {ratio: 0, min: 0}")) as p:
        assert ask(p, get()).status == 200
        assert ask(p, get()).status == 200
        assert attempts_of(script.heads) == [1, 1, 1]
        assert be(p)["retried"] == {"connect": 0, "stale": 1, "reset": 0, "timeout": 0, "status": 0, "hedge": 0}


def test_a_retry_may_have_to_wait_for_a_place(scripted):
    script, ups = scripted(503, "ok", n=1)
    held = socket.create_server(("127.0.0.1", 0))
    with plane(config(*ups, upstream=", pool: {max_connections: 1, queue: {timeout: 5s}}")) as p:
        with p.connect() as a, p.connect() as b:
            a.sendall(get())
            b.sendall(get())
            assert {read_reply(a).status, read_reply(b).status} == {200}
        assert be(p)["opens"] >= 1 and be(p)["retries"] == 1
    held.close()


# ---- the budget


def test_an_empty_budget_lets_the_last_error_out(scripted, tmp_path):
    log = tmp_path / "log"
    script, ups = scripted(503, "reset", "ok")
    with plane(config(*ups, retry=ALL + ", budget: {ratio: 0, min: 0}"), log=str(log)) as p:
        reply = ask(p, get())
        assert (reply.status, reply.body) == (503, b"no\n")
        assert reason(ask(p, get())) == "upstream_reset"
        assert be(p)["retry_denied"] == 2 and be(p)["retries"] == 0 and be(p)["retry_budget"] == 0
    lines = [json.loads(x) for x in log.read_text().splitlines()]
    assert [(x["status"], x["reason"], x["attempts"], x.get("flags"), x.get("retried")) for x in lines] == [
        (503, "-", 1, "retry_budget", None),
        (502, "upstream_reset", 1, "retry_budget", None),
    ]


def test_the_log_says_why_it_was_tried_again(scripted, tmp_path):
    log = tmp_path / "log"
    script, ups = scripted(503, "ok", b"HTTP/1.1 200 OK\r\nX!", "ok", "ok")
    with plane(config(*ups), log=str(log)) as p:
        for _ in range(3):
            assert ask(p, get()).status == 200
    lines = [json.loads(x) for x in log.read_text().splitlines()]
    assert [(x["attempts"], x.get("retried")) for x in lines] == [(2, "503"), (2, "upstream_reset"), (1, None)]
    assert not any("flags" in x for x in lines)


def test_a_retry_is_no_probe(scripted):
    """A breaker that is not closed gives its places to first attempts, also when a status was the failure."""
    script, ups = scripted(503, n=1)
    guard = ", breaker: {trip_failures: 1, trip_time: 0s, open: 100ms, open_max: 100ms}, outlier: off"
    with plane(config(*ups, retry=ALL + ", backoff: {base: 1ms, max: 1ms}", upstream=guard)) as p:
        wait_until(lambda: reason(ask(p, get())) == "breaker_open", 10)
        probes, retried = 0, be(p)["retried"]["status"]
        while probes < 5:
            before = len(script.got)
            assert reason(ask(p, get())) == "breaker_open"
            assert len(script.got) - before <= 1
            probes += len(script.got) - before
            time.sleep(0.01)
        assert be(p)["retried"]["status"] == retried + probes  # each would have been tried again


def test_a_retry_is_no_probe_of_an_ejected_endpoint(upstream):
    """Its places are for first attempts; a retry goes back to where it was rather than to one of which nothing good is known."""
    script = [Script(500), Script(503)]
    ups = [upstream(s.handler(i)) for i, s in enumerate(script)]
    guard = ", breaker: off, outlier: {trip_failures: 3, trip_time: 0s, open: 20ms, open_max: 20ms}"
    retry = "on: [connect], statuses: [503], budget: 1.0, backoff: {base: 1ms, max: 1ms}"
    with plane(config(*ups, retry=retry, upstream=guard)) as p:
        for _ in range(20):
            ask(p, get())
        wait_until(lambda: ask(p, get()) and Breakers(p.segment).events(), 10)
        before = len(script[0].heads)
        wait_until(lambda: ask(p, get()) and len(script[0].heads) > before + 5, 20)  # probes
        assert set(attempts_of(script[0].heads[before:])) == {1}
        assert 2 in attempts_of(script[1].heads)


def storm(planes, seconds: float) -> tuple[int, float]:
    """Requests one after the other on four connections to each plane; returns how many, and how long it took."""
    began, sent = time.monotonic(), []

    def client(p):
        n = 0
        with p.connect() as s:
            while time.monotonic() < began + seconds:
                s.sendall(get())
                assert read_reply(s).status == 503
                n += 1
        sent.append(n)

    threads = [threading.Thread(target=client, args=(p,)) for p in planes for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return sum(sent), time.monotonic() - began


@pytest.mark.parametrize("workers", [1, 2])
def test_a_storm_of_failures_is_not_multiplied(upstream, workers):
    """Everything fails: the upstream gets 1.2 times the load, 3 a second and one bucket, however many workers there are."""
    seen = [0, 0]

    def fail(i):
        def handle(c):
            while True:
                c.request()
                seen[i] += 1
                c.send(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")

        return handle

    ups = [upstream(fail(i)) for i in range(2)]
    text = config(*ups, retry=ALL + ", attempts: 5, backoff: {base: 1ms, max: 1ms}", upstream=", breaker: off, outlier: off")
    segment = Segment.create(workers)
    with contextlib.ExitStack() as stack:
        planes = [PlaneThread(text, workers=workers, number=i, segment=segment) for i in range(workers)]
        for p in planes:
            stack.callback(p.close)
        sent, took = storm(planes, 1.5)
        most = 1.2 * sent + 3 * took + 30
        assert 1.1 * sent <= sum(seen) <= most + 1, (sent, sum(seen), most)
        assert be(planes[0])["retries"] == sum(seen) - sent
        for p in planes:
            p.at_rest()


# ---- back-off, and who leaves meanwhile

SLOW = ", backoff: {base: 60s, max: 60s}"


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("failure", ["reset", 503])
def test_a_client_that_leaves_in_the_back_off_is_gone_at_once(scripted, tmp_path, how, failure):
    log = tmp_path / "log"
    script, ups = scripted(failure, "ok")
    with plane(config(*ups, retry=ALL + SLOW), log=str(log)) as p:
        s = p.connect()
        s.sendall(request("PUT", b"abc"))
        wait_until(lambda: be(p)["retries"] == 1)
        assert p.counts()["exchanges"] == 1
        if how == "rst":
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        s.close()
        p.at_rest()
        assert len(script.heads) == 1
    (line,) = [json.loads(x) for x in log.read_text().splitlines()]
    assert (line["status"], line["reason"], line["attempts"]) == (499, "client_closed", 1)


def test_a_client_whose_request_was_its_last_is_noticed_too(scripted):
    script, ups = scripted("reset", "ok")
    with plane(config(*ups, retry=ALL + SLOW)) as p:
        s = p.connect()
        s.sendall(get(Connection="close"))
        wait_until(lambda: be(p)["retries"] == 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        s.close()
        p.at_rest()


def test_a_stop_in_the_back_off_gives_everything_back(scripted):
    script, ups = scripted("reset", "ok")
    with plane(config(*ups, retry=ALL + SLOW)) as p, p.connect() as s:
        s.sendall(get())
        wait_until(lambda: be(p)["retries"] == 1)
        p.call(p.plane.close_requests)
        p.at_rest()


def test_a_reload_in_the_back_off_changes_nothing_for_it(scripted):
    script, ups = scripted("reset", "ok")
    with plane(config(*ups, retry=ALL + f", backoff: {{base: {int(1000 * SLACK)}ms, max: 60s}}")) as p, p.connect() as s:
        s.sendall(get())
        wait_until(lambda: be(p)["retries"] == 1)
        p.reload(config(ups[1]))
        assert read_reply(s).status == 200 and len(script.heads) == 2


def test_requests_that_wait_behind_it_are_served_in_turn(scripted):
    script, ups = scripted("reset", "ok")
    with plane(config(*ups)) as p, p.connect() as s:
        s.sendall(request("PUT", b"abc") + request("PUT", b"def") + request("POST", b"ghi"))
        reply = read_reply(s)
        bodies = [reply.body]
        for _ in range(2):
            reply = read_reply(s, buffer=reply.rest)
            bodies.append(reply.body)
        assert bodies == [b"abc", b"def", b"ghi"]


# ---- deadlines


def test_a_back_off_beyond_the_deadline_is_not_begun(scripted):
    script, ups = scripted("reset", "ok")
    with plane(config(*ups, retry=ALL + ", backoff: {base: 60s, max: 60s}", route=f", deadline: {int(50 * SLACK)}ms")) as p:
        reply = ask(p, get())
        # drawn evenly from 0 to a minute: nearly always beyond
        assert reply.status in (502, 504) and len(script.heads) == 1


def test_the_deadline_holds_for_the_second_attempt_too(scripted):
    script, ups = scripted("reset", "silent")
    with plane(config(*ups, route=f", deadline: {int(300 * SLACK)}ms")) as p:
        assert reason(ask(p, get())) == "deadline" and len(script.heads) == 2
        told = [int(re.search(rb"X-Request-Timeout-Ms: (\d+)", h)[1]) for h in script.heads]
        assert told[1] < told[0] <= 300 * SLACK
        assert [h.count(b"X-Request-Timeout-Ms") for h in script.heads] == [1, 1]


def test_an_upstream_that_is_usually_too_slow_is_not_asked_again(scripted):
    script, ups = scripted("ok")

    def slow(c):
        while True:
            c.request()
            time.sleep(0.2)
            c.send(ok())

    with plane(config(*ups, extra=TRUST)) as p:
        for up in ups:
            up.handler = slow
        for _ in range(3):
            assert ask(p, get()).status == 200
        for up in ups:
            up.handler = script.handler(0)
        for s in [s for up in ups for s in up.open]:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: be(p)["idle"] == 0)
        script.steps = ["reset", "ok"]
        assert ask(p, get(X_Request_Timeout_Ms="150")).status == 502  # half of its answers take 200 ms
        script.steps = ["reset", "ok"]
        assert ask(p, get(X_Request_Timeout_Ms="15000")).status == 200


def test_one_attempt_that_hangs_is_given_up_for_another(scripted):
    script, ups = scripted("silent", "ok")
    with plane(config(*ups, retry=ALL + f", per_try: {int(150 * SLACK)}ms")) as p:
        assert ask(p, get()).status == 200
        assert be(p)["retried"]["timeout"] == 1
