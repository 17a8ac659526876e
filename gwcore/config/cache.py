"""Copies of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from gwcore.config.base import Model
from gwcore.config.units import Size

if TYPE_CHECKING:
    from gwcore.config.schema import Config


class Cache(Model):
    size: Size = Field(64 << 20, ge=1 << 20, le=64 << 30)
    """Memory for copies of answers, which all workers share; taken as it is used, when a route has `cache`. A reload does not change it."""
    compress: Size = Field(8 << 10, le=1 << 30)
    """Bodies of so many bytes are deflated for Redis, where that makes them smaller; `off` = never."""


def wanted(config: Config) -> bool:
    """Does a route keep copies?"""
    return any(getattr(route, "cache", None) for route in config.routes)


def shared(config: Config) -> bool:
    """Does a route keep copies in Redis as well?"""
    return any(getattr(getattr(route, "cache", None), "redis", False) for route in config.routes)
