# Level 9. The tick of an upstream's breakers, and which endpoints are ejected.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.upstream cimport Upstream

cdef void upstream_tick(Worker *w, Upstream *u) noexcept nogil
