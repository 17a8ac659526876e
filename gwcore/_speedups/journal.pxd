# Level 11. Requests that were answered statically, kept in a file to be sent to their upstream later.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.story cimport Exchange

cdef bint journal_add(Worker *w, Exchange *x) noexcept nogil
