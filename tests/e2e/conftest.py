"""Fixtures of the process tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.process import Process
from tests.support import Conversation, Upstream, ok


@pytest.fixture
def backend(upstream: Callable[[Callable[[Conversation], None]], Upstream]) -> Upstream:
    """Answers every request at once."""

    def handler(c: Conversation) -> None:
        while True:
            c.request()
            c.send(ok())

    return upstream(handler)


@pytest.fixture
def gateway(tmp_path: Path, backend: Upstream) -> Iterator[Callable[..., Process]]:
    """Starts gateways in front of `backend` (or another upstream); they are gone after the test."""
    made: list[Process] = []

    def make(upstream: Upstream = backend, **kw: Any) -> Process:
        made.append(Process(tmp_path, upstream, **kw))
        return made[-1]

    yield make
    for g in made:
        g.clean_up()
