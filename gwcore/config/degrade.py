"""Models of `degrade`: what a request may get when its upstream does not answer, in which order, and by when."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from gwcore.config.base import TOKEN, Model, check_headers
from gwcore.config.tiers import NAMES
from gwcore.config.units import Duration, Size, format_duration

if TYPE_CHECKING:
    from gwcore.config.schema import Config

BODY_MOST = 256 << 10  # bytes of a static answer
TEMPLATE_MOST = 16 << 10  # the same of one with fields in it, which is made anew for each request
FIELDS = ("path", "method", "id", "host", "tier", "route", "reason", "query.NAME", "header.NAME")
FIELD = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
OWN_FIELDS = {"date", "content-length", "connection", "transfer-encoding", "x-gwcore-degraded", "cache-status", "age"}


def template_parts(text: str) -> list[tuple[str, str]]:
    """A template as (kind, text) in order: kind "" for text as it is, else a field of FIELDS (query and header with their name as text).
    ValueError for a field that there is not."""
    out: list[tuple[str, str]] = []
    at = 0
    for m in FIELD.finditer(text):
        if m.start() > at:
            out.append(("", text[at : m.start()]))
        kind, dot, name = m[1].partition(".")
        if dot and kind in ("query", "header") and TOKEN.fullmatch(name):
            out.append((kind, name))
        elif m[1] in FIELDS and not dot:
            out.append((m[1], ""))
        else:
            close = difflib.get_close_matches(m[1], FIELDS, 1, 0.6)
            raise ValueError(
                f"there is no field {m[1]}; "
                + (f"did you mean {{{{{close[0]}}}}}?" if close else f"known are {', '.join(FIELDS)}")
            )
        at = m.end()
    if at < len(text):
        out.append(("", text[at:]))
    return out


class Static(Model):
    status: int = Field(200, ge=200, le=599)
    """Status code of the answer."""
    headers: dict[str, str] = {}
    """Its fields. Date, Content-Length, Connection, Age, Cache-Status and X-Gwcore-Degraded are the gateway's."""
    body: str | None = None
    """Sent as UTF-8 …"""
    file: str | None = None
    """… or the bytes of this file, at most 256KiB, as they are when the configuration is read. Its name decides the Content-Type unless
    `headers` do."""
    template: bool = False
    """Fields of the request may stand in the body: `{{path}}`, `{{method}}`, `{{id}}`, `{{host}}`, `{{tier}}`, `{{route}}`, `{{reason}}`,
    `{{query.NAME}}`, `{{header.NAME}}`. They are escaped for the Content-Type (JSON, HTML and XML; of others control bytes are dropped)."""
    _content: bytes = PrivateAttr(b"")

    @model_validator(mode="after")
    def _check(self) -> Static:
        check_headers(self.headers, "headers")
        for name in self.headers:
            if name.lower() in OWN_FIELDS:
                raise ValueError(f"headers: {name} is the gateway's; remove it")
        if self.body is not None and self.file is not None:
            raise ValueError("give one of body and file, not both")
        if (self.body or self.file) and self.status in (204, 304):
            raise ValueError(f"a {self.status} answer has no body")
        if self.template and self.body is None and self.file is None:
            raise ValueError("template: on needs a body or a file")
        if self.body is not None:
            self.take(self.body.encode())
        return self

    def take(self, content: bytes) -> None:
        """This is its body; ValueError when it cannot be."""
        most = TEMPLATE_MOST if self.template else BODY_MOST
        if len(content) > most:
            raise ValueError(f"has {len(content)} bytes; {most} are the most" + (" for a template" if self.template else ""))
        if self.template:
            try:
                template_parts(content.decode())
            except UnicodeDecodeError as why:
                raise ValueError(f"is a template and not UTF-8: byte {why.start}") from None
        self._content = content

    @property
    def content(self) -> bytes:
        """Its body, before fields are put in."""
        return self._content


class Step(Model):
    live: bool = False
    """Ask the upstream; written as `live` alone."""
    cache: Literal["local", "redis"] | None = None
    """A copy in the memory of this machine, or in Redis."""
    deadline: Duration = Field(0.02, ge=0.001, le=10)
    """`cache: redis`: what takes longer is no copy."""
    static: Static | None = None
    """A prepared answer."""

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        if value == "live":
            return {"live": True}
        if isinstance(value, str):
            raise ValueError(f"{value!r} is not a step; write live, {{cache: local}}, {{cache: redis}} or {{static: {{…}}}}")
        return value

    @model_validator(mode="after")
    def _one(self) -> Step:
        if sum((self.live, self.cache is not None, self.static is not None)) != 1:
            raise ValueError("a step is one of live, cache and static")
        return self

    @property
    def kind(self) -> str:
        """live, local, redis or static."""
        return "live" if self.live else self.cache or "static"


def parse_frequency(value: Any) -> float:
    """Times a second from `10/s`, `60/m` or a number; ValueError otherwise."""
    if isinstance(value, str) and (m := re.fullmatch(r"(\d+(?:\.\d+)?)\s*/\s*([smh])", value.strip())):
        rate = float(m[1]) / {"s": 1, "m": 60, "h": 3600}[m[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        rate = float(value)
    else:
        raise ValueError(f"{value!r} is not a rate; write 10/s or 60/m")
    if not 0 < rate <= 10_000:
        raise ValueError(f"{value!r}: write a rate above 0 and at most 10000/s")
    return rate


class Compensate(Model):
    queue: int = Field(1000, ge=1, le=1_000_000)
    """Most requests that wait to be sent to one upstream. Beyond, clients get the error of the live try."""
    ttl: Duration = Field(300.0, ge=1)
    """What could not be sent by then becomes a dead letter."""
    rate: Annotated[float, BeforeValidator(parse_frequency, json_schema_input_type=str)] = 10.0
    """Most requests that are sent to one upstream in a time: `10/s`, `60/m`."""
    body: Size = Field(64 << 10, ge=0, le=1 << 20)
    """Requests with a larger body are not kept: their clients get the error of the live try. Head and body must fit into `buffers.replay` too."""


class Ladder(Model):
    budget: Duration | None = Field(None, ge=0.01, le=3600)
    """By then the answer's head has left: of the live try when it came, else of a later step. Not above the tier's `latency`, which it is when not
    given. Of P0 only with `enforce`."""
    steps: list[Step] = [Step(live=True)]
    """In order. While all is well `live` goes first; what else there is follows when live is refused, fails, or is late. P0: `live` only.
    P1: copies and `live`. P2: all of them, `static` last."""
    on_status: list[int] = [500, 502, 503, 504]
    """Answers of the upstream that count as failures of the live try, so that the next step is taken."""
    fresh: Duration = Field(30.0, ge=0)
    """Copies younger than this are served without being fetched anew."""
    usable: Duration = Field(600.0, ge=0)
    """Older ones than this are not served."""
    enforce: bool = False
    """P0 only: what has no answer within the budget gets 504 `deadline`."""

    compensate: Compensate | None = None
    """P2 only: POST, PUT, PATCH and DELETE that are answered statically are written to a journal (`compensation.dir`) before, and sent to
    their upstream once it is well. Not given: they are not."""

    @field_validator("on_status")
    @classmethod
    def _statuses(cls, value: list[int]) -> list[int]:
        for status in value:
            if not 500 <= status <= 563:
                raise ValueError(f"{status} is no failure of the upstream; write statuses from 500 to 563")
        return value

    @model_validator(mode="after")
    def _order(self) -> Ladder:
        kinds = [s.kind for s in self.steps]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ValueError(f"steps: {kind} stands there {kinds.count(kind)} times; once is enough")
        if "live" not in kinds:
            raise ValueError("steps: live is missing, so the upstream would never be asked; add it")
        if "static" in kinds and kinds[-1] != "static":
            raise ValueError("steps: static always succeeds, so it must be the last one")
        if self.fresh > self.usable:
            raise ValueError(f"fresh {format_duration(self.fresh)} is above usable {format_duration(self.usable)}")
        return self

    @property
    def static(self) -> Static | None:
        return next((s.static for s in self.steps if s.static), None)

    @property
    def copies(self) -> bool:
        return any(s.cache for s in self.steps)


class Degrade(Model):
    P0: Ladder = Ladder()
    """Of requests of tier P0."""
    P1: Ladder = Ladder()
    """Of requests of tier P1."""
    P2: Ladder = Ladder()
    """Of requests of tier P2."""

    def of(self, tier: str) -> Ladder:
        ladder: Ladder = getattr(self, tier)
        return ladder


Tell = Callable[[tuple[Any, ...], str], None]


def check_ladder(ladder: Ladder, tier: str, latency: float, at: tuple[Any, ...], error: Tell) -> None:
    """What a tier forbids."""
    for i, step in enumerate(ladder.steps):
        if tier == "P0" and step.kind != "live":
            error(
                (*at, "steps", i),
                f"P0 is never degraded: live is its only step. Remove {step.kind}, or give the route another tier",
            )
        elif tier == "P1" and step.kind == "static":
            error((*at, "steps", i), "P1 falls to copies, never to a static answer: remove static, or give the route tier P2")
    if ladder.compensate and tier != "P2":
        error(
            (*at, "compensate"),
            f"is for what is answered statically, which {tier} never is. Remove it, or give the route tier P2",
        )
    elif ladder.compensate and ladder.static is None:
        error((*at, "compensate"), "there is no static step after which anything had to be compensated: add one, or remove this")
    if ladder.enforce and tier != "P0":
        error((*at, "enforce"), f"is for P0; the budget of {tier} ends the live try whenever another step can follow. Remove it")
    if ladder.budget is not None and ladder.budget > latency:
        error(
            (*at, "budget"),
            f"{format_duration(ladder.budget)} is above the latency that {tier} promises, {format_duration(latency)} (tiers.{tier}.latency): "
            "a fallback would come too late. Lower it, or promise less",
        )


def read_static(static: Static, base: Path, at: tuple[Any, ...], error: Tell) -> None:
    """Read the file of a static answer."""
    if static.file is None:
        return
    path = base / static.file
    try:
        content = path.read_bytes()
    except OSError as why:
        error((*at, "file"), f"{path} cannot be read: {why.strerror}; make it, or write the body here")
        return
    try:
        static.take(content)
    except ValueError as why:
        error((*at, "file"), f"{path} {why}")


def check_journal(config: Config, base: Path, error: Tell) -> None:
    """The directory of the journals, and upstreams to which nothing can be sent later."""
    path = config.compensation.dir
    if path != "off" and not (base / path).is_dir():
        error(("compensation", "dir"), f"there is no directory {(base / path).absolute()}; make it, for this user alone")
    for i, route in enumerate(config.routes):
        ladder = route.degrade or config.degrade.of(route.tier)
        if route.respond is not None or ladder.compensate is None:
            continue
        for target in [route.upstream] if route.upstream else [x.upstream for x in route.targets]:
            u = config.upstreams.get(target or "")
            if u is not None and (u.tls is not None or u.proxy_protocol != "off"):
                error(
                    ("routes", i),
                    f"upstream {target} is reached by TLS or with a PROXY header, to which nothing is sent later by this version: give the route "
                    "a `degrade` without `compensate`",
                )


def check(config: Config, base: Path, error: Tell, warn: Tell) -> None:
    """Every ladder against its tier, and the files of static answers."""
    check_journal(config, base, error)
    found: list[tuple[Ladder, str, tuple[Any, ...]]] = [(config.degrade.of(tier), tier, ("degrade", tier)) for tier in NAMES]
    for i, route in enumerate(config.routes):
        if route.degrade is None:
            continue
        if route.respond is not None:
            error(("routes", i, "degrade"), "the route answers by itself, so nothing can fail; remove degrade")
            continue
        found.append((route.degrade, route.tier, ("routes", i, "degrade")))
    for ladder, tier, at in found:
        check_ladder(ladder, tier, config.tiers.of(tier).latency, at, error)
        if ladder.compensate and config.compensation.dir == "off":
            error((*at, "compensate"), "needs a journal: set compensation.dir to a directory on a disk")
        for n, step in enumerate(ladder.steps):
            if step.cache == "redis":
                warn((*at, "steps", n), "copies in Redis are not served by the ladder of this version: the step is passed over")
            elif step.cache and at[0] == "routes" and not config.routes[at[1]].cache:
                warn((*at, "steps", n), "the route keeps no copies, so there are none to serve: give it cache")
            if step.static:
                read_static(step.static, base, (*at, "steps", n, "static"), error)
