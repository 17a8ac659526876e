# Level 10. What one hop tells the next: how much time is left, and which attempt this is.
from gwcore._speedups.buffer cimport ByteQueue
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.head cimport Field, Head
from gwcore._speedups.outlist cimport OutList
from gwcore._speedups.plan cimport PlanHead
from gwcore._speedups.story cimport Exchange, by_deadline
from gwcore._speedups.types cimport size_t, uint64_t
from libc.stdint cimport uint32_t

cdef void limits_find(Worker *w, Exchange *x, const Head *h, bint trusted) noexcept nogil
cdef bint limit_is(const PlanHead *p, const Head *h, const Field *f) noexcept nogil
cdef void limit_lines(Worker *w, const Exchange *x, OutList *o) noexcept nogil
cdef void request_out(Worker *w, const Exchange *x, OutList *o) noexcept nogil
cdef void request_copy(const Exchange *x, OutList *o) noexcept nogil
cdef uint64_t answer_due(Worker *w, Exchange *x, uint32_t ms, bint progress) noexcept nogil

cdef inline uint64_t try_due(const Exchange *x, uint64_t due_ms) noexcept nogil:
    """A time limit of an attempt, or what ends the attempt anyway if that is sooner."""
    return by_deadline(x, x.try_due_ms if x.try_due_ms and x.try_due_ms < due_ms else due_ms)
cdef void queue_part(const ByteQueue *q, size_t begin, size_t end, OutList *o) noexcept nogil
