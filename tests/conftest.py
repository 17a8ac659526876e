"""Fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support import Conversation, Upstream


@pytest.fixture
def upstream() -> Iterator[Callable[[Callable[[Conversation], None]], Upstream]]:
    """Makes upstreams that are closed at the end of the test."""
    made: list[Upstream] = []

    def make(handler: Callable[[Conversation], None]) -> Upstream:
        made.append(Upstream(handler))
        return made[-1]

    yield make
    for u in made:
        u.close()
