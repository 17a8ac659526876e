# Level 10. A connection to an endpoint: made, kept in its pool, closed; with or without a request that waits for it.
from gwcore._speedups.conn cimport Conn, Worker
from gwcore._speedups.types cimport uint64_t
from gwcore._speedups.upstream cimport Endpoint

cdef Conn *connect_start(Worker *w, Endpoint *e, bint other, uint64_t key, void *exchange, int *reason) noexcept nogil
cdef int connect_result(Worker *w, Conn *c, int *reason) noexcept nogil
cdef enum:
    QUIET = -1               # of upstream_unasked

cdef int upstream_unasked(Worker *w, Conn *c) noexcept nogil
cdef bint upstream_stray(Conn *c) noexcept nogil
cdef void connect_up(Worker *w, Conn *c) noexcept nogil
cdef bint upstream_keep(Worker *w, Conn *c) noexcept nogil
cdef void upstream_close(Worker *w, Conn *c, int why) noexcept nogil
