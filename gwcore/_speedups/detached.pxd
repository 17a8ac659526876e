# Level 16. Exchanges without a client.
from gwcore._speedups.conn cimport Conn, Worker
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport size_t

cdef Conn *sink_open(Worker *w, const Conn *like, int what) noexcept nogil
cdef Exchange *detached_begin(Worker *w, Exchange *x, const char *path, size_t path_len) noexcept nogil
cdef Exchange *detached_leave(Worker *w, Exchange *x) noexcept nogil
cdef void exchange_like(Worker *w, Exchange *y, const Exchange *x, Conn *client) noexcept nogil
