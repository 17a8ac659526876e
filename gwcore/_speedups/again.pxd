# Level 13. Attempts that failed: made again after a while, or not.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.head cimport Head
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport size_t, uint32_t

cdef void attempt_failed(Worker *w, Exchange *x, int reason) noexcept nogil
cdef void answer_drop(Worker *w, Exchange *x, const Head *h, const char *at, size_t size) noexcept nogil
cdef bint answer_refused(Worker *w, Exchange *x, const Head *h, const char *at, size_t size) noexcept nogil
cdef void again_after(Worker *w, Exchange *x, uint32_t wait_ms) noexcept nogil
cdef void again_stale(Worker *w, Exchange *x) noexcept nogil
cdef int first_reason(const Exchange *x, int reason) noexcept nogil
cdef bint answer_failed(const Exchange *x, int status) noexcept nogil
