"""The TLS part of the plan: of listeners, and of upstreams. File contents go in as they were read, so that a plan is whole."""

from __future__ import annotations

import hashlib
from typing import Any

from gwcore.config import certs
from gwcore.config.base import is_ip
from gwcore.config.schema import Listener
from gwcore.config.tables import NO_STR, Writer
from gwcore.config.tls import ListenerTls, Tls, TlsRules, UpstreamTls
from gwcore.config.upstreams import Upstream

VERSION = {"1.2": 0x0303, "1.3": 0x0304}
SESSIONS = {"off": 0, "tickets": 1, "store": 2}
CLIENT_AUTH = {"off": 0, "optional": 1, "require": 2}


def _refuse(path: tuple[Any, ...], message: str) -> None:
    raise ValueError(f"tls: {'.'.join(map(str, path))}: {message}")


class TlsWriter(Writer):
    """Collects the rows of `PlanHead.tls` and `PlanHead.clients`."""

    def __init__(self, builder: Any, tls: Tls):
        super().__init__(builder)
        self.crypto, self.asynchronous = tls.crypto, tls.crypto.asynchronous
        self.redis = tls.sessions.redis  # is behind the store of sessions
        self.servers: list[dict[str, Any]] = []
        self.clients: list[dict[str, Any]] = []

    def rows(self) -> dict[str, Any]:
        return {
            "tls": self.b.array("tls", self.servers),
            "clients": self.b.array("client", self.clients),
            "providers": self.b.array("str", [self.ctext(p) for p in self.crypto.providers]),
            "provider_path": self.ctext(self.crypto.path),
            "provider_properties": self.ctext(self.crypto.properties),
            "engine": self.ctext(self.crypto.engine),
        }

    def rules(self, tls: TlsRules) -> dict[str, Any]:
        return {
            "ciphers": self.ctext(tls.cipher_list),
            "suites": self.ctext(tls.ciphersuites),
            "groups": self.ctext(":".join(certs.groups(tls))),
            "alpn": self.text(b"".join(bytes([len(p)]) + p.encode() for p in tls.alpn)),
            "min_version": VERSION[tls.range[0]],
            "max_version": VERSION[tls.range[-1]],
        }

    def cert(self, pair: certs.Pair | None) -> dict[str, Any]:
        if pair is None:
            return {"chain": NO_STR, "key": NO_STR, "ocsp": NO_STR}
        return {"chain": self.text(pair.chain), "key": self.text(pair.key), "ocsp": self.text(pair.ocsp)}

    # ---- listeners ----

    def listener(self, listener: Listener) -> int:
        """Index + 1 of a listener's TLS; 0 = plain."""
        if listener.tls is None:
            return 0
        # a configuration that was made, not loaded, has not read its files yet
        material = listener._material or certs.read(listener.tls, _refuse, lambda *_: None)
        self.servers.append(self.server(listener.address, listener.tls, material))
        return len(self.servers)

    def server(self, address: str, tls: ListenerTls, material: certs.Material) -> dict[str, Any]:
        policies, names = certs.policies(material.pairs)
        rows = []
        for n, pairs in enumerate(policies):
            mine = [name for name, policy in names.items() if policy == n]
            rows.append(
                {"certs": self.b.array("u32", pairs), "identity": list(certs.identity(address, tls, material, mine))},
            )
        return {
            "rules": self.rules(tls),
            "certs": self.b.array("cert", [self.cert(p) for p in material.pairs]),
            "policies": self.b.array("policy", rows),
            "names": self.names({name: policy + 1 for name, policy in names.items()}),
            "client_ca": self.text(material.client_ca),
            "client_crl": self.text(material.client_crl),
            "client_auth": CLIENT_AUTH[tls.client_auth.mode],
            "client_depth": tls.client_auth.depth,
            "refuse_unknown": int(tls.unknown_name == "refuse"),
            "sessions": SESSIONS[tls.sessions],
            "redis": int(tls.sessions == "store" and self.redis),
            "lifetime_s": int(tls.lifetime),
            "asynchronous": int(self.asynchronous),
            "early": int(tls.early_data),
        }

    # ---- upstreams ----

    def upstream(self, upstream: Upstream) -> tuple[int, bytes]:
        """Index + 1 of an upstream's TLS (0 = plain), and what makes its connections differ from others."""
        tls = upstream.tls
        if tls is None:
            return 0, b""
        material = upstream._material or certs.read_upstream(tls, _refuse)
        own = material.pairs[0] if material.pairs else None
        self.clients.append(
            {
                "rules": self.rules(tls),
                "ca": self.text(material.client_ca),
                "cert": self.cert(own),
                "verify": int(tls.verify),
            }
        )
        return len(self.clients), repr((tls, material.client_ca, own and own.facts["sha256"])).encode()

    def endpoint(self, tls: UpstreamTls | None, identity: bytes, host: str) -> dict[str, Any]:
        """By what name an endpoint's certificate is known; host is empty for a unix socket."""
        if tls is None:
            return {"tls_name": NO_STR, "tls_sni": NO_STR, "tls_ip": 0, "identity": 0}
        name = tls.name or host
        sni = tls.sni or ("" if is_ip(name) else name)
        return {
            "tls_name": self.ctext(name) if tls.verify and name else NO_STR,
            "tls_sni": self.ctext(sni) if sni else NO_STR,
            "tls_ip": int(is_ip(name)),
            "identity": int.from_bytes(hashlib.sha256(identity + f"\0{name}\0{sni}".encode()).digest()[:8], "little"),
        }
