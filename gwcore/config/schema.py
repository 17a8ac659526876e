"""The configuration as models. Every key, every default and every description stands here once; docs/configuration.md and the JSON
Schema are generated from it. Durations are seconds, sizes bytes."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from gwcore.config.units import Duration, Rate, Size

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
    return m[1] or m[2], int(m[3])


def _address(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not an address; write host:port, [v6]:port or unix:/path")
    split_address(value)
    return value


Address = Annotated[str, BeforeValidator(_address, json_schema_input_type=str)]


class Listener(Model):
    address: Address
    """Where to listen: `host:port`, `[v6]:port` or `unix:/path`."""
    backlog: int | Literal["auto"] = "auto"
    """Queue of the listening socket, per worker; auto = net.core.somaxconn."""
    tls: Any = None
    """TLS termination."""
    proxy_protocol: Any = False
    """PROXY protocol from trusted proxies."""

    @field_validator("tls", "proxy_protocol")
    @classmethod
    def _later(cls, value: Any) -> Any:
        if value not in (None, False, "off"):
            raise ValueError("is not available in this version of gwcore; remove it, or terminate it in front of the gateway")
        return value


class Endpoint(Model):
    address: Address
    """`host:port`, `[v6]:port` or `unix:/path`."""
    weight: int = Field(1, ge=0, le=1000)
    """Share of the load among the upstream's endpoints; 0 takes it out."""


def _endpoint(value: Any) -> Any:
    return {"address": value} if isinstance(value, str) else value


class Queue(Model):
    size: int = Field(512, ge=0, le=100_000)
    """Requests that may wait for a connection, over all workers."""
    timeout: Duration = 0.25
    """How long one may wait; then 503 `queue_timeout`."""


class Pool(Model):
    granularity: Literal["backend", "template"] = "backend"
    """One pool for each backend address, or for each connection template."""
    max_connections: int = Field(256, ge=1, le=1_000_000)
    """Connections to one endpoint, over all workers; beyond it requests queue."""
    max_idle: int = Field(256, ge=0, le=1_000_000)
    """Idle connections kept for one endpoint, in each worker."""
    idle_timeout: Duration = 60.0
    """An idle connection is closed after this."""
    max_requests: int = Field(10000, ge=0)
    """A connection is closed after so many requests; 0 = never."""
    max_age: Duration = 3600.0
    """A connection is closed after this, spread by 10 %."""
    queue: Queue = Queue()
    """Requests that wait for a connection."""


class UpstreamTimeouts(Model):
    connect: Duration = 2.0
    """To an established connection; then 504 `connect_timeout`."""
    write: Duration = 30.0
    """Between successful writes; then 504 `upstream_write_timeout`."""
    response: Duration = 30.0
    """From the sent request to the response head; then 504 `response_timeout`."""
    idle: Duration = 60.0
    """Between bytes of the response body; then the answer is cut, `response_idle`."""


class Hash(Model):
    by: Literal["client", "header", "cookie"] = "client"
    """What is hashed; a missing header or cookie falls back to the client's address."""
    name: str = ""
    """Of the header or cookie."""
    bound: float = Field(1.25, ge=1.0, le=100.0)
    """No endpoint gets more than this times the mean load."""

    @model_validator(mode="after")
    def _name(self) -> Hash:
        if self.by != "client" and not TOKEN.fullmatch(self.name):
            raise ValueError(f"hash by {self.by} needs a name")
        return self


class Retry(Model):
    attempts: int = Field(1, ge=0, le=1)
    """Extra attempts after one that could not connect."""
    on: list[Literal["connect", "stale"]] = ["connect", "stale"]
    """connect: no connection came about. stale: a reused connection closed before a byte of the answer came."""


class Upstream(Model):
    endpoints: list[Annotated[Endpoint, BeforeValidator(_endpoint, json_schema_input_type=str | Endpoint)]] = Field(
        min_length=1, max_length=1024
    )
    """Addresses, or `{address, weight}`."""
    balance: Literal["round_robin", "least_request", "ewma", "hash", "random"] = "least_request"
    """How an endpoint is chosen; least_request and ewma compare two drawn at random."""
    hash: Hash = Hash()
    """For `balance: hash`."""
    pool: Pool = Pool()
    """Connections to each endpoint."""
    timeouts: UpstreamTimeouts = UpstreamTimeouts()
    """Limits on the upstream's progress."""
    host: str = "preserve"
    """The Host sent: `preserve` the client's, or a literal one."""
    retry: Retry = Retry()
    """When a request is sent again."""
    breaker: dict[str, Any] | None = None
    """Reserved for the circuit breaker."""
    health: dict[str, Any] | None = None
    """Reserved for active health checks."""
    outlier: dict[str, Any] | None = None
    """Reserved for outlier ejection."""
    concurrency: Any = None
    """Reserved for the adaptive concurrency limit."""

    @field_validator("endpoints")
    @classmethod
    def _unique(cls, value: list[Endpoint]) -> list[Endpoint]:
        seen: set[str] = set()
        for e in value:
            if e.address in seen:
                raise ValueError(f"the endpoint {e.address} is listed twice; give it a weight instead")
            seen.add(e.address)
        return value


def _host_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Match(Model):
    path: str | None = None
    """Exactly this path."""
    prefix: str | None = None
    """Whole segments: `/api` and `/api/` both match `/api` and `/api/x`, never `/apix`."""
    regex: str | None = None
    """PCRE2, searched in the path; anchor it with ^ and $."""
    host: Annotated[list[str], BeforeValidator(_host_list, json_schema_input_type=str | list[str])] = []
    """Host names; `*.example.com` matches every name below example.com."""
    methods: list[str] = []
    """Any when empty."""
    headers: dict[str, str] = {}
    """Each must be there with this value; `*` = any value."""
    query: dict[str, str] = {}
    """Each parameter must be there with this value, compared as sent; `*` = any value."""

    @field_validator("path", "prefix")
    @classmethod
    def _slash(cls, value: str | None) -> str | None:
        if value is None:
            return value
        if not value.startswith("/") or not re.fullmatch(r"[!-~]+", value) or "?" in value or "#" in value:
            raise ValueError(f"{value!r} must begin with / and hold no space, ?, # or byte beyond ASCII (percent-encode them)")
        if value.count("/") > 60:
            raise ValueError("has more than 60 segments")
        return value

    @field_validator("host")
    @classmethod
    def _host(cls, value: list[str]) -> list[str]:
        for h in value:
            if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\]", h) or len(h) > 250:
                raise ValueError(f"{h!r} is not a host name (no port, no scheme; a wildcard is *.example.com)")
        return [h.lower() for h in value]

    @field_validator("methods")
    @classmethod
    def _methods(cls, value: list[str]) -> list[str]:
        for m in value:
            if m not in METHODS:
                raise ValueError(f"{m!r} is not a method that gwcore knows; methods are upper case: {', '.join(METHODS[:7])}, …")
        return value

    @field_validator("headers")
    @classmethod
    def _headers(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not TOKEN.fullmatch(name):
                raise ValueError(f"{name!r} is not a header name")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Match:
        given = [k for k in ("path", "prefix", "regex") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of path, prefix and regex, not {' and '.join(given)}")
        return self


def _check_headers(value: dict[str, str], what: str) -> None:
    for name, text in value.items():
        if not TOKEN.fullmatch(name):
            raise ValueError(f"{what}: {name!r} is not a header name")
        if name.lower() in FRAMING:
            raise ValueError(f"{what}: {name} belongs to the framing of messages, which is the gateway's; remove it")
        if not re.fullmatch(r"[\t -~\x80-\xff]*", text):
            raise ValueError(f"{what}: the value of {name} holds a control character or one beyond Latin-1")


class HeaderEdits(Model):
    set: dict[str, str] = {}
    """Replace all lines of a field by one."""
    add: dict[str, str] = {}
    """Add a line."""
    remove: list[str] = []
    """Remove all lines of a field."""

    @model_validator(mode="after")
    def _names(self) -> HeaderEdits:
        _check_headers(self.set, "set")
        _check_headers(self.add, "add")
        _check_headers(dict.fromkeys(self.remove, ""), "remove")
        return self


class Rewrite(Model):
    strip_prefix: str = ""
    """Taken off the front of the path; the route's prefix must begin with it."""
    replace_prefix: str = ""
    """Put in place of what strip_prefix (or, without it, the route's prefix) took."""

    @field_validator("strip_prefix", "replace_prefix")
    @classmethod
    def _slash(cls, value: str) -> str:
        if value and (not value.startswith("/") or not re.fullmatch(r"[!-~]+", value) or re.search(r"[?#%]|/\.", value)):
            raise ValueError(f"{value!r} must begin with / and be a plain path")
        return value


class Respond(Model):
    status: int = Field(200, ge=200, le=599)
    """Status code of the answer."""
    headers: dict[str, str] = {}
    """Fields of the answer; Date, Content-Length and Connection are the gateway's."""
    body: str = ""
    """Sent as UTF-8."""

    @model_validator(mode="after")
    def _check(self) -> Respond:
        _check_headers(self.headers, "headers")
        if self.body and self.status in (204, 304):
            raise ValueError(f"a {self.status} answer has no body")
        return self


class Target(Model):
    upstream: str
    """Name of an upstream."""
    weight: int = Field(1, ge=0, le=1000)
    """Share of the requests."""


class RouteTimeouts(Model):
    body_idle: Duration | None = None
    """Overrides `timeouts.body_idle`."""
    client_write: Duration | None = None
    """Overrides `timeouts.client_write`."""
    response: Duration | None = None
    """Overrides the upstream's `timeouts.response`."""
    idle: Duration | None = None
    """Overrides the upstream's `timeouts.idle`."""


class RouteLimits(Model):
    body_bytes: Size | None = None
    """Overrides `limits.body_bytes`."""
    body_min_rate: Rate | None = None
    """Overrides `limits.body_min_rate`."""


class Route(Model):
    name: str = ""
    """For log, metrics and explain; `route-N` when not given."""
    match: Match = Match()
    """Which requests it takes; all when empty."""
    upstream: str | None = None
    """Send to this upstream …"""
    targets: list[Target] = []
    """… or to several by weight (canary) …"""
    respond: Respond | None = None
    """… or answer from here."""
    rewrite: Rewrite = Rewrite()
    """Change of the path."""
    request_headers: HeaderEdits = HeaderEdits()
    """Changes to the request's fields."""
    response_headers: HeaderEdits = HeaderEdits()
    """Changes to the answer's fields."""
    tier: Literal["P0", "P1", "P2"] = "P1"
    """Business tier, in the log."""
    trailers: bool = False
    """Pass trailer fields on: of requests, and of answers when the client sent `TE: trailers`. Framing, routing and control fields are
    dropped from them."""
    timeouts: RouteTimeouts = RouteTimeouts()
    """Overrides for this route."""
    limits: RouteLimits = RouteLimits()
    """Overrides for this route."""

    @model_validator(mode="after")
    def _one_target(self) -> Route:
        given = [k for k in ("upstream", "targets", "respond") if getattr(self, k)]
        if len(given) != 1:
            raise ValueError("give one of upstream, targets and respond" + (f", not {' and '.join(given)}" if given else ""))
        if self.targets and not sum(t.weight for t in self.targets):
            raise ValueError("the weights of targets add up to 0")
        if self.rewrite.strip_prefix:
            prefix = self.match.prefix or self.match.path
            if not prefix or not (prefix.rstrip("/") + "/").startswith(self.rewrite.strip_prefix.rstrip("/") + "/"):
                raise ValueError(
                    f"rewrite.strip_prefix {self.rewrite.strip_prefix} is not the beginning of the route's prefix or path"
                )
        elif self.rewrite.replace_prefix and self.match.prefix is None and self.match.path is None:
            raise ValueError("rewrite.replace_prefix needs a prefix or path to replace")
        return self


class Admin(Model):
    address: Address = "127.0.0.1:9901"
    """Of /metrics, /status, /healthz, /readyz and /reload."""
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
    path: str = "-"
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
    drain: Duration = 30.0
    """Most time for requests under way at a stop; the rest is cut."""
    drain_delay: Duration = 0.0
    """/readyz fails for so long before listeners close."""


class Buffers(Model):
    high: Size = 128 << 10
    """Most bytes waiting in one direction of one exchange."""
    low: Size = 32 << 10
    """Reading goes on below this."""
    replay: Size = 64 << 10
    """Bytes of a request kept so that it can be sent again."""
    total: Size | Literal["auto"] = "auto"
    """Per worker; auto = 25 % of the memory limit over the workers. Beyond: 503 `buffer_limit`."""


class Metrics(Model):
    max_series: int = Field(10_000, ge=100, le=1_000_000)
    """Most series of routes and upstreams in /metrics; those that no longer fit are added up under the label `other`."""


class Via(Model):
    on: Literal["request", "response", "both", "off"] = "request"
    """Where a Via line is added; an own pseudonym seen again is 508 `loop`."""
    name: str = ""
    """Pseudonym; `gwcore-` and a hash of host and config path when not given."""

    @field_validator("name")
    @classmethod
    def _token(cls, value: str) -> str:
        if value and not TOKEN.fullmatch(value):
            raise ValueError(f"{value!r} is not a token")
        return value


class RequestId(Model):
    header: str = "X-Request-ID"
    """Taken from trusted proxies, else made; `off` sends none."""


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
    trusted_proxies: list[str] = []
    """Networks whose X-Forwarded-* and request ids are believed."""
    via: Via = Via()
    """The Via field."""
    request_id: RequestId = RequestId()
    """The request id field."""
    headers: Headers = Headers()
    """Treatment of client fields."""

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
