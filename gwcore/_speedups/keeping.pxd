# Level 13. What of an answer is kept, and what an answer does to copies.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.head cimport Head
from gwcore._speedups.story cimport Exchange

cdef void keep_look(Worker *w, Exchange *x, Head *h) noexcept nogil
cdef void keep_head(Worker *w, Exchange *x, const Head *h) noexcept nogil
cdef void keep_store(Worker *w, Exchange *x) noexcept nogil
