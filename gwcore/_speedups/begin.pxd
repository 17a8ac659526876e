# Level 18. How an exchange begins.
from gwcore._speedups.conn cimport Conn, Worker

cdef void client_input(Worker *w, Conn *c) noexcept nogil
