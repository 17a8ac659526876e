# Level 11. Requests that a drill makes fail.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport uint32_t, uint64_t

cdef bint drill_draws(Worker *w, Exchange *x) noexcept nogil
cdef uint32_t drill_wait_ms(Worker *w, Exchange *x) noexcept nogil
cdef bint drill_over(const Worker *w, const Exchange *x) noexcept nogil
cdef void drill_count(Worker *w, const Exchange *x, uint64_t us) noexcept nogil
