# Level 10. The concurrency limit of an upstream, as a request meets it: a place before its first attempt, given back at its end.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport uint32_t, uint64_t
from gwcore._speedups.upstream cimport Upstream

cdef int admission_take(Worker *w, Exchange *x) noexcept nogil
cdef void place_give(Worker *w, Exchange *x) noexcept nogil
cdef bint limit_has_room(Worker *w, const Upstream *u, uint32_t tier) noexcept nogil
cdef void limit_ask(Worker *w, Upstream *u, uint32_t tier) noexcept nogil
cdef void limit_unask(Worker *w, Upstream *u) noexcept nogil
cdef void limit_sample(Worker *w, Exchange *x) noexcept nogil
cdef void admission_count(Worker *w, Exchange *x, uint64_t us) noexcept nogil

cdef inline void admission_end(Worker *w, Exchange *x) noexcept nogil:
    """The upstream is done with this request, or it waits again: its place is free. Giving back twice is harmless."""
    if x.placed:
        place_give(w, x)

cdef inline void admission_answer(Worker *w, Exchange *x, int status) noexcept nogil:
    """The response head is here. A failure is no sample: it may be quick, and would make the upstream look so."""
    if x.placed and status != 500 and status != 502 and status != 503 and status != 504:
        limit_sample(w, x)
