# Level 10. The permits of an attempt: the upstream's breaker's, and its endpoint's. Taken and ended here and nowhere else.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.upstream cimport Endpoint

cdef int permit_take(Worker *w, Exchange *x) noexcept nogil
cdef bint permit_endpoint(Worker *w, Exchange *x, Endpoint *e) noexcept nogil
cdef void permit_move(Worker *w, Exchange *x, Endpoint *e) noexcept nogil
cdef void permit_answer(Worker *w, Exchange *x, int status) noexcept nogil
cdef void permit_fail(Worker *w, Exchange *x, int reason) noexcept nogil
cdef void permit_endpoint_fail(Worker *w, Exchange *x, int reason) noexcept nogil
cdef void permit_cancel(Worker *w, Exchange *x) noexcept nogil
cdef bint permit_refused(const Exchange *x) noexcept nogil
