# Level 11. A request that is tried at two endpoints at once: when that begins, and how the first try and the second change places.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.story cimport Exchange

cdef void hedge_arm(Worker *w, Exchange *x) noexcept nogil
cdef void twin_swap(Exchange *x, Exchange *y) noexcept nogil
