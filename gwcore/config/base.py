"""What the models of the configuration share."""

from __future__ import annotations

import ipaddress
import re
from itertools import zip_longest
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

METHODS = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "CONNECT",
    "TRACE",
    "COPY",
    "LOCK",
    "MKCOL",
    "MOVE",
    "PROPFIND",
    "PROPPATCH",
    "SEARCH",
    "UNLOCK",
    "BIND",
    "REBIND",
    "UNBIND",
    "ACL",
    "REPORT",
    "MKACTIVITY",
    "CHECKOUT",
    "MERGE",
    "M-SEARCH",
    "NOTIFY",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "PURGE",
    "MKCALENDAR",
    "LINK",
    "UNLINK",
    "QUERY",
]
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FRAMING = {"content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "proxy-connection"}
OWN = {  # fields that say where a message goes, where it was, or who sent it, besides those that are made anew for the upstream
    "host", "expect", "via", "forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-real-ip",
    "max-forwards", "early-data", "proxy", "x-gwcore", "date", "content-type", "content-encoding", "authorization", "cookie", "range",
}  # fmt: skip


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True)


def split_address(text: str) -> tuple[str, int]:
    """(host, port) of `host:port` or `[v6]:port`, (path, 0) of `unix:/path`; ValueError otherwise."""
    if text.startswith("unix:"):
        path = text[5:]
        if not path.startswith("/") or len(path.encode()) > 100:
            raise ValueError(f"{text!r}: write unix:/absolute/path, 100 bytes at most")
        return path, 0
    m = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]/\s]+)):(\d{1,5})", text)
    if not m or not 0 < int(m[3]) < 65536:
        raise ValueError(f"{text!r} is not an address; write host:port, [v6]:port or unix:/path")
    if m[1]:
        _, _, scope = m[1].partition("%")
        if not is_ip(m[1]) or (scope and not (scope.isdigit() and int(scope) < 1 << 32)):
            raise ValueError(f"{text!r} is not an address: {m[1]!r} is no IPv6 address (an interface behind % by its number)")
    elif not is_name(m[2]):
        raise ValueError(f"{text!r} is not an address: {m[2]!r} is no host name")
    return m[1] or m[2], int(m[3])


def is_name(host: str) -> bool:
    """Can it be asked for: labels of 1 to 63 letters, digits, hyphens and underscores, 253 in all? Others than ASCII by their IDNA form."""
    try:
        ascii_form = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return False
    return len(ascii_form) <= 253 and re.fullmatch(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?", ascii_form) is not None


def is_ip(host: str) -> bool:
    """Is it an IP address, not a name?"""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def interleaved(addresses: set[str]) -> list[str]:
    """Both families in turns, IPv4 first (RFC 8305 4); each in order of text, so that an answer in another order is no change."""
    four = sorted(a for a in addresses if ":" not in a)
    six = sorted(a for a in addresses if ":" in a)
    return [a for pair in zip_longest(four, six) for a in pair if a]


def known_methods(value: list[str]) -> list[str]:
    """`value` when all of it are methods of METHODS; ValueError otherwise."""
    for m in value:
        if m not in METHODS:
            raise ValueError(f"{m!r} is not a method that gwcore knows; methods are upper case: {', '.join(METHODS[:7])}, …")
    return value


def check_headers(value: dict[str, str], what: str) -> None:
    """ValueError for fields that a message cannot have, or not from here; `what` names the key."""
    for name, text in value.items():
        if not TOKEN.fullmatch(name):
            raise ValueError(f"{what}: {name!r} is not a header name")
        if name.lower() in FRAMING:
            raise ValueError(f"{what}: {name} belongs to the framing of messages, which is the gateway's; remove it")
        if not re.fullmatch(r"[\t -~\x80-\xff]*", text):
            raise ValueError(f"{what}: the value of {name} holds a control character or one beyond Latin-1")


def own_field(value: str, what: str) -> str:
    """`value` as the name of a field that the gateway reads and writes for `what`; ValueError for one that means something else."""
    if not TOKEN.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of a header that could tell {what}; write off to have none")
    if value.lower() in FRAMING | OWN:
        raise ValueError(
            f"{value!r} is not the name of a header that could tell {what}, for it means something else: choose an X- name, or write off to "
            "have none"
        )
    return value


def _address(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not an address; write host:port, [v6]:port or unix:/path")
    split_address(value)
    return value


Address = Annotated[str, BeforeValidator(_address, json_schema_input_type=str)]
