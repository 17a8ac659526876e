"""Durations and sizes as people write them: `250ms`, `5s`, `1m`, `1h`; `16KiB`, `4MiB`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION_MAX = 49 * 86400.0  # what milliseconds in 32 bits hold, in whole days
SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 1000, "MB": 10**6, "GB": 10**9}


def parse_duration(value: Any) -> float:
    """Seconds (float, at least 0) from `250ms`, `5s`, `1m`, `1h`, `1d`, `0` or `off`; ValueError otherwise."""
    if value is False or value == "off" or value == 0 and not isinstance(value, bool):
        return 0.0
    if isinstance(value, str) and (m := re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", value.strip())):
        seconds = float(m[1]) * DURATIONS[m[2]]
        if seconds > DURATION_MAX:
            raise ValueError(f"{value!r} is too long; 49d is the most")
        return seconds
    raise ValueError(f"{value!r} is not a duration; write a number with a unit: 250ms, 5s, 1m, 1h")


def parse_size(value: Any) -> int:
    """Bytes (int, at least 0) from `16KiB`, `4MiB`, a bare number of bytes, or `off` (0); ValueError otherwise."""
    if value is False or value == "off":
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (m := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|kB|MB|GB)?", value.strip())):
        return int(float(m[1]) * SIZES[m[2] or "B"])
    raise ValueError(f"{value!r} is not a size; write bytes or a number with a unit: 16KiB, 4MiB")


def parse_rate(value: Any) -> int:
    """Bytes per second from `256B/s`, `1KiB/s` or `off` (0)."""
    return parse_size(value.removesuffix("/s") if isinstance(value, str) else value)


Duration = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=str)]
Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=str | int)]
Rate = Annotated[int, BeforeValidator(parse_rate, json_schema_input_type=str)]


def format_duration(seconds: float) -> str:
    """The shortest form that reads back to the same number."""
    if seconds == 0:
        return "off"
    for unit in ("h", "m", "s"):
        if seconds >= DURATIONS[unit] and seconds % DURATIONS[unit] == 0:
            return f"{int(seconds // DURATIONS[unit])}{unit}"
    return f"{seconds * 1000:g}ms"


def format_size(n: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if n >= SIZES[unit] and n % SIZES[unit] == 0:
            return f"{n // SIZES[unit]}{unit}"
    return f"{n}B"
