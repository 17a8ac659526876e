"""limits.connections_per_client."""

from __future__ import annotations

import json

from tests.support import get, plane, read_reply, wait_until

RESPOND = "routes: [{name: own, respond: {body: hi}}]\n"


def asks(s) -> int:
    s.sendall(get())
    return read_reply(s).status


def test_a_client_has_so_many_connections_and_no_more():
    with plane(RESPOND + "limits: {connections_per_client: 3}\n") as p:
        kept = [p.connect() for _ in range(3)]
        assert [asks(s) for s in kept] == [200, 200, 200]
        with p.connect() as s:
            reply = read_reply(s)  # refused at accept: the answer comes unasked
            assert reply.status == 503
            assert json.loads(reply.body)["reason"] == "connection_limit"
        assert p.reasons()["connection_limit"] == 1
        kept.pop().close()
        wait_until(lambda: p.counts()["connections"] == 2)
        with p.connect() as s:  # a place is free again
            assert asks(s) == 200
        for s in kept:
            s.close()


def test_trusted_proxies_are_exempt():
    with plane(RESPOND + "limits: {connections_per_client: 1}\ntrusted_proxies: [127.0.0.0/8]\n") as p:
        kept = [p.connect() for _ in range(4)]
        assert [asks(s) for s in kept] == [200] * 4
        for s in kept:
            s.close()


def test_a_reload_may_turn_it_off_and_on():
    with plane(RESPOND + "limits: {connections_per_client: 1}\n") as p:
        first = p.connect()
        assert asks(first) == 200
        p.reload(RESPOND)
        second = p.connect()
        assert asks(second) == 200
        p.reload(RESPOND + "limits: {connections_per_client: 2}\n")
        third = p.connect()  # the second was never counted
        assert asks(third) == 200
        for s in (first, second, third):
            s.close()


def test_a_dead_workers_share_is_given_back():
    with plane(RESPOND + "limits: {connections_per_client: 1}\n") as p:
        s = p.connect()
        assert asks(s) == 200
        p.segment.retire(0)
        with p.connect() as other:
            assert asks(other) == 200
        s.close()
        wait_until(lambda: p.counts()["connections"] == 0)
        p.segment.retire(0)  # counts taken twice in this play
