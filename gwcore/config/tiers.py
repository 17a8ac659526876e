"""Models of `tiers`: what the business promises."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from gwcore.config.base import Model
from gwcore.config.units import Duration

NAMES = ("P0", "P1", "P2")


def parse_share(value: Any) -> float:
    """A share from 0 to 1 from `99.95%` or a number below 1; ValueError otherwise."""
    if isinstance(value, str) and (m := re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*%", value.strip())):
        share = float(m[1]) / 100
    elif isinstance(value, int | float) and not isinstance(value, bool):
        share = float(value)
    else:
        raise ValueError(f"{value!r} is not a share; write it with a percent sign: 99.95%")
    if not 0 < share < 1:
        raise ValueError(f"{value!r} cannot be promised: write a share above 0 % and below 100 %, such as 99.95%")
    return share


Share = Annotated[float, BeforeValidator(parse_share, json_schema_input_type=str)]


class Promise(Model):
    availability: Share
    """Share of the requests that get a good answer in time: `99.95%`. What clients did wrong themselves is not counted."""
    latency: Annotated[Duration, Field(ge=0.01, le=3600)]
    """Up to the head of the answer."""


class Sla(Model):
    file: Annotated[str, BeforeValidator(lambda v: "off" if v is False else v, json_schema_input_type=str)] = "off"
    """File in which the figures of the windows (up to 30 days) outlive a restart; written once a minute and at the end. `off` = they begin anew."""


class Compensation(Model):
    dir: Annotated[str, BeforeValidator(lambda v: "off" if v is False else v, json_schema_input_type=str)] = "off"
    """Directory of the journals of `degrade.*.compensate`, on a disk, for this gateway alone. `off` = nothing is compensated."""
    sync: Annotated[Literal["off", "always"], BeforeValidator(lambda v: "off" if v is False else v)] = "off"
    """`always`: a request is on the disk before its client is answered, which takes the disk's time on the worker's loop. `off`: it outlives
    every process of the gateway, but not the machine's loss of power."""


class Tiers(Model):
    P0: Promise = Promise(availability=0.9999, latency="100ms")  # type: ignore[arg-type]
    """Passed through, never degraded."""
    P1: Promise = Promise(availability=0.9995, latency="500ms")  # type: ignore[arg-type]
    """May be answered with copies."""
    P2: Promise = Promise(availability=0.99, latency="5s")  # type: ignore[arg-type]
    """May be answered statically."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """A promise may be written as [99.95%, 500ms]."""
        if not isinstance(value, dict):
            return value
        return {
            k: {"availability": v[0], "latency": v[1]} if isinstance(v, list) and len(v) == 2 else v for k, v in value.items()
        }

    def of(self, tier: str) -> Promise:
        promise: Promise = getattr(self, tier)
        return promise
