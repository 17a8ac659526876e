"""One active check of an endpoint: a connection, a TLS handshake or a request, each on a connection of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from dataclasses import dataclass, field

import httptools

from gwcore.config.base import is_ip
from gwcore.config.certs import Material
from gwcore.config.places import Place
from gwcore.config.tls import UpstreamTls
from gwcore.config.upstreams import Upstream

BODY_BYTES = 65536  # so much of a body is looked at
PROXY_HEADER = {  # of a connection that stands for nobody
    "off": b"",
    "v1": b"PROXY UNKNOWN\r\n",
    "v2": b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
}
VERSION = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class CheckFailed(Exception):
    """A check that did not pass; the text says why."""


def tls_context(tls: UpstreamTls, material: Material) -> ssl.SSLContext:
    """What an upstream's TLS asks for. ssl.SSLError or ValueError when its files cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version, context.maximum_version = VERSION[tls.range[0]], VERSION[tls.range[-1]]
    context.check_hostname = False  # by `same_name`: the name asked for and the name looked for may differ
    context.verify_mode = ssl.CERT_REQUIRED if tls.verify else ssl.CERT_NONE
    context.set_ciphers(tls.cipher_list)
    context.set_alpn_protocols(list(tls.alpn))
    if tls.verify:
        if material.client_ca:
            context.load_verify_locations(cadata=material.client_ca.decode("latin-1"))
        else:
            context.load_default_certs()
    if material.pairs:
        fd = os.memfd_create("gwcore-certificate", os.MFD_CLOEXEC)  # ssl reads files only
        try:
            os.write(fd, material.pairs[0].chain + b"\n" + material.pairs[0].key)
            context.load_cert_chain(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    return context


def same_name(names: list[str], name: str) -> bool:
    """Is a certificate for these names one for `name`? A wildcard stands for one whole label (RFC 6125)."""
    name = name.lower().rstrip(".")
    if is_ip(name):
        return name in names
    return any(n == name or n.startswith("*.") and n[1:] == "." + name.partition(".")[2] for n in names)


@dataclass
class Answer:
    """What httptools tells of a response."""

    wanted: bytes = b""
    body: bytearray = field(default_factory=bytearray)
    status: int = 0
    done: bool = False

    def __post_init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.body += data[: BODY_BYTES - len(self.body)]

    def on_message_complete(self) -> None:
        if self.status >= 200:  # not after 100 Continue and the like
            self.done = True

    @property
    def enough(self) -> bool:
        """Is everything known that was asked for?"""
        return self.done or self.status >= 200 and (not self.wanted or self.wanted in self.body or len(self.body) >= BODY_BYTES)


class Checker:
    """Checks of the endpoints of one upstream. `run` returns when a check passed; CheckFailed says why it did not."""

    def __init__(self, u: Upstream, material: Material):
        assert u.health is not None
        self.upstream, self.health, self.tls = u, u.health, u.tls
        self.context: ssl.SSLContext | None = None
        self.broken = ""
        if self.tls is not None and self.health.kind != "tcp":
            try:
                self.context = tls_context(self.tls, material)
            except (ssl.SSLError, ValueError, OSError) as why:
                self.broken = f"tls: the check cannot use the upstream's files: {why}"

    async def run(self, place: Place) -> None:
        """One check of one endpoint, within `health.timeout`."""
        doing = ["connect"]
        try:
            async with asyncio.timeout(self.health.timeout):
                await self._run(place, doing)
        except TimeoutError:
            raise CheckFailed(f"{doing[0]} timeout") from None

    async def _run(self, place: Place, doing: list[str]) -> None:
        if self.broken:
            raise CheckFailed(self.broken)
        s = await self._connect(place)
        writer: asyncio.StreamWriter | None = None
        try:
            if self.health.kind == "tcp":
                return
            loop = asyncio.get_running_loop()
            header = PROXY_HEADER[self.upstream.proxy_protocol]
            if header:
                await loop.sock_sendall(s, header)
            if self.tls is None:
                reader, writer = await asyncio.open_connection(sock=s)
            else:
                doing[0] = "tls handshake"
                reader, writer = await self._secure(s, place)
            if self.health.kind == "http":
                doing[0] = "answer"
                await self._ask(reader, writer, place)
        except OSError as why:  # ssl.SSLError is one
            raise CheckFailed(told(why)) from None
        finally:
            if writer is not None:
                writer.transport.abort()
            s.close()

    async def _connect(self, place: Place) -> socket.socket:
        """A connection to the endpoint, by the other way to the same host when the first one fails."""
        loop = asyncio.get_running_loop()
        ways: list[tuple[int, object]] = [(socket.AF_UNIX, place.path)] if place.path else []
        for ip in (place.ip, place.other):
            if ip:
                bare, _, scope = ip.partition("%")
                ways.append(
                    (socket.AF_INET6, (bare, place.port, 0, int(scope or 0))) if ":" in ip else (socket.AF_INET, (ip, place.port))
                )
        if not ways:
            raise CheckFailed(f"{place.host} does not resolve")
        failures = []
        for family, address in ways:
            s = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                async with asyncio.timeout(self.health.timeout / len(ways)):
                    await loop.sock_connect(s, address)  # type: ignore[arg-type]
                return s
            except TimeoutError:
                failures.append("timeout")
            except OSError as why:
                failures.append(told(why).removeprefix("connect "))
            except BaseException:
                s.close()
                raise
            s.close()
        raise CheckFailed("connect " + ", ".join(dict.fromkeys(failures)))

    async def _secure(self, s: socket.socket, place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        from gwcore._speedups import crypto

        assert self.tls is not None and self.context is not None
        name = self.tls.name or place.host
        sni = self.tls.sni or ("" if is_ip(name) else name)
        reader, writer = await asyncio.open_connection(sock=s, ssl=self.context, server_hostname=sni)
        if self.tls.verify and name:
            shown = writer.get_extra_info("ssl_object").getpeercert(True)
            names = crypto.certificates(ssl.DER_cert_to_PEM_cert(shown).encode())[0]["names"]
            if not same_name(names, name):
                writer.transport.abort()
                raise CheckFailed(f"tls: the certificate is for {', '.join(names) or 'no name'}, not for {name}")
        return reader, writer

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: Place) -> None:
        h, u = self.health, self.upstream
        host = h.host or (u.host if u.host != "preserve" else "localhost" if place.path else place.endpoint.address)
        head = f"{h.method} {h.path or '/'} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: gwcore-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        writer.write(head.encode("latin-1"))
        answer = Answer(h.body.encode() if h.method != "HEAD" else b"")
        while not answer.enough:
            data = await reader.read(16384)
            if not data:
                if answer.status >= 200:
                    break  # the end of the connection may be the end of the body
                raise CheckFailed("closed without an answer")
            try:
                answer.parser.feed_data(data)
            except httptools.HttpParserUpgrade:
                break
            except httptools.HttpParserError as why:
                raise CheckFailed(f"the answer is not HTTP/1.1: {why}") from None
        if not any(answer.status in r for r in h.ranges):
            raise CheckFailed(f"status {answer.status}")
        if answer.wanted not in answer.body:
            raise CheckFailed(f"no {h.body!r} in the body of status {answer.status}")


def told(why: OSError) -> str:
    """An error of a socket in few words."""
    if isinstance(why, ssl.SSLCertVerificationError):
        return f"tls: certificate not verified: {why.verify_message}"
    if isinstance(why, ssl.SSLError):
        return f"tls: {why.reason or why}".lower().replace("_", " ")
    if isinstance(why, ConnectionRefusedError):
        return "connect refused"
    if isinstance(why, ConnectionResetError):
        return "connection reset"
    return (os.strerror(why.errno) if why.errno else str(why) or type(why).__name__).lower()
