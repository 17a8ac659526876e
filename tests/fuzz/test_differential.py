"""Requests built and mutated by hypothesis go through a real data plane; h11, an independent parser, judges what reaches the upstream.

What the upstream gets must be whole requests for h11, one for each answer that is not a refusal, with the body that was meant; and any
split of the bytes gives the same outcome. `GWCORE_FUZZ_EXAMPLES=20000` for a long run (ci/fuzz.sh). Inputs that once mattered stand in corpus/plane.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import SLACK, Conversation, PlaneThread, Upstream, ok, proxy_config

EXAMPLES = int(os.environ.get("GWCORE_FUZZ_EXAMPLES", "150"))
CORPUS = sorted((Path(__file__).parent / "corpus" / "plane").glob("*.bin"))

token = st.text("abcXYZ-09_", min_size=1, max_size=8)
value = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(str.strip)
framing = st.sampled_from(
    ["", "Content-Length: 5\r\n", "Content-Length: 05\r\n", "Content-Length: 5\r\nContent-Length: 5\r\n", "Content-Length: +5\r\n", "Content-Length: 5, 5\r\n",
     "Transfer-Encoding: chunked\r\n", "transfer-encoding: Chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "Transfer-Encoding: xchunked\r\n",
     "Transfer-Encoding: chunked, chunked\r\n", "Transfer-Encoding:\x0bchunked\r\n", "Content-Length : 5\r\n", "Content-Length: 5\n", " Content-Length: 5\r\n",
     "X: y\r\n Content-Length: 5\r\n", "Transfer-Encoding: identity\r\n", "Connection: close\r\n", "Connection: Content-Length\r\nContent-Length: 5\r\n"]
)  # fmt: skip
body = st.sampled_from(
    [
        b"",
        b"hello",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;x\r\nhello\r\n0\r\nT: x\r\n\r\n",
        b"0\r\n\r\n",
        b"5\r\nhelloX\r\n",
        b"GET /evil HTTP/1.1\r\nHost: a\r\n\r\n",
    ]
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A request, mostly well-formed, now and then with a few bytes changed."""
    method = draw(st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS"]))
    target = draw(st.sampled_from(["/", "/a?b", "/%2e%2e/x", "/a/../b", "http://a/x", "/x y", "/#", "//", "*"]))
    fields = "".join(f"{draw(token)}: {draw(value)}\r\n" for _ in range(draw(st.integers(0, 3))))
    text = f"{method} {target} HTTP/1.{draw(st.sampled_from('10'))}\r\nHost: a\r\n{fields}{draw(framing)}\r\n".encode(
        "latin-1"
    ) + draw(body)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=2)) + text[at + draw(st.integers(0, 2)) :]
    return text


class Stage:
    def __init__(self) -> None:
        self.upstream = Upstream(self.serve)
        self.plane = PlaneThread(proxy_config(self.upstream.address, extra="timeouts: {linger: 200ms, header: 2s}"))

    def serve(self, c: Conversation) -> None:
        while True:
            head, _ = c.request()
            c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" if head.startswith(b"HEAD") else ok())


@pytest.fixture(scope="module")
def stage():
    s = Stage()
    yield s
    s.plane.at_rest()
    s.plane.close()
    s.upstream.close()


def play(stage: Stage, text: bytes, cuts: list[int]) -> tuple[list[int], bytes]:
    """(statuses of the answers, bytes at the upstream)"""
    before = [len(x) for x in stage.upstream.seen]
    out, at = b"", 0
    with stage.plane.connect() as s:
        try:
            for end in [*sorted(min(c, len(text)) for c in cuts), len(text)]:
                s.sendall(text[at:end])
                at = end
                if cuts:
                    time.sleep(0.0005)
        except OSError:
            pass
        s.settimeout(0.06 * SLACK)
        try:
            while data := s.recv(65536):
                out += data
        except (TimeoutError, OSError):
            pass
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    seen = b"".join(bytes(x)[before[i] if i < len(before) else 0 :] for i, x in enumerate(stage.upstream.seen))
    return [int(line.split(b" ")[1]) for line in out.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")], seen


def judged(seen: bytes) -> tuple[list[tuple[bytes, bytes, bytes]], int]:
    """(method, target, body) of each request by h11, and how many of them are whole: the head of one whose body turned out bad later is sent
    on, without an end. What is no request raises."""
    found, whole = [], 0
    conn = h11.Connection(h11.SERVER)
    conn.receive_data(seen)
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            assert not conn.trailing_data[0], f"h11 waits for more behind {seen!r}"
            return found, whole
        if isinstance(event, h11.Request):
            found.append((event.method, event.target, b""))
        elif isinstance(event, h11.Data):
            method, target, data = found[-1]
            found[-1] = (method, target, data + bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            whole += 1
            conn.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            conn.send(h11.EndOfMessage())
            if conn.our_state is not h11.DONE:
                return found, whole
            conn.start_next_cycle()
        else:
            return found, whole


def check(stage: Stage, text: bytes, cuts: list[int]) -> None:
    statuses, seen = play(stage, text, [])
    again, seen_again = play(stage, text, cuts)
    assert statuses == again, (text, cuts, statuses, again)
    complete = statuses.count(200)
    try:
        requests, whole = judged(seen)
    except h11.RemoteProtocolError as why:
        raise AssertionError(f"h11 refuses what was sent on: {why}: {seen!r} for {text!r}") from None
    assert complete <= whole or not seen, (text, statuses, requests)
    assert b"/evil" not in b"".join(target for _, target, _ in requests[:1]), text
    assert whole == judged(seen_again)[1]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(text=messages(), cuts=st.lists(st.integers(1, 200), max_size=4))
def test_what_is_sent_on_is_what_was_meant(stage: Stage, text: bytes, cuts: list[int]) -> None:
    check(stage, text, cuts)


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_corpus(stage: Stage, path: Path) -> None:
    check(stage, path.read_bytes(), [7, 40, 41])
