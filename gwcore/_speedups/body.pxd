# Level 11. Bodies from one framing into another: slices in, slices out.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.outlist cimport OutList
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport size_t

cdef int body_request(Worker *w, Exchange *x, const char *at, size_t size, OutList *o, size_t *used) noexcept nogil
cdef int body_response(Worker *w, Exchange *x, const char *at, size_t size, OutList *o, size_t *used) noexcept nogil
cdef int body_skip(Worker *w, Exchange *x, const char *at, size_t size, size_t *used) noexcept nogil
cdef void body_end_response(Exchange *x, OutList *o) noexcept nogil
