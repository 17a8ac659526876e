# Level 17. The second try of a request whose answer is slow.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.story cimport Exchange

cdef void hedge_begin(Worker *w, Exchange *x) noexcept nogil
