# Level 11. One attempt at an upstream: endpoint, connection; taking and giving back. No verdict about the request is made here.
from gwcore._speedups.conn cimport Conn, Worker
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.upstream cimport Upstream

cdef int attempt_take(Worker *w, Exchange *x) noexcept nogil
cdef int attempt_connected(Worker *w, Exchange *x, Conn *c) noexcept nogil
cdef bint attempt_late(Worker *w, Exchange *x) noexcept nogil
cdef void attempt_release(Worker *w, Exchange *x, bint reusable, int why) noexcept nogil
cdef void idle_give_way(Worker *w, Upstream *u) noexcept nogil
cdef bint idle_spare(Worker *w, Upstream *u) noexcept nogil
cdef bint idle_at_cap(const Upstream *u) noexcept nogil
