"""A copy as it leaves the machine: one version, every length checked, times of the wall clock.

"gwcp", version, flags (1 = the body is deflated), CRC-32 of all that follows it; then status, lengths and times; then the texts: key, tags, head, body.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

MAGIC = b"gwcp"
VERSION = 1
DEFLATED = 1
FRONT = struct.Struct("<4sBBHI")  # magic, version, flags, 0, CRC-32
REST = struct.Struct("<HHIIQ5Q Q 8I 4I I")
TIMES = ("fresh_ms", "revalidate_ms", "error_ms", "usable_ms", "keep_ms")
SPANS = ("url", "etag", "last_modified", "vary")
HEAD = FRONT.size + REST.size
MOST = 1 << 30
LEVEL = 1  # of zlib: a third of the time of the usual one, for a few per cent more bytes
WORTH = 0.9  # a deflated body is used up to this share of the plain one


def deflated(body: bytes) -> bytes | None:
    """A smaller form of a body; None when there is none that is worth it."""
    small = zlib.compress(body, LEVEL)
    return small if len(small) <= WORTH * len(body) else None


def pack(found: dict[str, Any], offset_ms: int, small: bytes | None = None) -> bytes:
    """`found` as CopyStore.find gives it, `offset_ms` the wall clock less CLOCK_MONOTONIC; `small`: its body by `deflated`."""
    times = [found[t] + offset_ms if found[t] else 0 for t in TIMES]
    body = found["body"] if small is None else small
    spans = [n for s in SPANS for n in (found[s]["off"], found[s]["len"])]
    rest = REST.pack(
        found["status"], found["variants"], found["age_s"], found["flags"], found["salt"], *times, found["stored_ms"] + offset_ms,
        *spans, len(found["key"]), len(found["tags"]), len(found["head"]), len(body), len(found["body"]),
    )  # fmt: skip
    text = b"".join((rest, found["key"], found["tags"], found["head"], body))
    return FRONT.pack(MAGIC, VERSION, DEFLATED if small is not None else 0, 0, zlib.crc32(text)) + text


def addressed(start: bytes) -> tuple[str, list[str]]:
    """Address and tags of a packed copy, of which `start` has the beginning. ValueError when it has too little, or is none."""
    fields = _rest(start)
    key_len, tags_len = fields[19], fields[20]
    if len(start) < HEAD + key_len + tags_len:
        raise ValueError("too short")
    key, tags = start[HEAD : HEAD + key_len], start[HEAD + key_len : HEAD + key_len + tags_len]
    off, n = fields[11], fields[12]
    return key[off : off + n].decode("latin-1"), tags.decode("latin-1").split()


def _rest(data: bytes) -> tuple[int, ...]:
    if len(data) < HEAD:
        raise ValueError("too short")
    magic, version, flags, zero, _ = FRONT.unpack_from(data)
    if magic != MAGIC or version != VERSION or flags & ~DEFLATED or zero:
        raise ValueError("not a copy of this version")
    return REST.unpack_from(data, FRONT.size)


def unpack(data: bytes, key: bytes, offset_ms: int) -> dict[str, Any]:
    """What `pack` packed for that key, as CopyStore.find gives it. ValueError when it is anything else. A deflated body is inflated here."""
    fields = _rest(data)
    status, variants, age_s, flags, salt, *times = fields[:10]
    stored_ms, spans, lengths = fields[10], fields[11:19], fields[19:23]
    body_len = fields[23]
    if HEAD + sum(lengths) != len(data) or body_len > MOST:
        raise ValueError("lengths do not add up")
    crc = FRONT.unpack_from(data)[4]
    if zlib.crc32(memoryview(data)[FRONT.size :]) != crc:
        raise ValueError("damaged")
    texts, at = [], HEAD
    for n in lengths:
        texts.append(data[at : at + n])
        at += n
    if texts[0] != key:
        raise ValueError("of another key")
    if not 100 <= status <= 599 or any(spans[i] + spans[i + 1] > lengths[0 if i == 0 else 2] for i in range(0, 8, 2)):
        raise ValueError("out of range")
    body = inflated(texts[3], body_len) if data[5] & DEFLATED else texts[3]
    if len(body) != body_len:
        raise ValueError("lengths do not add up")
    there = [max(t - offset_ms, 1) if t else 0 for t in times]
    return {
        "key": key, "tags": texts[1], "head": texts[2], "body": body, "status": status, "variants": variants, "age_s": age_s, "flags": flags, "salt": salt,
        "stored_ms": max(stored_ms - offset_ms, 0), **dict(zip(TIMES, there, strict=True)), "unused": 0,
        **{s: {"off": spans[2 * i], "len": spans[2 * i + 1]} for i, s in enumerate(SPANS)},
    }  # fmt: skip


def inflated(small: bytes, size: int) -> bytes:
    """`size` bytes, never more than one beyond them in memory. ValueError when it is not just that."""
    d = zlib.decompressobj()
    try:
        body = d.decompress(small, size + 1)
    except zlib.error:
        raise ValueError("not deflated") from None
    if len(body) != size or not d.eof or d.unused_data:
        raise ValueError("lengths do not add up")
    return body
