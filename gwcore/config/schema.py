"""The configuration as models. Every key, every default and every description stands once, here and in upstreams.py and routes.py;
docs/configuration.md and the JSON Schema are generated from them. Durations are seconds, sizes bytes."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from gwcore.config.base import TOKEN, Address, Model, own_field, split_address
from gwcore.config.cache import Cache
from gwcore.config.certs import Material
from gwcore.config.degrade import Degrade
from gwcore.config.routes import Route
from gwcore.config.tiers import Compensation, Sla, Tiers
from gwcore.config.tls import ListenerTls, Redis, Tls
from gwcore.config.units import Duration, Rate, Size, format_size
from gwcore.config.upstreams import Upstream


def _switch(value: Any) -> Any:
    return {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value


def off(value: Any) -> Any:
    """The word, where YAML 1.1 read `off` as false."""
    return "off" if value is False else value


TextOrOff = Annotated[str, BeforeValidator(off, json_schema_input_type=str)]


class Listener(Model):
    address: Address
    """Where to listen: `host:port`, `[v6]:port` or `unix:/path`."""
    backlog: int | Literal["auto"] = "auto"
    """Queue of the listening socket, per worker; auto = net.core.somaxconn."""
    tls: Annotated[ListenerTls | None, BeforeValidator(lambda v: None if v in (False, "off") else v)] = None
    """TLS termination; `off` = plain HTTP."""
    proxy_protocol: Annotated[bool, BeforeValidator(_switch, json_schema_input_type=bool | Literal["on", "off"])] = False
    """Every connection begins with a PROXY header, version 1 or 2, which names the client. Only `trusted_proxies` may connect then, and
    whoever reaches a unix socket; others are closed with `bad_proxy_header`."""
    _material: Material | None = PrivateAttr(None)
    """What the files of `tls` held when the configuration was checked."""


class Admin(Model):
    address: Address = "127.0.0.1:9901"
    """Of /metrics, /status, /status/events, /healthz, /readyz, /reload, /breakers, /cache, /compensation, /cache/purge and /sessions/forget."""
    token: str = ""
    """Asked for as `Authorization: Bearer …` when set; needed beyond loopback."""

    @model_validator(mode="after")
    def _loopback(self) -> Admin:
        host, port = split_address(self.address)
        if port and not self.token:
            try:
                loopback = ipaddress.ip_address(host).is_loopback
            except ValueError:
                loopback = host == "localhost"
            if not loopback:
                raise ValueError(
                    f"admin on {self.address} is reachable from other machines: set admin.token, or listen on 127.0.0.1"
                )
        return self


class AccessLog(Model):
    path: TextOrOff = "-"
    """`-` stdout, `off`, or a file."""
    format: Literal["json"] = "json"
    """One JSON object a line."""
    buffer: Size = 64 << 10
    """Bytes that make the log thread write."""
    flush: Duration = 1.0
    """The longest that a line waits."""
    full: Literal["drop", "block"] = "drop"
    """When the disk is slower than the traffic: drop lines (counted), or stop reading new requests."""


def _count(value: Any) -> Any:
    return 0 if value is False or value == "off" else value


class Limits(Model):
    connections: int | Literal["auto"] = "auto"
    """Client connections per worker; auto = descriptors - pools - 64. Beyond: the oldest idle one is closed, else 503 `connection_limit`."""
    connections_per_client: Annotated[int, BeforeValidator(_count, json_schema_input_type=int | str)] = Field(
        0, ge=0, le=1_000_000
    )
    """Connections of one client address (IPv6: /64), over all workers; off = no limit. Beyond: 503 `connection_limit`. `trusted_proxies`
    are exempt, for behind them are many."""
    requests_per_connection: int = Field(10000, ge=1)
    """Then `Connection: close`."""
    connection_age: Duration = 3600.0
    """Then `Connection: close`, so that clients spread again."""
    url_bytes: Size = Field(8 << 10, ge=64, le=8 << 10)
    """414 `uri_too_long`."""
    header_bytes: Size = Field(32 << 10, ge=1 << 10, le=64 << 10)
    """Whole request head; 431 `headers_too_large`."""
    header_count: int = Field(100, ge=1, le=256)
    """431 `too_many_headers`."""
    trailer_bytes: Size = Field(4 << 10, ge=64, le=16000)
    """400 `bad_framing`."""
    chunk_ext_bytes: Size = 256
    """Of one chunk's size line; 400 `bad_framing`."""
    body_bytes: Size = 64 << 20
    """413 `body_too_large`; off = no limit."""
    body_min_rate: Rate = 256
    """Bytes per second of a request body, on average, after the grace; 408 `body_too_slow`."""
    body_rate_grace: Duration = 10.0
    """How long a request body may take before `body_min_rate` counts."""
    linger_bytes: Size = Field(256 << 10, le=1 << 30)
    """Most bytes of a request body that are read and dropped after a refusal; see `timeouts.linger`."""
    response_header_bytes: Size = Field(32 << 10, ge=1 << 10, le=64 << 10)
    """502 `response_headers_too_large`."""
    response_header_count: int = Field(200, ge=1, le=256)
    """502 `response_headers_too_large`."""


class Timeouts(Model):
    tls_handshake: Duration = 10.0
    """A whole TLS handshake; closed, `tls_handshake_timeout`."""
    header: Duration = 10.0
    """Whole request head, from its first byte; 408 `header_timeout`."""
    keepalive: Duration = 75.0
    """Idle between requests; closed silently."""
    body_idle: Duration = 30.0
    """Between bytes of the request body; 408 `body_timeout`."""
    client_write: Duration = 60.0
    """Between successful writes to the client; cut, `client_write_timeout`."""
    linger: Duration = 2.0
    """Reading and dropping after a refusal, so that the answer arrives."""
    tunnel_idle: Duration = 600.0
    """Of an upgraded connection on which nothing moves; then it is closed, `tunnel_idle`."""
    drain: Duration = 30.0
    """Most time for requests under way at a stop; the rest is cut."""
    drain_tunnels: Duration = 3600.0
    """Most time for upgraded connections at an upgrade of the code, which must not cut them; a stop gives them `drain`."""
    drain_delay: Duration = 0.0
    """/readyz fails for so long before listeners close."""


class Buffers(Model):
    high: Size = 128 << 10
    """Most bytes waiting in one direction of one exchange."""
    low: Size = 32 << 10
    """Reading goes on below this."""
    replay: Size = 64 << 10
    """Bytes of a request kept so that it can be sent again."""
    splice: Size = 64 << 10
    """An answer of known length with so much left moves by splice(2), through pipes of 1 MiB, 32 of them over all workers; `off` = always
    copy."""
    total: Size | Literal["auto"] = "auto"
    """Per worker, 1 MiB or more; auto = 25 % of the memory limit over the workers. Beyond: 503 `buffer_limit`."""

    @model_validator(mode="after")
    def _sizes(self) -> Buffers:
        if self.low > self.high:
            raise ValueError(
                f"low {format_size(self.low)} is above high {format_size(self.high)}: reading stops at high and goes on below low, so lower low"
            )
        return self


class Metrics(Model):
    max_series: int = Field(10_000, ge=100, le=1_000_000)
    """Most series of routes and upstreams in /metrics; those that no longer fit are added up under the label `other`."""


class Via(Model):
    on: Annotated[
        Literal["request", "response", "both", "off"],
        BeforeValidator(off, json_schema_input_type=Literal["request", "response", "both", "off"]),
    ] = "request"
    """Where a Via line is added; an own pseudonym seen again is 508 `loop`."""
    name: str = ""
    """Pseudonym; `gwcore-` and a hash of host and config path when not given."""

    @field_validator("name")
    @classmethod
    def _token(cls, value: str) -> str:
        if value and not TOKEN.fullmatch(value):
            raise ValueError(f"{value!r} is not a pseudonym; use letters, digits, hyphens and dots, no space")
        return value


class RequestId(Model):
    header: TextOrOff = "X-Request-ID"
    """Taken from trusted proxies, else made; `off` sends none."""

    @field_validator("header")
    @classmethod
    def _name(cls, value: str) -> str:
        return own_field(value, "the id of a request")


class Deadline(Model):
    header: TextOrOff = "X-Request-Timeout-Ms"
    """Field in which a trusted proxy says how many milliseconds are left for a request; the upstream is told what is left by then.
    `off` = none is read, and none sent."""

    @field_validator("header")
    @classmethod
    def _name(cls, value: str) -> str:
        return own_field(value, "a deadline")


class Shed(Model):
    P2: float = Field(0.8, gt=0, le=10)
    """Requests of tier P2 are shed from this load on, in proportion over the next 0.05, then wholly."""
    P1: float = Field(0.9, gt=0, le=10)
    """The same of P1."""
    P0: float = Field(0.98, gt=0, le=10)
    """The same of P0."""

    @model_validator(mode="after")
    def _order(self) -> Shed:
        if not self.P2 <= self.P1 <= self.P0:
            raise ValueError(f"lower tiers are shed first: P2 {self.P2:g} <= P1 {self.P1:g} <= P0 {self.P0:g} must hold")
        return self


class Overload(Model):
    shed: Annotated[
        Shed | None,
        BeforeValidator(lambda v: None if v in (False, "off") else v, json_schema_input_type=Shed | Literal["off"] | None),
    ] = Shed()
    """From which load on requests to upstreams are refused, by tier: 503 `overload`. `off` = never."""
    lag: Duration = Field(0.05, ge=0.001, le=60)
    """A loop that is so late for its timers is a load of 1."""
    wait: Duration = Field(0.25, ge=0.001, le=60)
    """Events that wait so long for the CPU are a load of 1."""


class Headers(Model):
    underscore: Literal["keep", "drop"] = "keep"
    """Client fields with an underscore in their name; aliases of the gateway's own fields are always dropped."""


class Config(Model):
    workers: int | Literal["auto"] = "auto"
    """Processes; auto = usable CPUs."""
    listeners: list[Listener] = Field(min_length=1, max_length=64)
    """Where clients connect."""
    upstreams: dict[str, Upstream] = {}
    """Backends by name."""
    routes: list[Route] = Field(min_length=1, max_length=100_000)
    """Host first (exact, wildcard, none), then exact path, longest prefix, regex; then file order."""
    admin: Admin = Admin()
    """The operator's HTTP interface."""
    tls: Tls = Tls()
    """What the TLS of all listeners shares."""
    cache: Cache = Cache()
    """Copies of answers; a route has them with its own `cache`."""
    redis: Redis = Redis()
    """The Redis that machines of a fleet share."""
    access_log: AccessLog = AccessLog()
    """One line per request."""
    limits: Limits = Limits()
    """Sizes and counts."""
    timeouts: Timeouts = Timeouts()
    """Client side and shutdown."""
    buffers: Buffers = Buffers()
    """Memory of bodies on their way."""
    metrics: Metrics = Metrics()
    """What /metrics shows."""
    overload: Annotated[
        Overload,
        BeforeValidator(
            lambda v: {"shed": None} if v in (False, "off") else v, json_schema_input_type=Overload | Literal["off"] | None
        ),
    ] = Overload()
    """What a worker does under pressure. Its load is the highest of memory, busy connections, descriptors, lateness of the loop and wait for the
    CPU, each as a share of what there is, over a second; `off` = nothing."""
    tiers: Tiers = Tiers()
    """What each tier promises: `{P1: {availability: 99.95%, latency: 500ms}}`."""
    sla: Sla = Sla()
    """How promises are watched."""
    compensation: Compensation = Compensation()
    """Where requests are kept that are to be sent later."""
    tier_header: TextOrOff = "off"
    """Field by which a trusted proxy chooses the tier of a request: P0, P1 or P2, such as `X-Gwcore-Tier`. `off` = none."""
    degrade: Degrade = Degrade()
    """What requests may get, by tier, when their upstream does not answer; a route overrides it with its own `degrade`."""
    trusted_proxies: list[str] = []
    """Networks whose X-Forwarded-* and request ids are believed."""
    via: Via = Via()
    """The Via field."""
    request_id: RequestId = RequestId()
    """The request id field."""
    deadline: Deadline = Deadline()
    """Deadlines that travel with a request; a route sets its own with `deadline`."""
    headers: Headers = Headers()
    """Treatment of client fields."""

    @model_validator(mode="after")
    def _fields(self) -> Config:
        if self.deadline.header != "off" and self.deadline.header.lower() == self.request_id.header.lower():
            raise ValueError(
                f"deadline.header and request_id.header are both {self.deadline.header}: give one of them another name"
            )
        return self

    @field_validator("tier_header")
    @classmethod
    def _tier_field(cls, value: str) -> str:
        return own_field(value, "a tier")

    @model_validator(mode="after")
    def _redis(self) -> Config:
        if self.tls.tickets.share == "redis" and not self.redis.url:
            raise ValueError("tls.tickets.share: redis needs redis.url")
        if self.tls.sessions.redis and not self.redis.url:
            raise ValueError("tls.sessions.redis: on needs redis.url")
        if (self.tls.handshake_threads or self.tls.crypto.asynchronous) and any(
            x.tls and x.tls.early_data for x in self.listeners
        ):
            raise ValueError(
                "early_data: on of a listener does not go together with tls.handshake_threads or tls.crypto.asynchronous, whose handshakes "
                "are made where no request can be answered: choose one"
            )
        return self

    @field_validator("workers")
    @classmethod
    def _workers(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= 1024:
            raise ValueError("workers must be from 1 to 1024, or auto")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        for n in value:
            try:
                ipaddress.ip_network(n, strict=False)
            except ValueError:
                raise ValueError(f"{n!r} is not a network; write 10.0.0.0/8 or an address") from None
        return value

    @field_validator("upstreams")
    @classmethod
    def _names(cls, value: dict[str, Upstream]) -> dict[str, Upstream]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name):
                raise ValueError(f"upstream name {name!r}: use 1 to 100 letters, digits, dots, underscores and hyphens")
        return value
