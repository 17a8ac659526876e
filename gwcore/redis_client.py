"""Clients of `redis`. Imported by who needs one, for redis-py takes its time."""

from __future__ import annotations

import contextlib
from typing import Any

import redis.asyncio as redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


def connect(url: str, cluster: bool, timeout: float) -> Any:
    """A client that never tries again by itself: who asks has a deadline. Nothing is sent yet."""
    kind: Any = RedisCluster if cluster else redis.Redis
    return kind.from_url(url, socket_connect_timeout=timeout, socket_timeout=timeout, retry=Retry(NoBackoff(), 0))


async def close(client: Any) -> None:
    with contextlib.suppress(Exception):
        await client.aclose()
