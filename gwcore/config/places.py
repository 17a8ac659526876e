"""Where an upstream's endpoints are: an entry of the configuration is one place, or as many as its name has addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gwcore.config.base import is_ip, split_address
from gwcore.config.upstreams import Endpoint, Upstream

Addresses = Callable[[str], Sequence[str]]  # of a host name


@dataclass(frozen=True)
class Place:
    """One endpoint as the workers have it."""

    name: str
    """Its identity: the address as written, with the resolved one behind a name."""
    cell: str
    """Its name in the shared segment: by place, not by address, because addresses come and go and slots are few."""
    endpoint: Endpoint
    number: int
    """Of the entry."""
    host: str = ""
    """As written; empty for a unix socket."""
    port: int = 0
    ip: str = ""
    """Empty when the name does not resolve, and for a unix socket."""
    other: str = ""
    """The same host by an address of the other family; empty when it has none."""
    path: str = ""
    """Of a unix socket."""

    @property
    def named(self) -> bool:
        """Is it one of the addresses of a name?"""
        return bool(self.host) and not is_ip(self.host)


def places(upstream: str, u: Upstream, addresses: Addresses) -> list[Place]:
    """The endpoints of an upstream: of the family that comes first, each with one of the other family as another way to the same host."""
    found = []
    for number, e in enumerate(u.endpoints):
        host, port = split_address(e.address)
        cell = f"{upstream}|{e.address}"
        if not port:
            found.append(Place(e.address, cell, e, number, path=host))
        elif is_ip(host):
            found.append(Place(e.address, cell, e, number, host, port, host))
        else:
            known = addresses(host)
            first = [ip for ip in known if (":" in ip) == (":" in known[0])]
            other = [ip for ip in known if ip not in first] or [""]
            found += [
                Place(f"{e.address} ({ip})", cell + (f"|{i}" if i else ""), e, number, host, port, ip, other[i % len(other)])
                for i, ip in enumerate(first)
            ] or [Place(e.address, cell, e, number, host, port)]
    return found
