# Level 10. How a TLS connection begins, until its handshake is over.
from gwcore._speedups.conn cimport Conn, Worker

cdef bint greet(Worker *w, Conn *c) noexcept nogil
cdef void greet_back(Worker *w) noexcept nogil
cdef bint greet_early(Worker *w, Conn *c) noexcept nogil
cdef void unpark(Worker *w, Conn *c) noexcept nogil
