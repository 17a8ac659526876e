# Level 10. Why a request was refused, in a sentence with the figures that decided.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport size_t

cdef size_t explain(Worker *w, const Exchange *x, int reason, char *out, size_t room) noexcept nogil
cdef size_t explain_breaker(const Exchange *x, char *out, size_t room) noexcept nogil
