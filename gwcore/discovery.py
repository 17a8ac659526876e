"""Names of endpoints: the supervisor resolves them, and again when their TTL is over; workers only ever see addresses.

A name that cannot be resolved keeps its last good addresses. Nothing in here is on the way of a request.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gwcore.config.base import interleaved, is_ip, split_address

if TYPE_CHECKING:
    import aiodns

    from gwcore.config.schema import Config

REFRESH_S = (1.0, 60.0)  # whatever the TTL says
FAILED_S = 5.0  # until a name that failed is asked for again
FIRST_S = 2.0  # how long a start or a reload waits for names


@dataclass
class Name:
    """What is known of one name."""

    addresses: tuple[str, ...] = ()
    ttl_s: float = 0.0
    failure: str = ""  # of the last question; empty when it was answered
    failed_since: float = 0.0  # unix time
    task: asyncio.Task[None] | None = None


def names(config: Config) -> set[str]:
    """The host names (not addresses) of a configuration's endpoints."""
    found = set()
    for upstream in config.upstreams.values():
        for endpoint in upstream.endpoints:
            host, port = split_address(endpoint.address)
            if port and not is_ip(host):
                found.add(host)
    return found


class Discovery:
    """Keeps `addresses` of the names it was given fresh and calls `changed` after one of them changed; `say` gets lines for the operator."""

    def __init__(self, changed: Callable[[], None], say: Callable[[str], None], resolver: aiodns.DNSResolver | None = None):
        self.changed, self.say, self.resolver = changed, say, resolver
        self.known: dict[str, Name] = {}

    def addresses(self, host: str) -> tuple[str, ...]:
        """The last good addresses of a name, none when it never had any."""
        return self.known[host].addresses if host in self.known else ()

    async def learn(self, config: Config, timeout_s: float = FIRST_S) -> None:
        """Ask for names that are new, and wait for the answers, but not for ever. A name without an answer is asked for again later."""
        fresh = [h for h in names(config) if h not in self.known]
        if not fresh:
            return
        self.known.update((h, Name()) for h in fresh)
        tasks = [asyncio.ensure_future(self.ask(h)) for h in fresh]
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        for host in fresh:
            self.known[host].task = asyncio.ensure_future(self.refresh(host))

    def keep(self, config: Config) -> None:
        """Ask no more for names that this configuration does not have."""
        self._forget(self.known.keys() - names(config))

    def stop(self) -> None:
        """Ask for nothing any more."""
        self._forget(set(self.known))

    def _forget(self, hosts: set[str]) -> None:
        for host in hosts:
            name = self.known.pop(host)
            if name.task:
                name.task.cancel()

    async def refresh(self, host: str) -> None:
        """Until cancelled: ask again whenever the TTL is over."""
        while True:
            name = self.known[host]
            await asyncio.sleep(
                FAILED_S if name.failure or not name.addresses else min(max(name.ttl_s, REFRESH_S[0]), REFRESH_S[1])
            )
            before = name.addresses
            await self.ask(host)
            if name.addresses != before:
                self.say(f"{host} is now {', '.join(name.addresses)}")
                self.changed()

    async def ask(self, host: str) -> None:
        """One question. A failure changes nothing but what is said about it."""
        import aiodns

        name = self.known[host]
        try:
            if self.resolver is None:
                self.resolver = aiodns.DNSResolver()
            answer = await self.resolver.getaddrinfo(host, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM)
            found = {node.addr[0].decode() if isinstance(node.addr[0], bytes) else str(node.addr[0]) for node in answer.nodes}
            addresses = tuple(interleaved(found))
            if not addresses:
                raise OSError("no addresses")
            name.ttl_s = float(min((node.ttl for node in answer.nodes), default=0))
            name.addresses, name.failure, name.failed_since = addresses, "", 0.0
        except (aiodns.error.DNSError, OSError) as why:
            text = str(why.args[1] if len(why.args) > 1 else why)
            if not name.failure:
                name.failed_since = time.time()
                self.say(
                    f"alarm: cannot resolve {host}: {text}; "
                    + (f"going on with {', '.join(name.addresses)}" if name.addresses else "its requests get 502 dns_failed")
                )
            name.failure = text

    def status(self) -> dict[str, Any]:
        """For /status."""
        return {
            host: {"addresses": list(n.addresses), "ttl_s": n.ttl_s, "failure": n.failure, "failed_since": n.failed_since}
            for host, n in self.known.items()
        }
