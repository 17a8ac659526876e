"""Models of `upstreams.*.health`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from gwcore.config.base import Model
from gwcore.config.units import Duration


def status_range(text: str) -> range:
    """`200` or `200-299` as a range of status codes; ValueError otherwise."""
    m = re.fullmatch(r"([1-5]\d\d)(?:\s*-\s*([1-5]\d\d))?", text)
    if not m or int(m[2] or m[1]) < int(m[1]):
        raise ValueError(f"{text!r} is no status; write 200, or a range such as 200-299")
    return range(int(m[1]), int(m[2] or m[1]) + 1)


class Health(Model):
    type: Literal["http", "tcp", "tls"] | None = None
    """`http`: a request and its answer. `tcp`: a connection. `tls`: a handshake. When it is not given: `http` if `path` is, else no checks. TLS
    is spoken as `tls` of the upstream says."""
    path: str = Field("", max_length=1000)
    """Asked for by `http`; `/` when not given. A page that looks at what the endpoint itself needs, not at what all endpoints share."""
    method: Literal["GET", "HEAD", "OPTIONS"] = "GET"
    """Of `http`."""
    host: str = Field("", max_length=255)
    """The Host sent; the upstream's `host`, or the endpoint's address, when not given."""
    status: Annotated[
        list[str],
        BeforeValidator(lambda v: v if isinstance(v, list) else [v], json_schema_input_type=list[int | str] | int | str),
    ] = Field(["200-399"], min_length=1)
    """What a good answer has: codes and ranges."""
    body: str = Field("", max_length=1000)
    """A text that a good answer has in the first 64 KiB of its body."""
    interval: Duration = Field(5.0, ge=0.05, le=86400)
    """From check to check of one endpoint; a second at the most until there is a first verdict."""
    jitter: float = Field(0.2, ge=0, le=0.5)
    """Each interval is longer or shorter by up to this share, so that checks do not come in step."""
    timeout: Duration = Field(2.0, ge=0.01, le=60)
    """Of a whole check."""
    fall: int = Field(3, ge=1, le=100)
    """So many failed checks in a row, and an endpoint is down."""
    rise: int = Field(2, ge=1, le=100)
    """So many passed checks in a row, and it is up again, with `slow_start`."""

    panic: float = Field(0.5, ge=0, le=1)
    """With fewer usable endpoints than this share of the upstream's, or none, all of them get requests: the few that are left would drown."""

    @property
    def kind(self) -> str:
        """The type in effect; empty = no checks."""
        return self.type or ("http" if self.path else "")

    @property
    def ranges(self) -> list[range]:
        """`status`, parsed."""
        return [status_range(s) for s in self.status]

    @field_validator("status")
    @classmethod
    def _status(cls, value: list[str]) -> list[str]:
        for text in value:
            status_range(text)
        return value

    @field_validator("path")
    @classmethod
    def _path(cls, value: str) -> str:
        if value and not re.fullmatch(r"/[!-~]*", value):
            raise ValueError(f"{value!r} is no path; it begins with / and has neither spaces nor anything beyond ASCII")
        return value

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        if not re.fullmatch(r"[!-~]*", value):
            raise ValueError(f"{value!r} is no host")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Health:
        if self.body and self.method == "HEAD":
            raise ValueError("the answer to HEAD has no body to look at: remove body, or use GET")
        if self.kind in ("tcp", "tls"):
            for key in ("path", "host", "body", "method", "status"):
                if key in self.model_fields_set:
                    raise ValueError(f"{key} is for checks of type http, not {self.kind}")
        return self


def switch(value: Any) -> Any:
    """`off` for no checks."""
    return None if value in (False, "off") else value
