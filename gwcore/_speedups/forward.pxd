# Level 11. What is sent on: request and response heads written from what was parsed, as slices of the buffer they came in.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.head cimport Head
from gwcore._speedups.outlist cimport OutList
from gwcore._speedups.story cimport Exchange

cdef int forward_request(Worker *w, Exchange *x, Head *h, OutList *o, const char *path, size_t path_len) noexcept nogil
cdef void forward_response(Worker *w, Exchange *x, Head *h, OutList *o, bint close) noexcept nogil
cdef void forward_interim(Worker *w, Exchange *x, Head *h, OutList *o) noexcept nogil
cdef void exchange_note(Worker *w, Exchange *x, const Head *h, const char *path, size_t path_len, bint trusted) noexcept nogil
