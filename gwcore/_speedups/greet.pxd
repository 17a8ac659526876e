# Level 13. How a TLS connection begins, until its handshake is over.
from gwcore._speedups.conn cimport Conn, Worker

cdef enum:
    GREET_US = 300           # for steps in one batch: a few resumed ones, or the one with RSA that takes longer anyway

cdef bint greet(Worker *w, Conn *c) noexcept nogil
cdef void greet_back(Worker *w) noexcept nogil
cdef bint greet_early(Worker *w, Conn *c) noexcept nogil
cdef void unpark(Worker *w, Conn *c) noexcept nogil
