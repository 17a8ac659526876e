"""Copies on their way to other machines: nothing that is not whole, of this version and of this key is ever taken."""

from __future__ import annotations

import random
import zlib

import pytest
from gwcore._speedups.copystore import CopyStore

from gwcore import copies_wire
from gwcore.copies_wire import FRONT, HEAD, deflated, inflated, pack, unpack

OFFSET = 1_700_000_000_000
KEY = b"route\0http://a/x?y"


@pytest.fixture
def found() -> dict:
    store = CopyStore.create(1 << 20, 1)
    head = b'ETag: "1"\r\n'
    store.put(KEY, b"body" * 1000, head, b"one two", url=(6, 12), keep_ms=90_000, now=1000)
    out = store.look(KEY)
    out |= {"etag": {"off": 6, "len": 3}, "fresh_ms": 5000, "salt": 1 << 63, "age_s": 7, "flags": 5}
    store.close()
    return out


def signed(text: bytes, flags: int = 0, version: int = 1) -> bytes:
    return FRONT.pack(b"gwcp", version, flags, 0, zlib.crc32(text)) + text


@pytest.mark.parametrize("small", [False, True])
def test_what_was_packed_is_unpacked(found, small):
    packed = pack(found, OFFSET, deflated(found["body"]) if small else None)
    assert (len(packed) < 1000) == small
    assert unpack(packed, KEY, OFFSET) == {k: v for k, v in found.items() if k != "uses"}
    assert copies_wire.addressed(packed[: HEAD + len(KEY) + 7]) == ("http://a/x?y", ["one", "two"])


def test_times_are_those_of_the_wall(found):
    there = unpack(pack(found, OFFSET), KEY, OFFSET - 3000)  # a machine that was started three seconds before
    assert (there["stored_ms"], there["fresh_ms"], there["keep_ms"], there["error_ms"]) == (4000, 8000, 93_000, 0)
    there = unpack(pack(found, OFFSET), KEY, OFFSET + 10_000)
    assert (there["stored_ms"], there["fresh_ms"], there["keep_ms"]) == (0, 1, 80_000)


def test_no_damaged_byte_and_no_cut_is_taken(found):
    packed = pack(found, OFFSET, deflated(found["body"]))
    for i in range(len(packed)):
        with pytest.raises(ValueError):
            unpack(packed[:i], KEY, OFFSET)
        for bit in (1, 128):
            with pytest.raises(ValueError):
                unpack(packed[:i] + bytes([packed[i] ^ bit]) + packed[i + 1 :], KEY, OFFSET)
    with pytest.raises(ValueError):
        unpack(packed + b"\0", KEY, OFFSET)
    with pytest.raises(ValueError):
        unpack(packed, KEY + b"z", OFFSET)


def test_what_somebody_signed_is_looked_at_all_the_same(found):
    """Whoever writes to Redis can make a right sum."""
    packed = pack(found, OFFSET)
    r = random.Random(1)
    taken = 0
    for _ in range(20_000):
        text = bytearray(packed[FRONT.size :])
        for _ in range(r.randrange(1, 4)):
            text[r.randrange(HEAD - FRONT.size)] = r.choice((0, 1, 127, 128, 255, r.randrange(256)))
        try:
            there = unpack(signed(bytes(text)), KEY, OFFSET)
        except ValueError:
            continue
        taken += 1
        assert there["key"] == KEY and 100 <= there["status"] <= 599
        for span, text_ in (("url", KEY), ("etag", there["head"]), ("last_modified", there["head"]), ("vary", there["head"])):
            assert there[span]["off"] + there[span]["len"] <= len(text_)
    assert 0 < taken < 20_000
    with pytest.raises(ValueError):
        unpack(signed(packed[FRONT.size :], version=2), KEY, OFFSET)
    with pytest.raises(ValueError):
        unpack(signed(packed[FRONT.size :], flags=1), KEY, OFFSET)


def test_a_bomb_is_not_inflated():
    bomb = zlib.compress(bytes(50 << 20), 9)
    with pytest.raises(ValueError):
        inflated(bomb, 1000)
    with pytest.raises(ValueError):
        inflated(zlib.compress(b"x" * 999), 1000)
    with pytest.raises(ValueError):
        inflated(zlib.compress(b"x" * 1000) + b"more", 1000)
    assert inflated(zlib.compress(b"x" * 1000), 1000) == b"x" * 1000


def test_what_does_not_become_smaller_stays_as_it_is():
    assert deflated(random.Random(1).randbytes(10_000)) is None
    assert deflated(b"text " * 2000)
