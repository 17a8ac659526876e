"""Copies of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from gwcore.config.base import Model
from gwcore.config.units import Duration, Size

if TYPE_CHECKING:
    from gwcore.config.schema import Config


class Cache(Model):
    size: Size = Field(64 << 20, ge=1 << 20, le=64 << 30)
    """Memory for copies of answers, which all workers share; taken as it is used, when a route has `cache`. A reload does not change it."""
    compress: Size = Field(8 << 10, le=1 << 30)
    """Bodies of so many bytes are deflated for Redis, where that makes them smaller; `off` = never."""


class RouteCache(Model):
    ttl: Duration = Field(86400.0, le=30 * 86400)
    """No answer is fresh for longer, whatever it says. How long it is, it says itself (`s-maxage`, `max-age`, `Expires`, or a targeted field);
    one that says nothing is not kept."""
    object: Size = Field(1 << 20, ge=1 << 10, le=1 << 20)
    """Larger bodies are not kept."""
    variants: int = Field(16, ge=1, le=1000)
    """Most answers of one address that differ by `Vary`."""
    stale_while_revalidate: Duration = Field(0.0, le=30 * 86400)
    """So long after its life an answer is served while one request fetches it anew; where the answer itself does not say."""
    stale_if_error: Duration = Field(0.0, le=30 * 86400)
    """So long after its life an answer is served in place of an error; where the answer itself does not say."""
    usable: Duration = Field(600.0, le=30 * 86400)
    """So long after its life the degradation ladder may serve an answer that does not forbid it."""
    requests: Literal["honour", "ignore"] = "honour"
    """Whether a client's `Cache-Control` counts (`no-cache`, `max-age`, `only-if-cached` …). `ignore` for what must not be fetched anew at anybody's
    wish."""
    set_cookie: Literal["refuse", "store"] = "refuse"
    """`store` keeps answers with `Set-Cookie`, which everybody gets then: only where they hold nothing of one client."""

    @model_validator(mode="after")
    def _ends(self) -> RouteCache:
        if self.ttl <= 0:
            raise ValueError("ttl: 0 would keep nothing; leave cache out, or say off")
        return self


def wanted(config: Config) -> bool:
    """Does a route keep copies?"""
    return any(route.cache for route in config.routes)


def shared(config: Config) -> bool:
    """Does a route keep copies in Redis as well?"""
    return any(getattr(getattr(route, "cache", None), "redis", False) for route in config.routes)
