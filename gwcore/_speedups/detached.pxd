# Level 16. Exchanges without a client.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport size_t

cdef Exchange *detached_begin(Worker *w, Exchange *x, const char *path, size_t path_len) noexcept nogil
cdef Exchange *detached_leave(Worker *w, Exchange *x) noexcept nogil
