# Level 8. The handshake of a client connection.
from gwcore._speedups.conn cimport Conn, Worker
from gwcore._speedups.handshakes cimport Step

cdef bint handshake_due(Worker *w, Conn *c) noexcept nogil
cdef void handshake_over(Worker *w, Conn *c) noexcept nogil
cdef int handshake_go(Worker *w, Conn *c) noexcept nogil
cdef int handshake_connect(Worker *w, Conn *c) noexcept nogil
cdef int handshake_give(Worker *w, Conn *c) noexcept nogil
cdef Conn *handshake_back(Worker *w, Step *s, int *rc) noexcept nogil
