"""Who helps whom: SO_REUSEPORT spreads connections evenly over workers, whatever they do. A worker that long-lived heavy connections keep busy
would make a share of all new connections wait; while it is clearly busier than the others, the least busy one accepts from its queues too.

No connection is handed from one process to another, so none can be lost on the way: a queue belongs to its listening socket, which the
supervisor keeps, and whoever is free takes from it. Only the decisions are made here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

BUSY = 0.25  # share of a CPU below which nobody needs help
BUSIER = 1.6  # times the mean of the others: help begins
ALIKE = 1.2  # and below this it ends
CALM_LOOKS = 8  # in a row, before it ends


def cpu_s(pid: int) -> float | None:
    """CPU seconds of a process so far; None when it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3): the kernel's number for the clock of a process
    except OSError:
        return None


class Balance:
    """`look` at the shares again and again; `loans` is what follows from them."""

    def __init__(self) -> None:
        self.loans: dict[int, int] = {}
        """Helper by lender."""
        self._calm: dict[int, int] = {}
        self._seen: dict[int, tuple[float, float]] = {}

    def shares(self, pids: Sequence[int]) -> list[float | None]:
        """Shares of a CPU since the last call; None for a worker that is not there (pid 0), or was not then."""
        now, seen = time.monotonic(), self._seen
        found: list[float | None] = []
        self._seen = {pid: (now, used) for pid in pids if pid and (used := cpu_s(pid)) is not None}
        for pid in pids:
            if pid in seen and pid in self._seen and now > seen[pid][0]:
                found.append((self._seen[pid][1] - seen[pid][1]) / (now - seen[pid][0]))
            else:
                found.append(None)
        return found

    def look(self, shares: Sequence[float | None]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Loans (lender, helper) that begin, and those that end. A worker without a share takes part in none."""
        there = {i: s for i, s in enumerate(shares) if s is not None}
        ended = [(a, b) for a, b in self.loans.items() if self._over(a, b, there)]
        for lender, _ in ended:
            self.forget(lender)
        begun = []
        for lender in sorted(there, key=lambda i: -there[i]):
            idlest = min(there, key=lambda i: (i in self.loans, i in self.loans.values(), there[i]))
            if (
                lender not in self.loans
                and self._busier(lender, there, BUSIER)
                and there[lender] > BUSY
                and idlest not in self.loans
            ):
                self.loans[lender] = idlest
                begun.append((lender, idlest))
        return begun, ended

    def forget(self, lender: int) -> None:
        """This loan is over."""
        self.loans.pop(lender, None)
        self._calm.pop(lender, None)

    def _busier(self, i: int, there: dict[int, float], times: float) -> bool:
        others = [s for k, s in there.items() if k != i]
        return bool(others) and there[i] > times * sum(others) / len(others)

    def _over(self, lender: int, helper: int, there: dict[int, float]) -> bool:
        if helper not in there:
            return True
        needed = lender in there and there[lender] > BUSY / 2 and self._busier(lender, there, ALIKE)
        self._calm[lender] = 0 if needed else self._calm.get(lender, 0) + 1
        return self._calm[lender] >= CALM_LOOKS or (lender in there and there[helper] > there[lender])
