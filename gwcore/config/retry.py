"""Models of `upstreams.*.retry`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from gwcore.config.base import Model, known_methods
from gwcore.config.units import Duration

STATUSES = (429, 500, 502, 503, 504)


class Budget(Model):
    ratio: float = Field(0.2, ge=0.0, le=1.0)
    """Retries that a first attempt pays for."""
    min: int = Field(3, ge=0, le=10_000)
    """Retries a second that are paid for anyway."""


class Backoff(Model):
    base: Duration = Field(0.025, le=60.0)
    """Most before the first retry; twice as much before each further one."""
    max: Duration = Field(0.25, le=60.0)
    """Most before any."""


def _hedge(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _budget(value: Any) -> Any:
    return {"ratio": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Retry(Model):
    attempts: int = Field(1, ge=0, le=5)
    """Extra attempts after a failed one, each at another endpoint if there is one."""
    on: list[Literal["connect", "stale", "reset", "timeout"]] = ["connect", "stale"]
    """What is tried again. connect: no connection came about. stale: a reused connection closed before a byte of the answer came (once, at
    once, and free of the budget). reset: the connection broke before the head of the answer was whole. timeout: no answer came within
    `timeouts.response` or `per_try`, or the request could not be written. A request of which something was sent is tried again only if
    its method is one of `methods`, or it has an Idempotency-Key."""
    statuses: list[int] = []
    """Statuses of the upstream after which a request is tried again, of 429, 500, 502, 503, 504. An answer that another gateway made (it has a
    Proxy-Status) passes as it is."""
    methods: list[str] = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"]
    """Methods that may be sent twice."""
    per_try: Duration = 0.0
    """Most time for one attempt, from its beginning to the response head; while the client sends its body it does not run. `off` = only
    what `timeouts` of the upstream say."""
    budget: Annotated[Budget, BeforeValidator(_budget, json_schema_input_type=Budget | float)] = Budget()
    """Retries that all workers together may make: a bucket that holds the deposits of ten seconds. When it is empty the last error goes
    out, with the flag `retry_budget` in the log. A number is its ratio."""
    backoff: Backoff = Backoff()
    """The wait before a retry, drawn evenly from 0 on."""
    hedge: Annotated[Literal["p95"] | Duration, BeforeValidator(_hedge)] = 0.0
    """Hedging: a request that may be sent twice, of which no answer has come after so long, is tried at another endpoint as well; the first head
    of an answer goes out, and the other try is cancelled. `p95` waits as long as 95 of 100 answers took lately. It is one of the `attempts`
    and `budget` pays for it; there is none while the breaker is not closed, or no place is free in the concurrency limit. `off` = never."""

    @model_validator(mode="before")
    @classmethod
    def _statuses_in_on(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("on"), list):
            numbers = [x for x in value["on"] if isinstance(x, int) and not isinstance(x, bool)]
            if numbers:
                raise ValueError(f"{numbers[0]} is a status, not a kind of failure: write statuses: {numbers}")
        return value

    @model_validator(mode="after")
    def _hedge_has_an_attempt(self) -> Retry:
        if self.hedge and not self.attempts:
            raise ValueError("hedge makes one of the extra attempts, and attempts is 0: set attempts to 1, or hedge to off")
        if not isinstance(self.hedge, str) and self.hedge > 3600.0:
            raise ValueError(f"hedge waits at most an hour, not {self.hedge:g} s")
        return self

    @field_validator("statuses")
    @classmethod
    def _statuses(cls, value: list[int]) -> list[int]:
        for status in value:
            if status not in STATUSES:
                raise ValueError(f"{status} cannot be retried; statuses are {', '.join(map(str, STATUSES))}")
        return value

    _methods = field_validator("methods")(known_methods)
