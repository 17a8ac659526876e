"""Names against a DNS server of a few lines (dnspython makes the packets)."""

from __future__ import annotations

import asyncio
import socket

import aiodns
import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from gwcore import discovery as module
from gwcore.config.base import interleaved
from gwcore.config.compile import compile_plan
from gwcore.config.load import ConfigErrors, load_text
from gwcore.discovery import Discovery, names

ONE = load_text(
    'listeners: [{address: "127.0.0.1:1"}]\nupstreams: {u: {endpoints: ["be.example:80"]}}\nroutes: [{upstream: u}]'
).config
NONE = load_text('listeners: [{address: "127.0.0.1:1"}]\nroutes: [{respond: {}}]').config


class Server(asyncio.DatagramProtocol):
    """Answers A questions with `addresses`, or refuses when there are none."""

    def __init__(self) -> None:
        self.addresses: list[str] = ["192.0.2.1"]
        self.v6: list[str] = []
        self.ttl = 0  # the resolver keeps an answer for its TTL
        self.asked = 0

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer) -> None:
        question = dns.message.from_wire(data)
        answer = dns.message.make_response(question)
        q = question.question[0]
        self.asked += 1
        if not self.addresses:
            answer.set_rcode(2)  # SERVFAIL
        elif q.rdtype == dns.rdatatype.A:
            answer.answer.append(dns.rrset.from_text_list(q.name, self.ttl, "IN", "A", self.addresses))
        elif q.rdtype == dns.rdatatype.AAAA and self.v6:
            answer.answer.append(dns.rrset.from_text_list(q.name, self.ttl, "IN", "AAAA", self.v6))
        self.transport.sendto(answer.to_wire(), peer)


class Bench:
    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.transport, self.server = await loop.create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
        port = self.transport.get_extra_info("sockname")[1]
        resolver = aiodns.DNSResolver(nameservers=["127.0.0.1"], udp_port=port, tcp_port=port, timeout=0.3, tries=1)
        self.changes, self.said = 0, []
        self.discovery = Discovery(self.changed, self.said.append, resolver)
        return self

    def changed(self) -> None:
        self.changes += 1

    async def __aexit__(self, *_) -> None:
        self.discovery.stop()
        self.transport.close()

    async def until(self, good) -> None:
        for _ in range(300):
            if good():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(self.discovery.status())


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(module, "REFRESH_S", (0.05, 0.1))
    monkeypatch.setattr(module, "FAILED_S", 0.05)


def test_names_follow_their_answers_and_keep_the_last_good_one():
    async def play() -> None:
        async with Bench() as b:
            await b.discovery.learn(ONE)
            assert b.discovery.addresses("be.example") == ("192.0.2.1",)
            assert b.discovery.status()["be.example"]["ttl_s"] == 0
            b.server.addresses = ["192.0.2.3", "192.0.2.2"]
            await b.until(lambda: b.discovery.addresses("be.example") == ("192.0.2.2", "192.0.2.3"))
            assert b.changes == 1
            b.server.addresses = []
            await b.until(lambda: b.discovery.known["be.example"].failure)
            assert b.discovery.addresses("be.example") == ("192.0.2.2", "192.0.2.3")
            await asyncio.sleep(0.2)
            assert sum("alarm: cannot resolve be.example" in line for line in b.said) == 1  # said once
            b.server.addresses = ["192.0.2.9"]
            await b.until(lambda: b.changes == 2)
            assert b.discovery.known["be.example"].failure == ""
            b.discovery.keep(NONE)
            await asyncio.sleep(0.1)
            asked = b.server.asked
            await asyncio.sleep(0.3)
            assert b.server.asked == asked

    asyncio.run(play())


def test_both_families_are_asked_for():
    async def play() -> None:
        async with Bench() as b:
            b.server.addresses, b.server.v6 = ["192.0.2.3", "192.0.2.2"], ["2001:db8::2"]
            await b.discovery.learn(ONE)
            assert b.discovery.addresses("be.example") == ("192.0.2.2", "2001:db8::2", "192.0.2.3")

    asyncio.run(play())


def test_a_name_without_an_answer_at_the_start_is_asked_for_again():
    async def play() -> None:
        async with Bench() as b:
            b.server.addresses = []
            await b.discovery.learn(ONE)
            assert b.discovery.addresses("be.example") == ()
            b.server.addresses = ["192.0.2.1"]
            await b.until(lambda: b.changes == 1)

    asyncio.run(play())


TEXT = """
listeners: [{address: "127.0.0.1:1"}]
upstreams: {be: {endpoints: ["be.example:80", "192.0.2.5:80", "[::1]:80", "unix:/tmp/x", "other.example:81"]}}
routes: [{upstream: be}]
"""


def test_each_address_of_a_name_is_an_endpoint():
    config = load_text(TEXT).config
    assert names(config) == {"be.example", "other.example"}
    blob = compile_plan(config, addresses=lambda host: ["192.0.2.1", "192.0.2.2"] if host == "be.example" else [])
    for text in (b"be.example:80 (192.0.2.1)", b"be.example:80 (192.0.2.2)", b"192.0.2.5:80", b"other.example:81"):
        assert text in blob


def test_both_families_are_taken_in_turns():
    assert interleaved({"::2", "192.0.2.2", "::1", "192.0.2.1", "::3"}) == ["192.0.2.1", "::1", "192.0.2.2", "::2", "::3"]
    blob = compile_plan(load_text(TEXT).config, addresses=lambda _: ["192.0.2.1", "2001:db8::1", "192.0.2.2"])
    assert b"be.example:80 (192.0.2.2)" in blob and b"(2001:db8::1)" not in blob  # another way to the first, no endpoint
    assert blob.count(socket.inet_pton(socket.AF_INET6, "2001:db8::1")) == 4  # each of the two addresses of each name has it
    blob = compile_plan(load_text(TEXT).config, addresses=lambda _: ["2001:db8::1"])
    assert b"be.example:80 (2001:db8::1)" in blob


@pytest.mark.parametrize(
    "pool", ["{min_idle: 5, max_connections: 4}", "{min_idle: 5, max_idle: 4}", "{min_idle: 1, granularity: template}"]
)
def test_min_idle_that_cannot_be_is_an_error(pool):
    with pytest.raises(ConfigErrors, match="min_idle"):
        load_text(TEXT.replace("be: {", f"be: {{pool: {pool}, "))
