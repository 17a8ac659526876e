"""Models of `upstreams`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from gwcore.config.base import TOKEN, Address, Model
from gwcore.config.certs import Material
from gwcore.config.health import Health, switch
from gwcore.config.resilience import Breaker, Outlier
from gwcore.config.retry import Retry
from gwcore.config.tls import UpstreamTls
from gwcore.config.units import Duration


class Endpoint(Model):
    address: Address
    """`host:port`, `[v6]:port` or `unix:/path`."""
    weight: int = Field(1, ge=0, le=1000)
    """Share of the load among the upstream's endpoints; 0 takes it out."""


def _switched(value: Any) -> Any:
    """off and on as people write them: nothing, and every default."""
    return None if value in (False, "off") else {} if value in (True, "on") else value


_switch = BeforeValidator(_switched)


def _endpoint(value: Any) -> Any:
    return {"address": value} if isinstance(value, str) else value


class Queue(Model):
    size: int = Field(512, ge=0, le=100_000)
    """Requests that may wait for a connection, over all workers."""
    timeout: Duration = 0.25
    """How long one may wait; then 503 `queue_timeout`."""
    order: Literal["tier", "fifo"] = "tier"
    """`tier`: P0 before P1 before P2, and within a tier the oldest first, or the newest while the queue is over half full; when for 100 ms
    nobody waited less than 5 ms, requests older than 20 ms leave with 503 `queue_timeout` (with a `timeout` above 250ms all three times are
    as much longer). `fifo`: the oldest first, and nothing else."""


class Pool(Model):
    granularity: Literal["backend", "template"] = "backend"
    """One pool for each backend address, or for each connection template: address, source of the PROXY header, value of `principal`."""
    principal: str = ""
    """With `template`: a connection is reused for requests with the same value of this header only (such as Authorization, for
    upstreams that authenticate connections)."""

    @field_validator("principal")
    @classmethod
    def _field(cls, value: str) -> str:
        if value and not TOKEN.fullmatch(value):
            raise ValueError(f"{value!r} is not a header name")
        return value

    max_connections: int = Field(256, ge=1, le=1_000_000)
    """Connections to one endpoint, over all workers; beyond it requests queue."""
    max_idle: int = Field(256, ge=0, le=1_000_000)
    """Idle connections kept for one endpoint, in each worker."""
    min_idle: int = Field(0, ge=0, le=1_000_000)
    """Idle connections to one endpoint that are opened ahead of need, by all workers together, each its share of them: at the start,
    when an endpoint joins, and whenever fewer idle. Never beyond `max_connections`."""
    idle_timeout: Duration = 60.0
    """An idle connection is closed after this, or sooner where the endpoint announces less (`Keep-Alive: timeout=`, less a second) or
    was seen to close earlier."""
    max_requests: int = Field(10000, ge=0)
    """A connection is closed after so many requests; 0 = never."""
    max_age: Duration = 3600.0
    """A connection is closed after this, spread by 10 %."""
    queue: Queue = Queue()
    """Requests that wait for a connection."""


class UpstreamTimeouts(Model):
    tls: Duration = 5.0
    """A whole TLS handshake, after the connection is up; then 504 `connect_timeout`."""
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
            raise ValueError(f"hash by {self.by} needs a name, such as name: X-User; {self.name!r} is none")
        return self


class Concurrency(Model):
    mode: Annotated[
        Literal["adaptive", "fixed", "off"],
        BeforeValidator(lambda v: "off" if v is False else v, json_schema_input_type=Literal["adaptive", "fixed", "off"]),
    ] = "adaptive"
    """`adaptive`: the limit follows the latency of the answers. `fixed`: it is `limit`."""
    limit: int = Field(0, ge=0, le=1_000_000)
    """With `fixed`: most requests under way."""
    min: int = Field(8, ge=1, le=1_000_000)
    """The adaptive limit does not fall below this."""
    max: int = Field(1000, ge=1, le=1_000_000)
    """Nor rise above this."""
    start: int = Field(64, ge=1, le=1_000_000)
    """Where it begins."""

    @model_validator(mode="after")
    def _bounds(self) -> Concurrency:
        if self.mode == "fixed" and not self.limit:
            raise ValueError("mode: fixed needs a limit; write concurrency: 100, or {mode: fixed, limit: 100}")
        if self.mode != "fixed" and self.limit:
            raise ValueError("limit goes with mode: fixed; an adaptive limit has min, max and start")
        if self.mode == "adaptive" and not self.min <= self.start <= self.max:
            raise ValueError(f"start {self.start} must lie between min {self.min} and max {self.max}")
        return self

    @property
    def bounds(self) -> tuple[int, int, int]:
        """(start, least, most) for the plan; start 0 is no limit, least = most a fixed one."""
        if self.mode == "adaptive":
            return self.start, self.min, self.max
        return (self.limit, self.limit, self.limit) if self.mode == "fixed" else (0, 0, 0)


def _concurrency(value: Any) -> Any:
    if value is None or value is False or value == "off":
        return {"mode": "off"}
    if value == "adaptive":
        return {}
    if isinstance(value, int) and not isinstance(value, bool):
        return {"mode": "fixed", "limit": value}
    return value


class Upstream(Model):
    endpoints: list[Annotated[Endpoint, BeforeValidator(_endpoint, json_schema_input_type=str | Endpoint)]] = Field(
        min_length=1, max_length=1024
    )
    """Addresses, or `{address, weight}`."""
    balance: Literal["round_robin", "least_request", "ewma", "hash", "random"] = "least_request"
    """How an endpoint is chosen; least_request and ewma compare two drawn at random."""
    hash: Hash = Hash()
    """For `balance: hash`."""
    slow_start: Duration = 10.0
    """An endpoint that joins others gets a tenth of its weight at first, all of it after this time; `off` = at once. Not for `hash`."""
    pool: Pool = Pool()
    """Connections to each endpoint."""
    timeouts: UpstreamTimeouts = UpstreamTimeouts()
    """Limits on the upstream's progress."""
    tls: Annotated[
        UpstreamTls | None,
        BeforeValidator(
            _switched,
            json_schema_input_type=UpstreamTls | bool | Literal["on", "off"] | None,
        ),
    ] = None
    """Speak TLS to the endpoints; `on` = with every default."""
    _material: Material | None = PrivateAttr(None)
    """What the files of `tls` held when the configuration was checked."""
    proxy_protocol: Annotated[
        Literal["off", "v1", "v2"],
        BeforeValidator(lambda v: "off" if v is False else v, json_schema_input_type=Literal["off", "v1", "v2"]),
    ] = "off"
    """Begin each connection with a PROXY header that names the client; needs `pool.granularity: template`."""
    host: str = "preserve"
    """The Host sent: `preserve` the client's, or a literal one."""
    retry: Retry = Retry()
    """When a request is sent again."""
    breaker: Annotated[Breaker | None, _switch] = Breaker()
    """Refuses what would fail anyway, for all endpoints together; `off` = never."""
    health: Annotated[Health | None, BeforeValidator(switch, json_schema_input_type=Health | Literal["off"] | None)] = None
    """Checks of each endpoint, by the gateway itself; one that is down gets no requests."""
    outlier: Annotated[Outlier | None, _switch] = Outlier()
    """Takes out an endpoint that fails while others do not; `off` = never."""
    concurrency: Annotated[
        Concurrency,
        BeforeValidator(_concurrency, json_schema_input_type=Concurrency | int | Literal["adaptive", "off"]),
    ] = Concurrency(mode="off")
    """Most requests under way at this upstream, over all workers: `off`, a number, `adaptive`, or its fields. P2 may fill 80 % of it, P1
    90 %, P0 all. Beyond it requests queue; where none may wait, 503 `concurrency_limit`."""

    @model_validator(mode="after")
    def _warm(self) -> Upstream:
        p = self.pool
        if p.min_idle > min(p.max_connections, p.max_idle):
            raise ValueError("pool.min_idle is more than pool.max_connections or pool.max_idle allow")
        if p.min_idle and p.granularity == "template":
            raise ValueError(
                "pool.min_idle needs pool.granularity: backend; a connection of a template is made for one client, who is not known ahead"
            )
        return self

    @model_validator(mode="after")
    def _template(self) -> Upstream:
        if self.pool.granularity == "backend":
            if self.proxy_protocol != "off":
                raise ValueError(
                    "proxy_protocol names one client for a whole connection: set pool.granularity: template, so that no other client's "
                    "requests travel on it"
                )
            if self.pool.principal:
                raise ValueError("pool.principal is part of a connection template: set pool.granularity: template")
        return self

    @model_validator(mode="after")
    def _checks(self) -> Upstream:
        if self.health and self.health.kind == "tls" and self.tls is None:
            raise ValueError("health.type: tls needs tls of the upstream; for plain endpoints use tcp or http")
        return self

    @field_validator("endpoints")
    @classmethod
    def _unique(cls, value: list[Endpoint]) -> list[Endpoint]:
        seen: set[str] = set()
        for e in value:
            if e.address in seen:
                raise ValueError(f"the endpoint {e.address} is listed twice; give it a weight instead")
            seen.add(e.address)
        return value
