# Level 11. pool.min_idle: connections made ahead of need.
from gwcore._speedups.conn cimport Conn, Worker
from gwcore._speedups.upstream cimport Upstream

cdef void warm_look(Worker *w, Upstream *u) noexcept nogil
cdef void warm_event(Worker *w, Conn *c) noexcept nogil
cdef void warm_peer_closed(Worker *w, Conn *c) noexcept nogil
cdef void warm_timeout(Worker *w, Conn *c) noexcept nogil
