# Level 11. Requests in the waiting queue of their upstream: in, out, and who is next. What becomes of them is decided above.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.upstream cimport Upstream

cdef int queue_enter(Worker *w, Exchange *x) noexcept nogil
cdef void queue_leave(Worker *w, Exchange *x) noexcept nogil
cdef Exchange *queue_next(Worker *w, Upstream *u) noexcept nogil
cdef Exchange *queue_overdue(Worker *w, Upstream *u) noexcept nogil
cdef Exchange *queue_lower(Worker *w, const Exchange *x) noexcept nogil
cdef void queue_ask(Worker *w, Upstream *u) noexcept nogil
cdef void wait_over(Worker *w, Exchange *x) noexcept nogil
