# Level 11. One JSON line per request, written into the worker's ring.
from gwcore._speedups.conn cimport Conn, Worker
from gwcore._speedups.story cimport Exchange

cdef void log_exchange(Worker *w, const Exchange *x) noexcept nogil
cdef void log_refused(Worker *w, const Conn *c, int reason, int status) noexcept nogil
