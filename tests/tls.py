"""Certificates for the tests, made anew in each run, and a client that speaks TLS over a raw socket."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

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


def issue_ed25519(directory: Path, name: str) -> str:
    """The same with a key of Ed25519."""
    ca = x509.load_pem_x509_certificate(CA.cert_pem.bytes())
    key = Ed25519PrivateKey.generate()
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key()), critical=False)  # type: ignore[arg-type]
        .sign(serialization.load_pem_private_key(CA.private_key_pem.bytes(), None), hashes.SHA256())  # type: ignore[arg-type]
    )
    chain, file = directory / f"{name}-ed25519.pem", directory / f"{name}-ed25519.key"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return f"{{cert: {chain}, key: {file}}}"


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
