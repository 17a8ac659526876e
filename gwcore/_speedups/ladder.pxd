# Level 11. What a request gets when its upstream does not answer.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.head cimport Head
from gwcore._speedups.outlist cimport OutList
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport size_t

cdef void ladder_begin(Worker *w, Exchange *x, const Head *h, size_t host_len) noexcept nogil
cdef enum:
    LEVEL_SWITCHED = 3       # an operator wants the ladder, and the upstream left alone

cdef int ladder_level(Worker *w, const Exchange *x) noexcept nogil
cdef bint ladder_holds(Worker *w, Exchange *x) noexcept nogil
cdef bint ladder_falls(const Exchange *x, int reason) noexcept nogil
cdef bint ladder_static(Worker *w, Exchange *x, OutList *o) noexcept nogil

cdef inline bint ladder_replaces(const Exchange *x, int status) noexcept nogil:
    """Is an answer of this status, 500 or above, a failure for which there is something else?"""
    return x.ladder != NULL and x.ladder.status != 0 and status < 564 and x.ladder.on_status >> (status - 500) & 1 and not x.client.sink and not x.upgrade
