"""Plain heads are read in one pass of our own, the others by llhttp. Whatever the bytes, a head that is read as plain must be what llhttp and
the checks behind it make of it: accepted by both, with the same meaning to the last offset, or refused by both for the same reason."""

from __future__ import annotations

import os

import pytest
from gwcore._speedups.http1 import RequestProbe
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("GWCORE_FUZZ_EXAMPLES", "3000"))
NAMES = [
    "Host",
    "host",
    "Content-Length",
    "content-length",
    "Connection",
    "Keep-Alive",
    "Transfer-Encoding",
    "Upgrade",
    "TE",
    "Trailer",
    "Expect",
    "Date",
    "Server",
    "Via",
    "Cookie",
    "Accept",
    "User-Agent",
    "X-Forwarded-For",
    "X_Forwarded-For",
    "X-Request-Id",
    "x-gwcore-y",
    "Content-Type",
    "Authorization",
    "Idempotency-Key",
    "Max-Forwards",
    "Proxy-Connection",
    "HTTP2-Settings",
    "a",
    "!#$",
    "X",
]
VALUES = ["a", "a b", "5", "05", "+5", "5, 5", "99999999999999999999", "close", "keep-alive, te", "upgrade", "chunked", "100-continue", "a:8", "[::1]:8",
          "", " ", "b ", "c\t", "\td", "x" * 9, "\x80\xff\x7e", "\xff\x7f", "q\x00", "q\x0b", '"~"', "host, a", "trailers", "7"]  # fmt: skip
name = st.sampled_from(NAMES)
value = st.sampled_from(VALUES) | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)
line = st.builds(lambda n, sep, v, end: n + sep + v + end, name, st.sampled_from([": "] * 12 + [":", ":  ", " : ", ":\t"]), value,
                 st.sampled_from(["\r\n"] * 14 + ["\n", "\r", "\r\n ", "\r\r\n"]))  # fmt: skip
first = st.builds("{}{}{} HTTP/{}\r\nHost: a\r\n".format, st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PRI", "GETS", "get", "M-SEARCH"]),
                  st.sampled_from([" "] * 9 + ["  ", "\t"]), st.sampled_from(["/", "/a?b=c", "/%41/..", "/a#b", "/\x80", "/{", "*", "http://a/x", "//", "a", "/" * 2001]),
                  st.sampled_from(["1.1"] * 8 + ["1.0", "2.0", "1.1 ", "1.2"]))  # fmt: skip
status = st.builds("HTTP/{} {}{}\r\n".format, st.sampled_from(["1.1"] * 8 + ["1.0", "2.0"]), st.sampled_from(["200", "204", "304", "599", "600", "099", "100", "2x0", "20", "2000"]),
                   st.sampled_from([" OK", " ", "", " N\xe9", "  Two", " a\x7f", " a\tb"]))  # fmt: skip


@st.composite
def heads(draw: st.DrawFn, start: st.SearchStrategy[str]) -> bytes:
    text = (
        draw(start) + "".join(draw(st.lists(line, max_size=6))) + draw(st.sampled_from(["\r\n"] * 8 + ["", "\n", "\r"]))
    ).encode("latin-1")
    text += draw(st.sampled_from([b"", b"body", b"GET / HTTP/1.1\r\n"]))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=2)) + text[at + draw(st.integers(0, 2)) :]
    return text


def agree(text: bytes, response: bool) -> bool:
    """True when the head was plain."""
    probe = RequestProbe()
    plain, ours = probe.story(text, response, False)
    never, theirs = probe.story(text, response, True)
    assert not never and ours == theirs, (text, plain, ours, theirs)
    return plain


@settings(max_examples=EXAMPLES, deadline=None)
@given(heads(first))
def test_requests_mean_the_same_either_way(text):
    agree(text, False)


@settings(max_examples=EXAMPLES, deadline=None)
@given(heads(status))
def test_answers_mean_the_same_either_way(text):
    agree(text, True)


@pytest.mark.parametrize(
    ("text", "response", "plain"),
    [
        (b"GET /a?b HTTP/1.1\r\nHost: a\r\nUser-Agent: x y\r\nConnection: close\r\n\r\n", False, True),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\nbody", False, True),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", False, False),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", False, False),
        (b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", False, False),
        (b"GET / HTTP/1.1\nHost: a\n\n", False, False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 4000 + b"\r\n\r\n", False, False),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 20 + b"\r\n", False, False),
        (b"HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 5\r\n\r\nhello", True, True),
        (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", True, False),
    ],
)
def test_which_heads_are_plain(text, response, plain):
    assert agree(text, response) is plain


def test_no_prefix_of_a_plain_head_is_one():
    whole = b"GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n"
    assert [agree(whole[:n], False) for n in range(1, len(whole) + 1)] == [False] * (len(whole) - 1) + [True]
