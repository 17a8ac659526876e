"""Attempts that failed. The rules are in retry, the budget in budget; here an exchange is judged by them, and made ready to be dispatched anew
when its back-off is over (client_timeout does that)."""
from libc.stdint cimport int64_t, uint16_t, uint32_t

from gwcore._speedups.admission cimport admission_end
from gwcore._speedups.attempt cimport attempt_release
from gwcore._speedups.budget cimport budget_due, budget_fold, budget_take
from gwcore._speedups.conn cimport SINK_HEDGE, Conn, chance_next, conn_arm, conn_register, conn_rest
from gwcore._speedups.ends cimport client_end, exchange_fail, exchange_move, twin_part
from gwcore._speedups.fields cimport M_HEAD, decimal
from gwcore._speedups.head cimport Field, field_is
from gwcore._speedups.histogram cimport histogram_quantile_us
from gwcore._speedups.http1 cimport BODY_CHUNKED, BODY_CLOSE, BODY_LENGTH, response_body
from gwcore._speedups.permit cimport permit_fail
from gwcore._speedups.reasons cimport R_CONNECT_TIMEOUT
from gwcore._speedups.retry cimport NEVER_SOON, ON_STALE, RETRY_GO, Failed, retry_bit, retry_kind, retry_verdict, retry_wait_ms
from gwcore._speedups.shm cimport segment_firsts
from gwcore._speedups.story cimport REQ_DISCARD, REQ_DONE, REQ_STREAM, X_ANSWERING, X_BACKOFF
from gwcore._speedups.twin cimport twin_swap
from gwcore._speedups.upstream cimport Upstream
from gwcore.pool cimport CLOSE_ABORTED, CLOSE_ERROR, CLOSE_STALE, CLOSE_TIMEOUT

cdef enum:
    AFTER_DIGITS = 5         # of Retry-After in seconds; more is more than a day


cdef void answer_read(const Head *h, Failed *f) noexcept nogil:
    """What an answer says of retries: when (seconds; a date is not believed), and whether another gateway made it (RFC 9209)."""
    cdef const Field *field
    cdef int64_t seconds
    cdef uint32_t i
    for i in range(h.n):
        field = &h.f[i]
        if field_is(h, field, b"proxy-status", 12):
            f.inner = True
        elif 0 < field.value_len <= AFTER_DIGITS and field_is(h, field, b"retry-after", 11):
            seconds = decimal(h.base + field.value, field.value_len, AFTER_DIGITS)
            f.after_ms = <uint32_t>seconds * 1000 if seconds > 0 else 0


cdef bint again_may(Worker *w, Exchange *x, int reason, const Head *h, uint32_t *wait_ms) noexcept nogil:
    """Is a failed attempt followed by another, after wait_ms? Then the budget has paid for it. h: the upstream's answer, when its status is the
    failure."""
    cdef Upstream *u = x.upstream
    cdef Failed f
    cdef uint32_t bit
    f.reason, f.status = reason, h.status if h != NULL else 0
    bit = retry_bit(f.reason, f.status)
    if not bit & u.retry_on or x.endpoint == NULL or x.client.sink == SINK_HEDGE:
        return False
    f.on, f.extra, f.made = u.retry_on, u.retry_extra, x.retries
    f.sent, f.idempotent, f.lost, f.begun = x.bytes_sent, x.idempotent, x.replay_lost, x.bytes_out != 0
    f.inner, f.hop, f.tier, f.level = False, x.hop, x.tier, u.breaker.cell.level if u.breaker.on else 0
    f.usual_ms = f.after_ms = 0
    f.left_ms = NEVER_SOON
    f.wait_ms = 1 + retry_wait_ms(u.backoff_ms, u.backoff_most_ms, x.retries, chance_next(w))
    if h != NULL:
        answer_read(h, &f)
    if x.deadline_ms:
        f.left_ms = <uint32_t>(x.deadline_ms - w.now_ms) if x.deadline_ms > w.now_ms else 0
        f.usual_ms = <uint32_t>(histogram_quantile_us(u.cell.seconds, 0.5) / 1000)
    if retry_verdict(&f) != RETRY_GO:
        return False
    if budget_due(u.budget, w.now_ms):
        budget_fold(u.budget, segment_firsts(w.segment, u.slot), w.now_ms)
    if not budget_take(u.budget):
        x.budget_empty = 1
        u.cell.retry_denied += 1
        return False
    x.retries += 1
    x.retried = <uint16_t>f.status
    x.first_reason = <uint16_t>reason
    u.cell.retried[retry_kind(bit)] += 1
    wait_ms[0] = f.wait_ms
    return True


cdef void again_reset(Worker *w, Exchange *x) noexcept nogil:
    """Nothing is known of an answer, and what is left of the request's body is wanted again."""
    x.status = 0
    x.got_bytes = 0
    x.hedge_due_ms = 0
    x.first_byte_us = 0
    x.upstream_keep = 0
    if x.request_body == REQ_DISCARD:            # the connection took no more of it
        x.request_body = REQ_STREAM
    x.body_look_ms = 0                           # the client's pace is judged from here
    x.body_since_ms = w.now_ms
    x.body_base = x.body_seen


cdef void again_after(Worker *w, Exchange *x, uint32_t wait_ms) noexcept nogil:
    again_reset(w, x)
    admission_end(w, x)                          # it holds no place while it sleeps
    exchange_move(w, x, X_BACKOFF)
    conn_register(w, x.client)                   # one that leaves meanwhile shall be noticed
    conn_arm(w, x.client, w.now_ms + wait_ms)


cdef void again_stale(Worker *w, Exchange *x) noexcept nogil:
    """The upstream had closed the reused connection: the request may be dispatched anew, at once and for nothing."""
    x.stale_used = 1
    x.upstream.cell.retried[retry_kind(ON_STALE)] += 1
    attempt_release(w, x, False, CLOSE_STALE)
    again_reset(w, x)


cdef void twin_take(Worker *w, Exchange *x) noexcept nogil:
    """x lost its attempt, and goes on with that of its twin."""
    cdef Exchange *y = x.twin
    again_reset(w, x)
    twin_swap(x, y)
    if x.phase != y.phase:
        exchange_move(w, x, y.phase)
    twin_part(w, x)


cdef void twin_lost(Worker *w, Exchange *x) noexcept nogil:
    """An attempt has come to nothing, while the other try of the same request goes on."""
    if x.client.sink == SINK_HEDGE:
        client_end(w, x.client, False)
    else:
        twin_take(w, x)


cdef void attempt_failed(Worker *w, Exchange *x, int reason) noexcept nogil:
    """An attempt came to nothing. It is made again after a while, or the exchange fails for its reason."""
    cdef uint32_t wait_ms = 0
    cdef bint again
    permit_fail(w, x, reason)
    again = x.twin == NULL and x.phase < X_ANSWERING and again_may(w, x, reason, NULL, &wait_ms)
    attempt_release(w, x, False, CLOSE_TIMEOUT if reason == R_CONNECT_TIMEOUT else CLOSE_ERROR)
    if x.twin != NULL:
        admission_end(w, x)
        twin_lost(w, x)
    elif again:
        again_after(w, x, wait_ms)
    else:
        exchange_fail(w, x, reason, False)


cdef bint answer_failed(const Exchange *x, int status) noexcept nogil:
    """Is it no answer to go out, while another may come?"""
    return retry_bit(0, status) & x.upstream.retry_on != 0


cdef void answer_drop(Worker *w, Exchange *x, const Head *h, const char *at, size_t size) noexcept nogil:
    """The answer is not passed on: give its connection back, unread; at[:size] is all that is there of it. One with more to come is not worth
    waiting for."""
    cdef Conn *u = x.up
    cdef int kind = response_body(h, x.method == M_HEAD)
    cdef size_t rest = size - h.size
    cdef bint whole = h.keep_alive and kind != BODY_CHUNKED and kind != BODY_CLOSE and rest == (<size_t>h.length if kind == BODY_LENGTH else 0)
    conn_rest(w, u, at + size, 0)
    attempt_release(w, x, whole and x.request_body == REQ_DONE and u.output.bytes == 0 and not u.ended and not u.readable, CLOSE_ABORTED)


cdef bint answer_refused(Worker *w, Exchange *x, const Head *h, const char *at, size_t size) noexcept nogil:
    """Is the request tried again after this answer? Then it is dropped."""
    cdef uint32_t wait_ms = 0
    if not (answer_failed(x, h.status) if x.twin != NULL else again_may(w, x, 0, h, &wait_ms)):
        return False
    answer_drop(w, x, h, at, size)
    if x.twin != NULL:
        admission_end(w, x)
        twin_lost(w, x)
    else:
        again_after(w, x, wait_ms)
    return True


cdef int first_reason(const Exchange *x, int reason) noexcept nogil:
    """Why a request fails that finds nobody for its next attempt: of that one the client never knew."""
    return x.first_reason if x.retries and x.first_reason else reason
