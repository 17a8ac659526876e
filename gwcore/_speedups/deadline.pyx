"""Deadlines, and what travels with a request from hop to hop: the milliseconds that are left, and the number of the attempt, by which a gateway
behind us knows that it must not retry as well.

Both differ from attempt to attempt, so they stand at the end of the head, and what is kept to be sent again (`replay`) is sent around them."""
from libc.stdint cimport int64_t, uint8_t

from gwcore._speedups.buffer cimport Buf, buf_bytes
from gwcore._speedups.fields cimport decimal
from gwcore._speedups.head cimport field_is
from gwcore._speedups.outlist cimport out_add, out_copy, out_number, out_some
from gwcore._speedups.plan cimport plan_text
from gwcore._speedups.story cimport REQ_STREAM

cdef enum:
    DIGITS = 9               # of a number of milliseconds: eleven days
    ATTEMPT_MAX = 255


cdef bint limit_is(const PlanHead *p, const Head *h, const Field *f) noexcept nogil:
    """Is this the field that tells the time left?"""
    return field_is(h, f, plan_text(p, p.deadline_name), p.deadline_name.len)


cdef void limits_find(Worker *w, Exchange *x, const Head *h, bint trusted) noexcept nogil:
    """The deadline of a request whose route is known: the route's, or what a trusted proxy leaves it if that is sooner."""
    cdef const PlanHead *p = x.plan.head
    cdef const Field *f
    cdef int64_t n
    cdef uint32_t i
    x.hop = 1
    if x.route.deadline_ms:
        x.deadline_ms = by_deadline(x, w.now_ms + x.route.deadline_ms)
    if x.ladder != NULL and (x.ladder.status or x.ladder.enforce):
        x.deadline_ms = by_deadline(x, w.now_ms + x.ladder.budget_ms)
    if not trusted:
        return
    for i in range(h.n):
        f = &h.f[i]
        if p.deadline_name.len and limit_is(p, h, f):
            n = decimal(h.base + f.value, f.value_len, DIGITS)
            if n >= 0:
                x.deadline_ms = by_deadline(x, w.now_ms + <uint64_t>n)
        elif field_is(h, f, b"x-gwcore-attempt", 16):
            n = decimal(h.base + f.value, f.value_len, DIGITS)
            if n > 1:
                x.hop = <uint8_t>(n if n < ATTEMPT_MAX else ATTEMPT_MAX)


cdef void limit_lines(Worker *w, const Exchange *x, OutList *o) noexcept nogil:
    """The lines of this attempt. Their time is that of the moment in which they leave."""
    cdef const PlanHead *p = x.plan.head
    cdef uint32_t n = <uint32_t>x.hop + x.retries
    if n > 1:
        out_copy(o, b"X-Gwcore-Attempt: ", 18)
        out_number(o, n if n < ATTEMPT_MAX else ATTEMPT_MAX, 10)
        out_copy(o, b"\r\n", 2)
    if x.deadline_ms and p.deadline_line.len:
        out_some(o, plan_text(p, p.deadline_line), p.deadline_line.len)
        out_number(o, x.deadline_ms - w.now_ms if x.deadline_ms > w.now_ms else 0, 10)
        out_copy(o, b"\r\n", 2)


cdef void queue_part(const ByteQueue *q, size_t begin, size_t end, OutList *o) noexcept nogil:
    """Add q[begin:end] to o, as slices."""
    cdef Buf *b = q.head
    cdef size_t at = 0, low, high
    while b != NULL and at < end:
        low = begin - at if begin > at else 0
        high = b.len if at + b.len < end else end - at
        if low < high:
            out_add(o, buf_bytes(b) + low, high - low)
        at += b.len
        b = b.next


cdef void request_out(Worker *w, const Exchange *x, OutList *o) noexcept nogil:
    """The kept request, with the lines of this attempt in place of those that were kept."""
    if x.head_skip == 0 and x.deadline_ms == 0 and x.hop + x.retries <= 1:
        queue_part(&x.replay, 0, x.replay.bytes, o)
        return
    queue_part(&x.replay, 0, x.head_at, o)
    limit_lines(w, x, o)
    queue_part(&x.replay, x.head_at + x.head_skip, x.replay.bytes, o)


cdef uint64_t answer_due(Worker *w, Exchange *x, uint32_t ms, bint progress) noexcept nogil:
    """When an attempt that is sent must have an answer, or company: in ms, and within retry.per_try and the deadline. A client that still sends its body, or
    did so just now (progress), uses up no time of the attempt."""
    if x.try_due_ms and (progress or x.request_body == REQ_STREAM):
        x.try_due_ms = w.now_ms + x.upstream.per_try_ms
    return min(try_due(x, w.now_ms + ms), x.hedge_due_ms) if x.hedge_due_ms else try_due(x, w.now_ms + ms)


cdef void request_copy(const Exchange *x, OutList *o) noexcept nogil:
    """All of the kept request."""
    queue_part(&x.replay, 0, x.replay.bytes, o)
