"""What is fuzzed: each target takes bytes and holds the parser to its promises. A crash, an AssertionError or any other exception is a finding.

Run over the corpora by test_targets.py, with coverage by run.py (ci/fuzz.sh).
"""

from __future__ import annotations

from collections.abc import Callable

from gwcore._speedups.path import normalise

from gwcore._speedups import probe
from gwcore.config.compile import compile_plan
from gwcore.config.load import ConfigErrors, load_text


def cuts(data: bytes) -> list[int]:
    """Some places to cut at, other ones for other bytes."""
    return sorted({(data[0] * 7 + data[-1]) % len(data), len(data) // 2, len(data) - 1} - {0}) if data else []


def head(data: bytes, response: bool, to_head: bool = False) -> None:
    whole = probe.head(data, response, to_head)
    verdict, _, size, parts = whole
    for cut in cuts(data):
        before = probe.head(data[:cut], response, to_head)
        if before[0] in ("whole", "bad"):  # what comes behind a head does not change it
            assert before == whole
        elif before[0] == "fail":
            assert verdict in ("fail", "bad"), (cut, before, whole)
    if verdict != "whole":
        return
    assert data[:size].endswith(b"\r\n\r\n")
    first, target, fields, (_, chunked, has_length, length, _) = parts
    assert not (chunked and has_length)
    assert (length >= 0) == bool(has_length)
    for (name, name_size), (value, value_size), _ in fields:
        text = data[value : value + value_size]
        assert name_size and data[name + name_size : name + name_size + 1] == b":"
        assert not set(text) & set(b"\r\n\0") and text == text.strip(b" \t")
    if response:
        assert 100 <= first <= 999
        return
    path = data[target[0][0] : target[0][0] + target[0][1]]
    normal = normalise(path)
    assert normal is None or normalise(normal) == normal
    lengths = [data[v : v + n] for (name, m), (v, n), _ in fields if data[name : name + m].lower() == b"content-length"]
    assert len(lengths) <= 1 and all(x.isdigit() and int(x) == length for x in lengths)


def request(data: bytes) -> None:
    head(data, False)


def response(data: bytes) -> None:
    """The first byte says whether HEAD was asked."""
    head(data[1:], True, data[:1] == b"h")


def chunked(data: bytes) -> None:
    whole = probe.chunks([data])
    for cut in cuts(data):
        pieces = probe.chunks([data[:cut], data[cut:]])
        if whole[0] == "fail":  # of a trailer section that is refused, pieces may have been handed out
            assert (pieces[:2], pieces[3]) == (whole[:2], whole[3]), cut
        else:
            assert pieces == whole, cut
    outcome, body, trailers, used = whole
    if outcome == "done":
        assert data[:used].endswith(b"\r\n") and probe.chunks([data[:used]]) == whole
        assert not trailers or trailers.endswith(b"\r\n")
    again = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    assert probe.chunks([again])[:2] == ("done", body)


def proxy(data: bytes) -> None:
    whole = probe.proxy(data)
    for cut in cuts(data):
        before = probe.proxy(data[:cut])
        if before[0] == "whole":
            assert before == whole
        elif before[0] == "fail":
            assert whole[0] == "fail", cut
    if whole[0] == "whole":
        used = whole[1]
        assert 0 < used <= len(data) and probe.proxy(data[: used - 1])[0] == "again"


def config(data: bytes) -> None:
    """What loads compiles; what does not says where."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    try:
        loaded = load_text(text)
    except ConfigErrors as why:
        assert why.errors and all(e.line >= 1 and e.column >= 1 for e in why.errors)
        return
    assert len(compile_plan(loaded.config, addresses=answer)) > 0


def answer(host: str) -> tuple[str, ...]:
    """Nobody is asked, but the name must be one that could be."""
    assert host.encode("idna")
    return ("192.0.2.1",)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "request": request,
    "response": response,
    "chunked": chunked,
    "proxy": proxy,
    "config": config,
}
