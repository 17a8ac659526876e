"""Models of `listeners[].tls`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from gwcore.config.base import Model
from gwcore.config.units import Duration

PROFILES: dict[str, dict[str, Any]] = {
    "modern": {"versions": ["1.3"], "ciphers": ""},
    "intermediate": {
        "versions": ["1.2", "1.3"],
        "ciphers": "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
        "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305",
    },
}
SUITES = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
GROUPS = ["X25519MLKEM768", "X25519", "P-256", "P-384"]


def upstream_under(tls: UpstreamTls, base: Path) -> UpstreamTls:
    """The same with every relative path below base."""
    return tls.model_copy(update={k: str(base / getattr(tls, k)) if getattr(tls, k) else "" for k in ("ca", "cert", "key")})


def under(tls: ListenerTls, base: Path) -> ListenerTls:
    """The same with every relative path below base."""

    def put(path: str) -> str:
        return str(base / path) if path else ""

    pairs = [c.model_copy(update={"cert": put(c.cert), "key": put(c.key), "ocsp": put(c.ocsp)}) for c in tls.certificates]
    auth = tls.client_auth
    auth = auth.model_copy(update={"ca": put(auth.ca), "crl": put(auth.crl)})
    return tls.model_copy(update={"certificates": pairs, "client_auth": auth})


def _switch(value: Any) -> Any:
    return {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value


def _version(value: Any) -> Any:
    return str(value) if isinstance(value, float) else value


class Certificate(Model):
    cert: str = Field(min_length=1)
    """PEM file: the certificate, then those between it and the root."""
    key: str = Field(min_length=1)
    """PEM file of its private key, without a password."""
    ocsp: str = ""
    """DER file of an OCSP response to staple; read again when it changes."""


class ClientAuth(Model):
    mode: Annotated[
        Literal["off", "optional", "require"],
        BeforeValidator(lambda v: "off" if v is False else v, json_schema_input_type=Literal["off", "optional", "require"]),
    ] = "off"
    """Ask clients for a certificate; `require` ends a handshake without a good one, `optional` only with a bad one."""
    ca: str = ""
    """PEM file of the authorities that clients' certificates must come from."""
    crl: str = ""
    """PEM file of their revocation lists."""
    depth: int = Field(3, ge=0, le=10)
    """Most certificates between a client's and the authority."""

    @model_validator(mode="after")
    def _ca(self) -> ClientAuth:
        if self.mode != "off" and not self.ca:
            raise ValueError(f"client_auth.mode {self.mode} needs client_auth.ca, or nobody could be recognised")
        return self


class TlsRules(Model):
    """Versions and algorithms, of either side."""

    profile: Literal["modern", "intermediate"] = "intermediate"
    """modern: TLS 1.3. intermediate: also 1.2 with ECDHE and AEAD ciphers."""
    versions: list[Annotated[Literal["1.2", "1.3"], BeforeValidator(_version, json_schema_input_type=str | float)]] | None = None
    """Overrides the profile's."""
    ciphers: str | None = None
    """Of TLS 1.2, OpenSSL's notation; overrides the profile's."""
    ciphersuites: str = SUITES
    """Of TLS 1.3."""
    groups: list[str] = GROUPS
    """Key exchange, most wanted first; those that this OpenSSL does not know are left out."""
    alpn: list[Literal["http/1.1"]] = Field(["http/1.1"], min_length=1)
    """Protocols offered."""

    @property
    def range(self) -> list[str]:
        """The versions in effect, ascending."""
        return sorted(set(self.versions or PROFILES[self.profile]["versions"]))

    @property
    def cipher_list(self) -> str:
        """Those of TLS 1.2; an empty list would leave the choice to OpenSSL."""
        return self.ciphers or str(PROFILES[self.profile]["ciphers"] or PROFILES["intermediate"]["ciphers"])


class UpstreamTls(TlsRules):
    verify: Annotated[bool, BeforeValidator(_switch, json_schema_input_type=bool | Literal["on", "off"])] = True
    """Check the upstream's certificate: who signed it, and that it is for `name`. Off only where the network is trusted."""
    ca: str = ""
    """PEM file of the authorities to trust; the system's when not given."""
    cert: str = ""
    """PEM file of a certificate to show the upstream, with those between it and the root."""
    key: str = ""
    """PEM file of its key."""
    name: str = Field("", max_length=250)
    """The name that the certificate must be for; the endpoint's host when not given."""
    sni: str = Field("", max_length=250)
    """The server name asked for; `name` when not given, nothing for an address."""

    @model_validator(mode="after")
    def _pair(self) -> UpstreamTls:
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key go together")
        return self


class Tickets(Model):
    share: Literal["memory", "secret", "file", "redis"] = "memory"
    """Where the keys of session tickets come from. memory: this gateway alone makes them; they outlive a reload and an upgrade. secret: made of
    `secret` and the time, so that machines with one secret and one clock resume each other's sessions. file, redis: a ring of random keys,
    kept wrapped with `secret`; in Redis one machine at a time makes new ones."""
    rotate: Duration = Field(3600.0, ge=1, le=86400)
    """How long a key issues tickets; equal on all machines that share. The next key is known to all of them one period before its use."""
    keep: int = Field(5, ge=2, le=6)
    """How many keys open tickets: the one that issues and those before it."""
    secret: str = ""
    """At least 32 characters, the same on all machines. Take it from the environment: `${TICKET_SECRET}`."""
    file: str = ""
    """Of `share: file`."""

    @model_validator(mode="after")
    def _needs(self) -> Tickets:
        if self.share != "memory" and len(self.secret) < 32:
            raise ValueError(
                f"share: {self.share} needs a secret of at least 32 characters (such as from `openssl rand -hex 32`)"
            )
        if self.share == "file" and not self.file:
            raise ValueError("share: file needs file, the path of the ring")
        return self


class Crypto(Model):
    """What OpenSSL works with. Loaded by each worker before its first certificate; a change takes effect at the next start or upgrade."""

    providers: list[str] = []
    """Providers to load, in this order; OpenSSL's own `default` when none is named."""
    path: str = ""
    """Directory of the providers' modules; OpenSSL's own when not given."""
    properties: str = ""
    """Which implementations are wanted where there are several, such as `?provider=qatprovider`."""
    engine: str = ""
    """An engine (the older interface; not in wheels): its id, or the path of its module. It becomes the default for all that it can do."""
    asynchronous: Annotated[bool, BeforeValidator(_switch, json_schema_input_type=bool | Literal["on", "off"])] = False
    """The provider or engine does private-key work elsewhere and lets the handshake wait without a thread."""


class Faults(Model):
    """Handshakes that are spoilt on purpose, to see what clients and alarms make of it. Refused unless the environment says GWCORE_CHAOS=1."""

    fail: float = Field(0.0, ge=0, le=1)
    """Share that is closed before anything is sent, `fault_injected`."""
    stall: float = Field(0.0, ge=0, le=1)
    """Share that goes on no more once the client has spoken, until `timeouts.tls_handshake`."""
    cut: float = Field(0.0, ge=0, le=1)
    """Share that is reset after our first flight."""

    @model_validator(mode="after")
    def _asked_for(self) -> Faults:
        if self.fail + self.stall + self.cut > 1:
            raise ValueError("fail, stall and cut are shares of all handshakes: together they are 1 at the most")
        if self.fail + self.stall + self.cut and os.environ.get("GWCORE_CHAOS") != "1":
            raise ValueError("faults are for tests: set GWCORE_CHAOS=1 in the gateway's environment, or remove them")
        return self


class Sessions(Model):
    cache: int = Field(20_000, ge=8, le=10_000_000)
    """Sessions that a machine keeps for all its workers, and an eighth as many that hold a client's certificate; beyond it those used longest ago
    go. Half a KiB each (2 KiB with a certificate) once used. Changes at the next start or upgrade."""
    redis: Annotated[bool, BeforeValidator(_switch, json_schema_input_type=bool | Literal["on", "off"])] = False
    """Keep them in `redis` too, so that every machine of a fleet resumes them. A handshake waits for an answer for `redis.deadline` at the
    most, then it is a full one."""
    secret: str = ""
    """At least 32 characters, the same on all machines: seals what Redis gets. Take it from the environment: `${SESSION_SECRET}`."""

    @model_validator(mode="after")
    def _needs(self) -> Sessions:
        if self.redis and len(self.secret) < 32:
            raise ValueError("redis: on needs a secret of at least 32 characters (such as from `openssl rand -hex 32`)")
        return self


class Tls(Model):
    faults: Faults = Faults()
    """Spoilt handshakes, for tests."""
    crypto: Crypto = Crypto()
    """Providers and engines."""
    handshake_threads: int = Field(0, ge=0, le=64)
    """Threads of each worker that do handshakes, at a lower priority than live traffic; 0 = the worker itself does a few in each turn. The first
    plan of a worker decides."""
    handshake_queue: int = Field(256, ge=1, le=100_000)
    """Steps of handshakes that may wait for a thread; beyond it new ones are closed, `overload`."""
    tickets: Tickets = Tickets()
    """Keys of session tickets."""
    sessions: Sessions = Sessions()
    """The store of listeners with `sessions: store`."""
    watch: Annotated[bool, BeforeValidator(_switch, json_schema_input_type=bool | Literal["on", "off"])] = False
    """Take certificates, keys and revocation lists anew when their files change; otherwise at a reload. OCSP responses always."""

    @model_validator(mode="after")
    def _one_way(self) -> Tls:
        if self.crypto.asynchronous and self.handshake_threads:
            raise ValueError("handshake_threads and crypto.asynchronous are two ways to the same end: choose one")
        return self


class Redis(Model):
    url: str = ""
    """`redis://host:port/db`, `rediss://` with TLS, or `unix:///path`; with user and password where needed. Never logged."""
    cluster: Annotated[bool, BeforeValidator(_switch, json_schema_input_type=bool | Literal["on", "off"])] = False
    """`url` is one node of a Redis Cluster."""
    deadline: Duration = Field(0.02, ge=0.001, le=10)
    """Of a look-up on a request's or handshake's way; then it goes on without."""
    prefix: str = "gwcore:"
    """Of every key."""

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        if value:
            try:
                parts = urlsplit(value)
                good = parts.scheme in ("redis", "rediss", "unix") and (parts.port or 1) > 0
            except ValueError:
                good = False
            if not good:  # without a word of it, since it may hold a password
                raise ValueError(
                    "url must begin with redis://, rediss:// or unix://, and / ? # @ of a password be written as %2F %3F %23 %40"
                )
        return value


class ListenerTls(TlsRules):
    certificates: list[Certificate] = Field(min_length=1, max_length=1000)
    """Chosen by the client's server name from the names in the certificates; RSA and ECDSA of the same names stand side by side. The first
    one serves clients that name no server, or an unknown one."""
    unknown_name: Literal["default", "refuse"] = "default"
    """A server name that no certificate has: the first certificate, or an alert."""
    client_auth: ClientAuth = ClientAuth()
    """Client certificates."""
    sessions: Annotated[
        Literal["tickets", "store", "off"],
        BeforeValidator(lambda v: "off" if v is False else v, json_schema_input_type=Literal["tickets", "store", "off"]),
    ] = "tickets"
    """How clients resume their sessions. tickets: they carry them, sealed by keys of `tls.tickets`. store: the gateway keeps them (`tls.sessions`)
    and can forget them. off: not at all."""
    session_lifetime: Duration | None = Field(None, ge=1, le=86400)
    """How long a session may be resumed, from its last use; 4h with tickets and 5min with the store when not given."""

    early_data: Annotated[bool, BeforeValidator(_switch, json_schema_input_type=bool | Literal["on", "off"])] = False
    """Answer requests that a client sends with the first message of a resumed TLS 1.3 handshake (0-RTT), up to 16 KiB. GET, HEAD and OPTIONS
    without body only; others are `too_early`. Needs `sessions: store`. Whoever copies the message can send it again to another gateway that has
    no part in the store, so upstreams see `Early-Data: 1`."""

    @model_validator(mode="after")
    def _once(self) -> ListenerTls:
        if self.early_data and self.sessions != "store":
            raise ValueError(
                f"early_data: on needs sessions: store. A session of the store admits early data once; with sessions: {self.sessions} a copy "
                "of it could be sent again and again"
            )
        if self.early_data and "1.3" not in self.range:
            raise ValueError("early_data: on needs TLS 1.3 among the versions")
        return self

    @property
    def lifetime(self) -> float:
        """The lifetime in effect."""
        return self.session_lifetime or (300.0 if self.sessions == "store" else 4 * 3600.0)

    @field_validator("client_auth", mode="before")
    @classmethod
    def _mode(cls, value: Any) -> Any:
        return {"mode": "off"} if value is False else {"mode": value} if isinstance(value, str) else value
