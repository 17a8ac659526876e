# Level 9. Requests in early data (TLS 1.3, RFC 8470): how they are read, and which may be.
from gwcore._speedups.conn cimport Conn, Worker
from gwcore._speedups.head cimport Head

cdef bint early_keep(Worker *w, Conn *c) noexcept nogil
cdef int early_read(Worker *w, Conn *c) noexcept nogil
cdef bint early_safe(const Head *h) noexcept nogil
