# Level 8. How loaded a worker is, and whom it refuses for that.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.types cimport uint32_t

cdef enum:
    PULSE_MS = 100

cdef void pressure_start(Worker *w) noexcept nogil
cdef void pressure_pulse(Worker *w) noexcept nogil
cdef bint pressure_refuses(Worker *w, uint32_t tier) noexcept nogil
cdef void pressure_close(Worker *w) noexcept nogil

cdef inline void pressure_watch(Worker *w) noexcept nogil:
    """The end of a turn: while there are requests there is a pulse."""
    if w.pulse.due_ms == 0 and (w.exchanges.used or w.lane.worker.requests != w.pressure.requests):
        pressure_start(w)
