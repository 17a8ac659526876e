"""Certificate files: read, judged and put in order for the plan."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gwcore._speedups import crypto
from gwcore.config.tls import ListenerTls, TlsRules, UpstreamTls

WEAK_RSA_BITS = 2048
WEAK = {"ANULL", "ENULL", "NULL", "ADH", "AECDH", "EXP", "EXPORT", "EXPORT40", "EXPORT56", "LOW", "RC2", "RC4", "DES", "3DES"}
AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
SOON_S = 14 * 86400.0  # a certificate that ends within is worth a warning


@dataclass
class Pair:
    """A certificate with its key, as read from disk."""

    chain: bytes
    key: bytes
    facts: dict[str, Any]
    """Of the certificate itself: see crypto.certificates."""
    ocsp: bytes = b""
    """A response to staple."""
    ocsp_ends: float = 0.0
    """When `ocsp` says nothing any more (unix time); 0 = it does not say."""


@dataclass
class Material:
    """Everything that a listener's TLS reads from files."""

    pairs: list[Pair] = field(default_factory=list)
    client_ca: bytes = b""
    client_crl: bytes = b""


Complain = Callable[[tuple[Any, ...], str], None]


def _read(path: str, where: tuple[Any, ...], error: Complain) -> bytes:
    """The file's content. An empty one is an error: in the plan it would stand for one that was never asked for, such as the system's authorities."""
    try:
        content = Path(path).read_bytes()
    except OSError as why:
        error(where, f"{path} cannot be read: {why.strerror}")
        return b""
    except ValueError:
        error(where, f"{path!r} is no path")
        return b""
    if not content:
        error(where, f"{path} is empty")
    return content


def read(tls: ListenerTls, error: Complain, warn: Complain) -> Material:
    """Read and check the files of a listener. `error` and `warn` get the path below `tls` and what is wrong; what had an error is left out."""
    out = Material()
    now = time.time()
    for i, c in enumerate(tls.certificates):
        at = ("certificates", i)
        chain, key = _read(c.cert, (*at, "cert"), error), _read(c.key, (*at, "key"), error)
        if not chain or not key:
            continue
        try:
            found = crypto.certificates(chain)
        except ValueError as why:
            error((*at, "cert"), f"{c.cert}: {why}")
            continue
        wrong = crypto.check_key(chain, key)
        if wrong:
            error((*at, "key"), f"{c.key}: {wrong}")
            continue
        own = found[0]
        for n, (one, after) in enumerate(zip(found, found[1:], strict=False)):
            if not one["signed"]:
                error(
                    (*at, "cert"),
                    f"{c.cert}: certificate {n + 2} ({after['subject']}) did not issue certificate {n + 1} ({one['subject']}); "
                    "the file must lead from the server's certificate to the root, each signed by the next",
                )
        if not own["names"] and len(tls.certificates) > 1:
            error((*at, "cert"), f"{c.cert}: has no subjectAltName, so no client can ask for it")
        if own["key"].startswith("RSA") and own["bits"] < WEAK_RSA_BITS:
            error((*at, "cert"), f"{c.cert}: RSA with {own['bits']} bits is too weak; {WEAK_RSA_BITS} are the least")
        if own["not_after"] < now:
            warn((*at, "cert"), f"{c.cert}: has expired on {day(own['not_after'])}")
        elif own["not_after"] < now + SOON_S:
            warn((*at, "cert"), f"{c.cert}: expires on {day(own['not_after'])}")
        if own["not_before"] > now:
            warn((*at, "cert"), f"{c.cert}: is not valid before {day(own['not_before'])}")
        out.pairs.append(Pair(chain, key, own, *_ocsp(c.ocsp, (*at, "ocsp"), chain, error, warn)))
    auth = tls.client_auth
    if auth.mode != "off":
        out.client_ca = _read(auth.ca, ("client_auth", "ca"), error)
        if out.client_ca:
            try:
                crypto.certificates(out.client_ca)
            except ValueError as why:
                error(("client_auth", "ca"), f"{auth.ca}: {why}")
        if auth.crl:
            out.client_crl = _read(auth.crl, ("client_auth", "crl"), error)
            try:
                for ends in crypto.crl_expiry(out.client_crl) if out.client_crl else []:
                    if ends and ends < now:
                        warn(("client_auth", "crl"), f"{auth.crl}: has expired on {day(ends)}; no client certificate is accepted")
            except ValueError as why:
                error(("client_auth", "crl"), f"{auth.crl}: {why}")
    _judge_rules(tls, error)
    return out


def _ocsp(path: str, where: tuple[Any, ...], chain: bytes, error: Complain, warn: Complain) -> tuple[bytes, float]:
    """A response to staple and when it ends. One that says nothing of this certificate today is not stapled: clients would take that for an attack."""
    der = _read(path, where, error) if path else b""
    if not der:
        return b"", 0.0
    try:
        said = crypto.ocsp(der, chain)
    except ValueError as why:
        error(where, f"{path}: {why}")
        return b"", 0.0
    now = time.time()
    if said is None:
        warn(where, f"{path}: is about another certificate, and is not stapled; fetch one for the certificate beside it")
    elif (said["next_update"] or now) < now:
        warn(where, f"{path}: has ended on {day(said['next_update'])}, and is not stapled; fetch a new one")
    else:
        if said["status"] != "good":
            warn(where, f"{path}: says that the certificate is {said['status']}; clients will refuse it")
        return der, said["next_update"] or 0.0
    return b"", 0.0


def _judge_rules(tls: TlsRules, error: Complain) -> None:
    for key, value in (("ciphers", tls.ciphers), ("ciphersuites", tls.ciphersuites)):
        if value and not crypto.accepts(key, value):
            error((key,), f"{value!r} is not understood by {crypto.version()}")
    weak = _weak(tls.ciphers or "")
    if weak:
        error(
            ("ciphers",),
            f"lets in {', '.join(weak)}, which protect nobody: name others, or leave them out with a '!' before the name",
        )
    if not groups(tls):
        error(("groups",), f"none of {', '.join(tls.groups)} is known to {crypto.version()}")


def _weak(ciphers: str) -> list[str]:
    """What a list of ciphers lets in and must not: whole names as this OpenSSL has them, and words for those that it knows no more."""
    words = [w for w in re.split(r"[:, ]+", ciphers) if w and w[0] not in "!-@"]
    return sorted({w for w in words if set(re.split(r"[+-]", w.upper())) & WEAK}) + crypto.weak_ciphers(ciphers)[:4]


def _authorities(error: Complain) -> bytes:
    """Nothing where OpenSSL finds the system's authorities by itself; else what a file of another distribution's place holds, which a wheel's
    OpenSSL does not know of."""
    file, directory = map(Path, crypto.authorities())
    if file.exists() or (directory.is_dir() and any(directory.iterdir())):
        return b""
    found = next((p for p in AUTHORITIES if Path(p).exists()), None)
    if found is None:
        error(
            ("ca",),
            f"no authorities are installed (looked at {file}, {', '.join(AUTHORITIES)}): install ca-certificates, or name a file",
        )
        return b""
    return Path(found).read_bytes()


def read_upstream(tls: UpstreamTls, error: Complain) -> Material:
    """Read and check the files of an upstream: `client_ca` holds the authorities, the only pair what we show."""
    out = Material()
    _judge_rules(tls, error)
    if tls.verify and not tls.ca:
        out.client_ca = _authorities(error)
    if tls.ca:
        out.client_ca = _read(tls.ca, ("ca",), error)
        try:
            if out.client_ca:
                crypto.certificates(out.client_ca)
        except ValueError as why:
            error(("ca",), f"{tls.ca}: {why}")
    if tls.cert:
        chain, key = _read(tls.cert, ("cert",), error), _read(tls.key, ("key",), error)
        if chain and key:
            try:
                facts = crypto.certificates(chain)[0]
            except ValueError as why:
                error(("cert",), f"{tls.cert}: {why}")
            else:
                wrong = crypto.check_key(chain, key)
                if wrong:
                    error(("key",), f"{tls.key}: {wrong}")
                out.pairs.append(Pair(chain, key, facts))
    return out


def day(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix))


def groups(tls: TlsRules) -> list[str]:
    """Those of the wanted groups that this OpenSSL knows."""
    return [g for g in tls.groups if crypto.accepts("groups", g)]


def policies(pairs: list[Pair]) -> tuple[list[list[int]], dict[str, int]]:
    """Which pairs serve which names. A policy is a list of pairs with keys of different kinds; the first policy is the default, and names
    maps each name to its policy. Of two pairs of one kind for a name the earlier one wins."""
    by_name: dict[str, list[int]] = {}
    for i, p in enumerate(pairs):
        for name in p.facts["names"] or [""]:
            mine = by_name.setdefault(name, [])
            if all(pairs[k].facts["key"] != p.facts["key"] for k in mine):
                mine.append(i)
    first = next((by_name[n] for n in pairs[0].facts["names"]), [0])
    out = [first]
    names: dict[str, int] = {}
    for name, mine in by_name.items():
        if mine not in out:
            out.append(mine)
        if name:
            names[name] = out.index(mine)
    return out, names


def identity(address: str, tls: ListenerTls, material: Material, names: list[str]) -> bytes:
    """32 bytes that differ where a session of one policy must not be resumed under another: other port, other names, other demands on clients'
    certificates (a new revocation list is one). A renewed certificate changes nothing, nor does the address: the machines of a fleet have one each."""
    auth = tls.client_auth
    text = "\0".join([address.rpartition(":")[2], auth.mode, str(auth.depth), *sorted(names)]).encode()
    clients = hashlib.sha256(material.client_ca).digest() + hashlib.sha256(material.client_crl).digest()
    return hashlib.sha256(text + b"\0" + clients).digest()
