# Level 8. Trailer fields: kept while they come, passed on when the route wants them, and then only those that change no message.
from gwcore._speedups.buffer cimport Buf, BufPool
from gwcore._speedups.outlist cimport OutList
from gwcore._speedups.plan cimport Array, PlanHead
from gwcore._speedups.types cimport size_t

cdef int trailers_keep(BufPool *p, Buf **kept, const char *at, size_t size) noexcept nogil
cdef void trailers_out(OutList *o, Buf *kept, const PlanHead *p, Array edits) noexcept nogil
