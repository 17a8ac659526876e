# Level 14. Between client and upstream: attempts, bodies in both directions, back-pressure.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport uint64_t

cdef void dispatch(Worker *w, Exchange *x) noexcept nogil
cdef void dispatched(Worker *w, Exchange *x, int rc) noexcept nogil
cdef void send_replay(Worker *w, Exchange *x) noexcept nogil
cdef void sent(Worker *w, Exchange *x) noexcept nogil
cdef void replay_keep(Worker *w, Exchange *x) noexcept nogil
cdef void write_failed(Worker *w, Exchange *x) noexcept nogil
cdef void request_pump(Worker *w, Exchange *x) noexcept nogil
cdef uint64_t body_due(Worker *w, const Exchange *x) noexcept nogil
cdef void upstream_read(Worker *w, Exchange *x) noexcept nogil
