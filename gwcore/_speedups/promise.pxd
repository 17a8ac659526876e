# Level 10. Whether a request got what its tier promises.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.head cimport Head
from gwcore._speedups.shm cimport RouteCell
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport uint64_t

cdef void promise_count(Worker *w, const Exchange *x, RouteCell *cell, uint64_t us) noexcept nogil
cdef void tier_find(Exchange *x, const Head *h) noexcept nogil
