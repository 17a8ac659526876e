"""Runs tests/wire/*.md; tests/wire/README.md has the format."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import SLACK, Conversation, PlaneThread, Upstream, ok

HERE = Path(__file__).parent / "wire"


@dataclass
class Case:
    file: str
    line: int
    title: str
    blocks: dict[str, list[str]] = field(default_factory=dict)
    then: str = ""


def unescape(line: str) -> bytes:
    names = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "\\": "\\"}
    return re.sub(r"\\(?:x([0-9a-f]{2})|([nrt0\\]))", lambda m: chr(int(m[1], 16)) if m[1] else names[m[2]], line).encode(
        "latin-1"
    )


def to_bytes(lines: list[str]) -> bytes:
    out = b""
    for line in lines:
        joined = line.endswith("\\") and not line.endswith("\\\\")
        out += unescape(line[:-1] if joined else line) + (b"" if joined else b"\r\n")
    return out


def cases() -> list[Case]:
    found: list[Case] = []
    for path in sorted(HERE.glob("*.md")):
        if path.name == "README.md":
            continue
        block = None
        for n, line in enumerate(path.read_text().splitlines(), 1):
            if line.startswith("```"):
                block = None if block is not None else line[3:]
                if block:
                    found[-1].blocks[block] = []
            elif block is not None:
                found[-1].blocks[block].append(line)
            elif line.startswith("### "):
                found.append(Case(path.name, n, line[4:]))
            elif m := re.match(r"<!-- then: (\w+) -->", line):
                found[-1].then = m[1]
    return found


class Stage:
    """One plane and one upstream for all cases."""

    def __init__(self) -> None:
        self.answer = ok()
        self.upstream = Upstream(self.serve)
        self.plane = PlaneThread(ROUTES.format(upstream=self.upstream.address))

    def serve(self, c: Conversation) -> None:
        while True:
            c.request()
            c.send(self.answer)
            if b"Connection: close" in self.answer:
                return


ROUTES = """
via: {{name: gw-test}}
upstreams: {{be: {{endpoints: ["{upstream}"], breaker: off}}}}
routes:
  - {{match: {{host: a, path: /get, methods: [GET, HEAD]}}, upstream: be, name: get}}
  - {{match: {{host: a, regex: "^(?!/get$)"}}, upstream: be, name: all}}
  - {{match: {{host: nowhere, path: /somewhere}}, upstream: be, name: nowhere}}
  - {{match: {{path: /}}, upstream: be, name: no-host}}
"""


@pytest.fixture(scope="module")
def stage():
    s = Stage()
    yield s
    s.plane.at_rest()
    s.plane.close()
    s.upstream.close()


def play(stage: Stage, text: bytes, pieces: list[bytes]) -> tuple[bytes, bytes, bool]:
    """(reply bytes, bytes that the upstream saw, whether the gateway closed)"""
    before = [len(x) for x in stage.upstream.seen]
    out = b""
    closed = False
    with stage.plane.connect() as s:
        reader_done = threading.Event()

        def read() -> None:
            nonlocal out, closed
            s.settimeout(0.12 * SLACK)
            while True:
                try:
                    data = s.recv(65536)
                except TimeoutError:
                    if sent.is_set():
                        break
                    continue
                except OSError:
                    closed = True
                    break
                if not data:
                    closed = True
                    break
                out += data
            reader_done.set()

        sent = threading.Event()
        thread = threading.Thread(target=read)
        thread.start()
        try:
            for piece in pieces:
                s.sendall(piece)
                if len(pieces) > 1:
                    time.sleep(0.0002)
        except OSError:
            pass
        sent.set()
        thread.join(10 * SLACK)
    seen = b"".join(bytes(x)[before[i] if i < len(before) else 0 :] for i, x in enumerate(stage.upstream.seen))
    return out, seen, closed


def check_lines(lines: list[str], text: bytes, what: str, case: Case) -> None:
    fields = text.split(b"\r\n")
    for line in lines:
        if line.startswith("..."):
            assert unescape(line[3:]) in text, f"{case.file}:{case.line}: {case.title}: {what} lacks {line[3:]!r}:\n{text!r}"
        elif line.startswith("!"):
            assert unescape(line[1:]).lower() not in text.lower(), (
                f"{case.file}:{case.line}: {case.title}: {what} has {line[1:]!r}:\n{text!r}"
            )
        else:
            assert unescape(line) in fields, f"{case.file}:{case.line}: {case.title}: {what} has no line {line!r}:\n{text!r}"


@pytest.mark.parametrize("split", ["whole", "bytes"])
@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.file}:{c.line}")
def test_wire(stage: Stage, case: Case, split: str) -> None:
    # B15: any split gives the same outcome
    text = to_bytes(case.blocks["client"])
    stage.answer = to_bytes(case.blocks["upstream"]) if "upstream" in case.blocks else ok()
    pieces = [text] if split == "whole" else [text[i : i + 1] for i in range(len(text))]
    reply, seen, closed = play(stage, text, pieces)
    where = f"{case.file}:{case.line}: {case.title}"
    want = case.blocks["reply"]
    assert reply.split(b"\r\n")[0] == unescape(want[0]), f"{where}: got {reply!r}, upstream saw {seen!r}"
    check_lines(want[1:], reply, "the reply", case)
    if case.blocks.get("seen") == ["nothing"]:
        assert seen == b"", f"{where}: the upstream saw {seen!r}"
    else:
        check_lines(case.blocks.get("seen", []), seen, "the upstream's request", case)
    if case.then:
        assert closed == (case.then == "closed"), f"{where}: the connection is {'closed' if closed else 'open'}"


def test_there_are_cases() -> None:
    assert len(cases()) > 80
