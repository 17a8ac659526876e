"""A request's deadline, wherever it runs out, and what the upstream is told of it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support import SLACK, echo_handler, get, ok, plane, proxy_config, read_reply, wait_until

TRUST = "trusted_proxies: [127.0.0.1]\n"


def config(*endpoints: str, deadline: str = "150ms", upstream: str = "", extra: str = "") -> str:
    text = proxy_config(*endpoints, upstream=upstream, extra=extra)
    return text.replace("{name: all, upstream: be}", f"{{name: all, upstream: be, deadline: {deadline}}}") if deadline else text


def ask(p, request: bytes):
    with p.connect() as s:
        s.sendall(request)
        return read_reply(s)


def late(reply) -> bool:
    return (reply.status, json.loads(reply.body)["reason"]) == (504, "deadline")


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """An address whose queue is full: connecting to it takes for ever."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(0)
        address = s.getsockname()
        held = [socket.socket() for _ in range(4)]
        for h in held:
            h.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                h.connect(address)
        time.sleep(0.05)
        try:
            yield f"127.0.0.1:{address[1]}"
        finally:
            for h in held:
                h.close()


# ---- where it runs out


def test_it_runs_out_while_the_answer_is_awaited(upstream):
    up = upstream(lambda c: (c.request(), time.sleep(3 * SLACK)))
    with plane(config(up.address)) as p:
        assert late(ask(p, get()))
        wait_until(lambda: p.reasons() == {"deadline": 1})
        up.close()


def test_it_runs_out_while_connecting():
    with deaf() as address, plane(config(address, upstream="timeouts: {connect: 10s}")) as p:
        assert late(ask(p, get()))


def test_it_runs_out_in_the_queue(upstream):
    up = upstream(lambda c: (c.request(), time.sleep(3 * SLACK)))
    pool = "pool: {max_connections: 1, queue: {timeout: 10s}}"
    with plane(config(up.address, deadline="", upstream=pool, extra=TRUST)) as p, p.connect() as first:
        first.sendall(get(X_Request_Timeout_Ms="60000"))
        while not up.seen or not up.seen[0]:
            time.sleep(0.01)
        assert late(ask(p, get(X_Request_Timeout_Ms="150")))
        assert p.segment.snapshot()["upstreams"]["be"]["queue_timeout"] == 0
        assert len(up.seen) == 1
        first.close()
        up.close()


def test_it_runs_out_while_the_client_sends_its_body(upstream):
    up = upstream(echo_handler)
    with plane(config(up.address)) as p, p.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345")
        assert late(read_reply(s))


def test_one_that_has_run_out_already_goes_nowhere(upstream):
    up = upstream(echo_handler)
    with plane(config(up.address, deadline="", extra=TRUST)) as p:
        assert late(ask(p, get(X_Request_Timeout_Ms="0")))
        assert not up.seen


def test_an_answer_that_has_begun_may_take_longer(upstream):
    def slow(c):
        c.request()
        c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        time.sleep(0.4)
        c.send(b"cd")

    up = upstream(slow)
    with plane(config(up.address)) as p:
        assert ask(p, get()).body == b"abcd"


def test_one_attempt_has_its_own_limit(upstream):
    up = upstream(lambda c: (c.request(), time.sleep(3 * SLACK)))
    text = config(up.address, deadline="", upstream="retry: {attempts: 0, per_try: 150ms}")
    with plane(text) as p:
        reply = ask(p, get())
        assert (reply.status, json.loads(reply.body)["reason"]) == (504, "response_timeout")
        up.close()


def test_a_body_that_comes_slowly_uses_up_no_time_of_the_attempt(upstream):
    up = upstream(echo_handler)
    text = config(up.address, deadline="", upstream=f"retry: {{attempts: 0, per_try: {int(300 * SLACK)}ms}}")
    with plane(text) as p, p.connect() as s:
        s.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n")
        for byte in b"abcdef":
            time.sleep(0.1 * SLACK)
            s.sendall(bytes([byte]))
        assert read_reply(s).body.endswith(b"abcdef")


# ---- what is said to whom


@pytest.mark.parametrize("fresh", [True, False])
def test_the_upstream_is_told_what_is_left(upstream, fresh):
    up = upstream(echo_handler)
    with plane(config(up.address, deadline="60s", extra=TRUST)) as p, p.connect() as s:
        if not fresh:
            s.sendall(get())
            read_reply(s)
        s.sendall(get(x_request_timeout_MS="30000", X_Other="1"))
        told = re.findall(rb"(?i)x-request-timeout-ms: (.*)\r\n", read_reply(s).body)
        assert len(told) == 1 and 29000 - 4000 * SLACK < int(told[0]) <= 30000


def test_time_in_the_queue_is_taken_off_what_the_upstream_is_told(upstream):
    def handler(c):
        head, _ = c.request()
        time.sleep(0.3)
        c.send(ok(head + b"\r\n\r\n", b"Connection: close\r\n"))

    up = upstream(handler)
    text = config(up.address, deadline="60s", upstream="pool: {max_connections: 1, queue: {timeout: 10s}}")
    with plane(text) as p, p.connect() as first, p.connect() as second:
        first.sendall(get())
        while not up.seen or not up.seen[0]:
            time.sleep(0.01)
        second.sendall(get())
        told = re.findall(rb"X-Request-Timeout-Ms: (\d+)\r\n", read_reply(first).body + read_reply(second).body)
        assert len(told) == 2 and int(told[1]) <= int(told[0]) - 200


def test_strangers_set_no_deadline(upstream):
    up = upstream(echo_handler)
    with plane(config(up.address, deadline="")) as p:
        reply = ask(p, get(X_Request_Timeout_Ms="0", X_Gwcore_Attempt="7"))
        assert reply.status == 200
        assert b"X-Request-Timeout-Ms: 0\r\n" in reply.body  # no business of ours
        assert b"Gwcore-Attempt" not in reply.body


def test_strangers_do_not_override_ours(upstream):
    up = upstream(echo_handler)
    with plane(config(up.address, deadline="60s")) as p:
        told = re.findall(rb"X-Request-Timeout-Ms: (\d+)\r\n", ask(p, get(X_Request_Timeout_Ms="5")).body)
        assert len(told) == 1 and int(told[0]) > 5000


@pytest.mark.parametrize("value", ["", "-5", "1e3", "5s", "12345678901", "0x10"])
def test_what_is_no_number_of_milliseconds_sets_no_deadline(upstream, value):
    up = upstream(echo_handler)
    with plane(config(up.address, deadline="", extra=TRUST)) as p:
        assert ask(p, get(X_Request_Timeout_Ms=value)).status == 200


def test_the_sooner_of_two_holds(upstream):
    up = upstream(lambda c: (c.request(), time.sleep(3 * SLACK)))
    with plane(config(up.address, deadline="60s", extra=TRUST)) as p:
        assert late(ask(p, get(X_Request_Timeout_Ms="100")))
        up.close()


def test_the_field_has_the_name_that_the_configuration_gives(upstream):
    up = upstream(echo_handler)
    with plane(config(up.address, deadline="60s", extra=TRUST + "deadline: {header: Time-Left}\n")) as p:
        body = ask(p, get(Time_Left="500", X_Request_Timeout_Ms="1")).body
        assert int(re.findall(rb"Time-Left: (\d+)\r\n", body)[0]) <= 500 and b"X-Request-Timeout-Ms: 1\r\n" in body
    with plane(config(up.address, deadline="60s", extra=TRUST + "deadline: {header: off}\n")) as p:
        body = ask(p, get(X_Request_Timeout_Ms="0")).body
        assert body.count(b"X-Request-Timeout-Ms") == 1


def test_a_gateway_before_us_says_which_attempt_it_is_and_the_next_is_told(upstream):
    up = upstream(echo_handler)
    with plane(config(up.address, deadline="", extra=TRUST)) as p:
        assert b"X-Gwcore-Attempt: 3\r\n" in ask(p, get(X_Gwcore_Attempt="3")).body
        assert b"X-Gwcore-Attempt" not in ask(p, get(X_Gwcore_Attempt="1")).body
        assert b"X-Gwcore-Attempt: 255\r\n" in ask(p, get(X_Gwcore_Attempt="900")).body
