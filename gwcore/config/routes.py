"""Models of `routes`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from gwcore._speedups.path import normalise
from gwcore.config.base import TOKEN, Model, check_headers, known_methods
from gwcore.config.cache import RouteCache
from gwcore.config.degrade import Ladder
from gwcore.config.units import Duration, Rate, Size


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
        normal = normalise(value.encode())
        if normal != value.encode():
            remedy = f"write {normal.decode()}" if normal else "correct it"
            raise ValueError(f"{value!r} can never match, for paths are compared without . and .. and needless escapes: {remedy}")
        return value

    @field_validator("host")
    @classmethod
    def _host(cls, value: list[str]) -> list[str]:
        for h in value:
            if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\]", h) or len(h) > 250:
                raise ValueError(f"{h!r} is not a host name (no port, no scheme; a wildcard is *.example.com)")
        return [h.lower() for h in value]

    _methods = field_validator("methods")(known_methods)

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


class HeaderEdits(Model):
    set: dict[str, str] = {}
    """Replace all lines of a field by one."""
    add: dict[str, str] = {}
    """Add a line."""
    remove: list[str] = []
    """Remove all lines of a field."""

    @model_validator(mode="after")
    def _names(self) -> HeaderEdits:
        check_headers(self.set, "set")
        check_headers(self.add, "add")
        check_headers(dict.fromkeys(self.remove, ""), "remove")
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
        check_headers(self.headers, "headers")
        if "date" in {name.lower() for name in self.headers}:
            raise ValueError("headers: Date is the gateway's; remove it")
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
    tunnel_idle: Duration | None = None
    """Overrides `timeouts.tunnel_idle`."""


class RouteLimits(Model):
    body_bytes: Size | None = None
    """Overrides `limits.body_bytes`."""
    body_min_rate: Rate | None = None
    """Overrides `limits.body_min_rate`."""


def _upgrade(value: Any) -> Any:
    if value is False or value == "off":
        return []
    if isinstance(value, list):
        for token in value:
            if not isinstance(token, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z/-]{1,64}", token):
                raise ValueError(f"{token!r} is not a protocol of Upgrade")
            if re.match(r"(?i)(h2c|http|tls)(/|$)", token):
                raise ValueError(
                    f"{token} would change what the gateway itself speaks on this connection; it cannot be tunnelled"
                )
        if len(value) > 16:
            raise ValueError("16 protocols at most")
        return [t.lower() for t in value]
    return value


def _cache(value: Any) -> Any:
    if value is True or value == "on":
        return {}
    return None if value is False or value == "off" else value


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
    """Changes to the request's fields; Host is the upstream's `host`."""
    response_headers: HeaderEdits = HeaderEdits()
    """Changes to the answer's fields."""
    tier: Literal["P0", "P1", "P2"] = "P1"
    """Business tier: P2 is refused first under load, then P1, P0 last (`overload`, `upstreams.*.concurrency`, `pool.queue.order`); `tiers` says what
    it promises."""
    degrade: Ladder | None = None
    """Overrides `degrade` of the route's tier."""
    upgrade: Annotated[list[str], BeforeValidator(_upgrade, json_schema_input_type=list[str] | Literal["off"])] = ["websocket"]
    """Protocols that a client may switch to (the tokens of Upgrade); of other requests the two fields are dropped. `off` = none."""
    trailers: bool = False
    """Pass trailer fields on: of requests, and of answers when the client sent `TE: trailers`. Framing, routing and control fields are
    dropped from them."""
    deadline: Duration = 0.0
    """From the request to the head of its answer, with all that lies between: waiting, connecting, retries; then 504 `deadline`.
    `off` = only what a trusted proxy says (`deadline.header`)."""
    cache: Annotated[
        RouteCache | None, BeforeValidator(_cache, json_schema_input_type=RouteCache | Literal["on", "off"] | None)
    ] = None
    """Keep copies of answers, as a shared cache by RFC 9111. `on` = with these defaults."""
    timeouts: RouteTimeouts = RouteTimeouts()
    """Overrides for this route."""
    limits: RouteLimits = RouteLimits()
    """Overrides for this route."""

    @model_validator(mode="after")
    def _one_target(self) -> Route:
        edits = self.request_headers
        if "host" in {name.lower() for name in [*edits.set, *edits.add, *edits.remove]}:
            raise ValueError(
                "request_headers: Host belongs to the request's target, which is the gateway's; set upstreams.*.host"
            )
        given = [k for k in ("upstream", "targets", "respond") if getattr(self, k)]
        if len(given) != 1:
            raise ValueError("give one of upstream, targets and respond" + (f", not {' and '.join(given)}" if given else ""))
        if self.cache and self.respond:
            raise ValueError("cache: the route answers by itself, so there is nothing to keep; remove cache")
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
