# Level 19. What happens on an event of a client or an upstream connection.
from gwcore._speedups.conn cimport Conn, Worker
from gwcore._speedups.upstream cimport Upstream

cdef void client_timeout(Worker *w, Conn *c) noexcept nogil
cdef void client_event(Worker *w, Conn *c) noexcept nogil
cdef void upstream_event(Worker *w, Conn *c) noexcept nogil
cdef void upstream_timeout(Worker *w, Conn *c) noexcept nogil
cdef void queue_serve(Worker *w, Upstream *u) noexcept nogil
