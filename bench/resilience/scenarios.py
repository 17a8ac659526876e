"""The scenarios: what ten scripted endpoints do while a fault lasts, and before and after it.

An endpoint's behaviour is a function of time, its number and the request's fate, a number in [0, 1) that belongs to the request. So it is known of
a request that was refused whether it would have succeeded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

ENDPOINTS = 10
BASE_S = 0.01  # a healthy answer

HANG, RESET = -1, -2  # instead of a status: no answer at all; the connection is reset once the request has come

Behaviour = tuple[int, float]  # status, seconds
WELL: Behaviour = (200, BASE_S)


@dataclass(frozen=True)
class Scenario:
    """One fault. `during(t, length, endpoint, fate)` says what an endpoint does t seconds after its beginning; before and after all is well."""

    name: str
    text: str
    during: Callable[[float, float, int, float], Behaviour]
    rate: float = 100.0
    fault_s: float = 0.0  # 0: as long as asked for
    for_good: bool = False  # it does not end
    leave: float = 0.0  # share of the clients that leave
    leave_s: float = 0.005  # after so long
    timeout_s: float = 5.0  # of gateways, for an answer
    one: bool = False  # endpoint 0 alone is ill: an ejection is the protective act

    def does(self, t: float, length: float, endpoint: int, fate: float) -> Behaviour:
        if t < 0 or t >= length and not self.for_good:
            return WELL
        return self.during(t, length, endpoint, fate)

    def chance(self, t: float, length: float, fate: float) -> float:
        """Of a request to succeed at an endpoint drawn at random."""
        told = [self.does(t, length, i, fate) for i in range(ENDPOINTS)]
        return sum(0 < status < 500 for status, delay in told) / ENDPOINTS


def share(part: float, status: int) -> Callable[[float, float, int, float], Behaviour]:
    return lambda t, length, i, fate: (status, 0.0 if part == 1 else BASE_S) if fate < part else WELL


def alone(ill: Behaviour) -> Callable[[float, float, int, float], Behaviour]:
    return lambda t, length, i, fate: ill if i == 0 else WELL


def leak(t: float, length: float, i: int, fate: float) -> Behaviour:
    """Slower and slower, up to 20 times, with more and more errors, up to a third."""
    return (500 if fate < t / length / 3 else 200), BASE_S * (1 + 19 * t / length)


def flap(t: float, length: float, i: int, fate: float) -> Behaviour:
    return (503, 0.0) if t % 4 < 2 else WELL


SCENARIOS = {
    s.name: s
    for s in (
        Scenario("all-503", "every answer is an instant 503", share(1, 503)),
        Scenario("errors-30", "30 % of the answers are 500", share(0.3, 500)),
        Scenario("overload-60", "60 % of the answers are 503, whatever the load", share(0.6, 503)),
        Scenario("brown-out", "ten times as slow", lambda *_: (200, BASE_S * 10)),
        Scenario("slow-leak", "slower and slower, more and more errors", leak),
        Scenario("flapping", "2 s of 503, 2 s well, and so on", flap),
        Scenario("one-500", "one endpoint of ten answers 500", alone((500, 0.0)), one=True),
        Scenario("one-hangs", "one endpoint of ten never answers (timeout 30 s)", alone((HANG, 0.0)), timeout_s=30, one=True),
        Scenario("low-traffic", "1 request a second, every answer is a 503", share(1, 503), rate=1),
        Scenario("cancels", "80 % of the clients leave after 5 ms", lambda *_: WELL, leave=0.8),
        Scenario("crash", "every connection is reset", lambda *_: (RESET, 0.0)),
        Scenario("blip", "0.2 s of 503", share(1, 503), fault_s=0.2),
        Scenario("regime", "four times as slow, for good", lambda *_: (200, BASE_S * 4), for_good=True),
        Scenario("partition", "nothing answers (timeout 5 s)", lambda *_: (HANG, 0.0)),
    )
}
