# Level 17. Requests that a copy may answer.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport size_t

cdef bint cached_late(Worker *w, Exchange *x) noexcept nogil
cdef bint cached_begin(Worker *w, Exchange *x, const char *at, size_t size, const char *path, size_t path_len) noexcept nogil
