"""The second try of a request whose answer is slow, at another endpoint. It is an exchange of its own, without a client (see detached), so that its
permits, place and connection are those of any attempt; the two know each other as twins. The first head of an answer wins: the client's exchange
takes the attempt that it came from (relay), and the other ends without a verdict. A try that fails leaves the other alone with the request; an end
of the request, whatever its cause, ends both (ends).

The budget of retries pays for it, and it obeys their rules: never at an upstream that is not closed, nor ahead of others who wait for a place."""
from libc.stdint cimport uint32_t

from gwcore._speedups.attempt cimport attempt_take
from gwcore._speedups.breaker_cell cimport cell_state
from gwcore._speedups.breaker_core cimport BRK_CLOSED
from gwcore._speedups.budget cimport budget_due, budget_fold, budget_give, budget_take
from gwcore._speedups.buffer cimport queue_clear
from gwcore._speedups.conn cimport C_BUSY, NEVER_MS, SINK_HEDGE, Conn, conn_arm, conn_close, conn_move
from gwcore._speedups.deadline cimport request_copy
from gwcore._speedups.detached cimport exchange_like, sink_open
from gwcore._speedups.ends cimport client_end
from gwcore._speedups.histogram cimport histogram_quantile_us
from gwcore._speedups.outlist cimport out_reset, out_store
from gwcore._speedups.permit cimport permit_fail
from gwcore._speedups.relay cimport dispatched
from gwcore._speedups.retry cimport KIND_HEDGE
from gwcore._speedups.shm cimport segment_firsts
from gwcore._speedups.slab cimport slab_give, slab_take
from gwcore._speedups.types cimport RC_FAIL, RC_OK
from gwcore._speedups.upstream cimport Upstream, endpoint_takes


cdef bint hedge_may(Worker *w, const Exchange *x) noexcept nogil:
    """Is a second try of use, and allowed, now? What does not change while a request waits was asked by hedge_arm."""
    cdef Upstream *u = x.upstream
    cdef uint32_t i
    if x.twin != NULL or x.got_bytes or x.bytes_out or x.replay_lost or x.retries or x.client.sink or x.fault or u.queue.n:
        return False
    if u.breaker.on and (cell_state(u.breaker.cell) != BRK_CLOSED or x.tier == 2 and u.breaker.cell.level):
        return False
    if x.deadline_ms and w.now_ms + <uint32_t>(histogram_quantile_us(u.cell.seconds, 0.5) / 1000) >= x.deadline_ms:
        return False
    for i in range(u.n):
        if u.endpoints[i] != x.endpoint and endpoint_takes(w, u, u.endpoints[i]):
            return True
    return False


cdef Exchange *twin_new(Worker *w, Exchange *x) noexcept nogil:
    """The same request once more, with a copy of what is kept of it. NULL: no memory."""
    cdef Conn *s = sink_open(w, x.client, SINK_HEDGE)
    cdef Exchange *y
    if s == NULL:
        return NULL
    y = <Exchange *>slab_take(&w.exchanges)
    if y == NULL:
        conn_close(w, s)
        return NULL
    out_reset(&w.out)
    request_copy(x, &w.out)
    if out_store(&w.bufs, &w.out, &y.replay) != RC_OK:
        out_reset(&w.out)
        queue_clear(&w.bufs, &y.replay)
        slab_give(&w.exchanges, y)
        conn_close(w, s)
        return NULL
    out_reset(&w.out)
    exchange_like(w, y, x, s)
    y.endpoint = x.endpoint
    y.head_at, y.head_skip = x.head_at, x.head_skip
    y.pool_key, y.hash, y.hash_target = x.pool_key, x.hash, x.hash_target
    y.deadline_ms, y.request_kind, y.hop = x.deadline_ms, x.request_kind, x.hop
    y.idempotent, y.attempts, y.stale_used = 1, 1, 1
    y.retries = x.retries + 1
    conn_move(w, s, C_BUSY)
    s.exchange = y
    conn_arm(w, s, w.now_ms + NEVER_MS)
    return y


cdef void hedge_begin(Worker *w, Exchange *x) noexcept nogil:
    """No answer has come so far: try it elsewhere, too. x may be over afterwards."""
    cdef Upstream *u = x.upstream
    cdef Exchange *y
    cdef int rc
    if not hedge_may(w, x):
        return
    if budget_due(u.budget, w.now_ms):
        budget_fold(u.budget, segment_firsts(w.segment, u.slot), w.now_ms)
    if not budget_take(u.budget):
        x.budget_empty = 1
        u.cell.retry_denied += 1
        return
    y = twin_new(w, x)
    if y == NULL:
        budget_give(u.budget)
        return
    rc = attempt_take(w, y)
    if y.attempts == 1 or y.endpoint == x.endpoint:          # no place, or a breaker's refusal: nothing was tried
        budget_give(u.budget)
        client_end(w, y.client, False)
        return
    x.retries += 1
    x.attempts += 1
    u.cell.retried[<int>KIND_HEDGE] += 1
    if rc == RC_FAIL:
        permit_fail(w, y, y.reason)
        client_end(w, y.client, False)
        return
    x.twin, y.twin = y, x
    dispatched(w, y, rc)
