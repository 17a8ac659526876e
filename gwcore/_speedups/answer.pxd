# Level 11. Answers that the gateway makes itself: errors as problem+json (RFC 9457, 9209), prepared answers of routes.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.outlist cimport OutList
from gwcore._speedups.plan cimport PlanHead, Route
from gwcore._speedups.story cimport Exchange

cdef int answer_error(Worker *w, OutList *o, const PlanHead *p, int reason, bint close, bint to_head, const Exchange *x) noexcept nogil
cdef void answer_route(Worker *w, OutList *o, const PlanHead *p, const Route *r, bint close, bint http10, bint to_head) noexcept nogil
cdef void answer_empty(Worker *w, OutList *o, const PlanHead *p, bint close, bint http10) noexcept nogil
