"""Certificates for the tests, made anew in each run, and a client that speaks TLS over a raw socket."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import trustme

CA = trustme.CA()
OTHER_CA = trustme.CA()


def issue(directory: Path, *names: str, rsa: bool = False, ca: trustme.CA = CA, common_name: str | None = None) -> str:
    """A certificate for names below directory; returns the text of a `certificates` entry."""
    made = ca.issue_cert(*names, common_name=common_name, key_type=trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA)
    stem = (names[0].replace("*", "any") if names else "none") + ("-rsa" if rsa else "")
    chain, key = directory / f"{stem}.pem", directory / f"{stem}.key"
    chain.write_bytes(b"".join(p.bytes() for p in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    return f"{{cert: {chain}, key: {key}}}"


def listener(*entries: str, more: str = "") -> str:
    """The `tls` part of a listener."""
    return f"tls: {{certificates: [{', '.join(entries)}]{', ' + more if more else ''}}}"


def client_context(*, ca: trustme.CA = CA, version: str = "", identity: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """A verifying client; version "1.2" or "1.3" pins it."""
    c = ssl.create_default_context()
    ca.configure_trust(c)
    if version:
        c.minimum_version = c.maximum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
    if identity:
        identity.configure_cert(c)
    return c


def secure(s: Any, name: str | None = "a.test", context: ssl.SSLContext | None = None, **kw: Any) -> ssl.SSLSocket:
    """TLS on a connected socket."""
    c = context or client_context()
    if name is None:
        c.check_hostname = False
    return c.wrap_socket(s, server_hostname=name, **kw)
