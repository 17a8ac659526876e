"""The corpora through their targets, and each input a little changed, the same way every time."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
CHANGES = {"config": 2}  # of each input; a configuration takes milliseconds
TOKENS = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"0",
    b";",
    b",",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"\xff",
]


def changed(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data) + 1)
    kind = dice.randrange(4)
    if kind == 0:
        return data[:at] + dice.choice(TOKENS) + data[at:]
    if kind == 1:
        return data[:at] + data[at + dice.randrange(1, 8) :]
    if kind == 2:
        return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
    return data[:at] + data[dice.randrange(len(data) + 1) :]


@pytest.mark.parametrize("name", TARGETS)
def test_corpus_and_its_neighbours(name: str) -> None:
    files = sorted((CORPUS / name).iterdir())
    assert files
    for path in files:
        data = path.read_bytes()
        TARGETS[name](data)
        dice = random.Random(zlib.crc32(data))
        for _ in range(CHANGES.get(name, 30)):
            text = changed(data, dice)
            try:
                TARGETS[name](text)
            except Exception as why:
                raise AssertionError(f"{name}: {path.name} changed to {text!r}") from why
