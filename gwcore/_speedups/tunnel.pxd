# Level 13. A connection that became another protocol: bytes both ways until both ends have finished.
from gwcore._speedups.conn cimport Conn, Worker
from gwcore._speedups.head cimport Head
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport size_t

cdef bint tunnel_agreed(const Exchange *x, const Head *h) noexcept nogil
cdef void tunnel_begin(Worker *w, Exchange *x, Head *h, const char *early, size_t size) noexcept nogil
cdef void tunnel_event(Worker *w, Exchange *x, Conn *c) noexcept nogil
