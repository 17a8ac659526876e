"""Permits: every attempt asks the breaker of its upstream and that of its endpoint, and tells both once how it went."""
from gwcore._speedups.reasons cimport R_BREAKER_OPEN, R_BREAKER_SHED


cdef int permit_take(Worker *w, Exchange *x) noexcept nogil:
    """Ask the upstream's breaker. 0: the permit is live; else the reason of the refusal."""
    return 0


cdef bint permit_endpoint(Worker *w, Exchange *x, Endpoint *e) noexcept nogil:
    """Ask the endpoint's breaker, too; False: another endpoint may be asked."""
    return True


cdef void permit_move(Worker *w, Exchange *x, Endpoint *e) noexcept nogil:
    """The attempt goes on at another endpoint, whatever its breaker says."""


cdef void permit_answer(Worker *w, Exchange *x, int status) noexcept nogil:
    """The response's head is here: the verdict, with the latency so far."""


cdef void permit_fail(Worker *w, Exchange *x, int reason) noexcept nogil:
    """The attempt failed, or the exchange did: a verdict by the row of reasons.h. What is no fault of the upstream is none."""


cdef void permit_endpoint_fail(Worker *w, Exchange *x, int reason) noexcept nogil:
    """The endpoint alone failed; the attempt goes on elsewhere. reason 0: no verdict."""


cdef void permit_cancel(Worker *w, Exchange *x) noexcept nogil:
    """End what is live without a verdict."""


cdef bint permit_refused(const Exchange *x) noexcept nogil:
    """Did a breaker refuse the attempt?"""
    return x.reason == R_BREAKER_OPEN or x.reason == R_BREAKER_SHED
