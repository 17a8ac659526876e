"""A request that goes to an upstream: its exchange, and the first attempt."""
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from gwcore._speedups.again cimport again_after
from gwcore._speedups.attempt cimport attempt_release, attempt_take
from gwcore._speedups.body cimport body_request
from gwcore._speedups.buffer cimport buf_give, queue_clear
from gwcore._speedups.choose cimport hash_of, rewrite, target_pick, template_key
from gwcore._speedups.chunked cimport Chunked, chunked_init
from gwcore._speedups.conn cimport C_BUSY, NEVER_MS, Conn, Worker, conn_arm, conn_move, conn_rest, conn_send
from gwcore._speedups.deadline cimport limits_find
from gwcore._speedups.drill cimport drill_draws, drill_wait_ms
from gwcore._speedups.forward cimport forward_request
from gwcore._speedups.head cimport Head
from gwcore._speedups.http1 cimport BODY_CHUNKED, BODY_LENGTH
from gwcore._speedups.ladder cimport ladder_holds
from gwcore._speedups.origin cimport origin_find
from gwcore._speedups.outlist cimport out_reset, out_store
from gwcore._speedups.permit cimport permit_refused
from gwcore._speedups.plan cimport PlanHead, Route, plan_upstream
from gwcore._speedups.reasons cimport R_BUFFER_LIMIT, R_DEADLINE, R_DEGRADE_REFUSED, R_FAULT_INJECTED, R_TOO_EARLY, reason_row
from gwcore._speedups.shm cimport FAULT_503, gw_atomic_load
from gwcore._speedups.slab cimport slab_take
from gwcore._speedups.story cimport REQ_STREAM, Exchange, deadline_over
from gwcore._speedups.types cimport RC_AGAIN, RC_FAIL, RC_OK
from gwcore._speedups.upstream cimport Upstream
from gwcore.pool cimport CLOSE_STALE
from gwcore._speedups.ends cimport exchange_fail
from gwcore._speedups.relay cimport dispatched, replay_keep, sent


cdef Exchange *exchange_new(Worker *w, Conn *c, const Head *h) noexcept nogil:
    cdef Exchange *x = <Exchange *>slab_take(&w.exchanges)
    if x == NULL:
        return NULL
    conn_move(w, c, C_BUSY)
    conn_arm(w, c, w.now_ms + NEVER_MS)
    c.requests += 1
    c.exchange = x
    x.client = c
    x.plan = w.plan
    x.plan.refs += 1
    origin_find(w.plan.head, c, h, &x.origin)
    x.start_us = w.now_us
    x.method = h.method
    x.http10 = h.http10
    x.te_trailers = h.te_trailers
    x.tier = 1
    x.keep_alive = h.keep_alive and not w.draining and c.requests < w.plan.head.requests_per_connection \
        and w.now_ms - c.opened_ms < <uint64_t>w.plan.head.connection_age_ms * (900 + c.item.slot * 37 % 201) // 1000    # spread by 10 %
    if h.chunked:
        x.request_kind = BODY_CHUNKED
        x.request_body = REQ_STREAM
        chunked_init(&x.request_chunks, w.plan.head.chunk_ext_bytes, w.plan.head.trailer_bytes)
    elif h.has_length and h.length:
        x.request_kind = BODY_LENGTH
        x.request_body = REQ_STREAM
        x.request_left = <uint64_t>h.length
    x.expects_continue = h.expects_continue and x.request_body == REQ_STREAM
    x.body_since_ms = w.now_ms
    w.lane.worker.exchanges += 1
    return x


cdef void begin_refuse(Worker *w, Exchange *x, const char *at, size_t size, int reason) noexcept nogil:
    cdef bint kept = conn_rest(w, x.client, at + w.request.size, size - w.request.size) == RC_OK
    if not kept:
        x.client.broken = 0                          # no memory for what came behind the head; the client can still be told why
    exchange_fail(w, x, reason, not kept or (reason_row(reason).side == 0 and reason != R_TOO_EARLY))    # that one is to ask again here


cdef void begin_degrade(Worker *w, Exchange *x, const char *at, size_t size, const char *path, size_t path_len, int reason) noexcept nogil:
    """The upstream is not asked. Of a request that is compensated, what it would have got is kept."""
    cdef Head *h = &w.request
    cdef size_t used = 0
    if not x.compensates:
        begin_refuse(w, x, at, size, reason)
        return
    out_reset(&w.out)
    if forward_request(w, x, h, &w.out, path, path_len) == 0:
        if x.request_body == REQ_STREAM and not x.expects_continue and body_request(w, x, at + h.size, size - h.size, &w.out, &used) == RC_FAIL:
            out_reset(&w.out)
            conn_rest(w, x.client, at + size, 0)
            exchange_fail(w, x, x.reason, True)
            return
        if out_store(&w.bufs, &w.out, &x.replay) != RC_OK:
            queue_clear(&w.bufs, &x.replay)
    out_reset(&w.out)
    conn_rest(w, x.client, at + h.size + used, size - h.size - used)
    exchange_fail(w, x, reason, False)


cdef void begin_proxy(Worker *w, Exchange *x, const char *at, size_t size, const char *path, size_t path_len) noexcept nogil:
    """Choose the upstream, take a connection, and send head and what is there of the body in one go."""
    cdef Head *h = &w.request
    cdef const PlanHead *p = x.plan.head
    cdef const Route *r = x.route
    cdef size_t used
    cdef uint64_t left, seen, bytes_in
    cdef uint8_t body
    cdef Chunked chunks
    cdef int rc, head_rc
    limits_find(w, x, h, x.client.trusted)
    if deadline_over(w, x):
        begin_refuse(w, x, at, size, R_DEADLINE)
        return
    x.hash_target = target_pick(w, p, r).upstream
    x.upstream = <Upstream *>x.plan.upstreams[x.hash_target]
    x.idempotent = h.has_key or x.upstream.retry_methods >> h.method & 1
    x.hash = hash_of(w, x, h, plan_upstream(p, x.hash_target))
    if plan_upstream(p, x.hash_target).template_:
        x.pool_key = template_key(w, x, h, plan_upstream(p, x.hash_target))
    if r.rewrites:
        rc = rewrite(w, r, p, &path, &path_len)
        if rc:
            begin_refuse(w, x, at, size, rc)
            return
    if ladder_holds(w, x):
        begin_degrade(w, x, at, size, path, path_len, R_DEGRADE_REFUSED)
        return
    if gw_atomic_load(&w.segment.drilled) and drill_draws(w, x) and x.fault == FAULT_503:
        begin_degrade(w, x, at, size, path, path_len, R_FAULT_INJECTED)
        return
    while True:
        rc = RC_AGAIN if x.fault else attempt_take(w, x)         # what a drill has drawn takes nothing yet
        if rc == RC_FAIL and permit_refused(x):
            begin_degrade(w, x, at, size, path, path_len, x.reason)
            return
        out_reset(&w.out)
        head_rc = forward_request(w, x, h, &w.out, path, path_len)
        if head_rc:
            begin_refuse(w, x, at, size, head_rc)
            return
        if rc != RC_OK or x.expects_continue or (x.upstream.proxy_protocol and not x.reused):
            break
        # a reused connection: everything that is there goes out now
        left, seen, bytes_in, body, chunks = x.request_left, x.body_seen, x.bytes_in, x.request_body, x.request_chunks
        used = 0
        if x.request_body == REQ_STREAM and size > h.size:
            if body_request(w, x, at + h.size, size - h.size, &w.out, &used) == RC_FAIL:
                conn_rest(w, x.client, at + size, 0)
                exchange_fail(w, x, x.reason, True)
                return
        x.replay_lost = not (x.idempotent or x.compensates)
        replay_keep(w, x)
        rc = conn_send(w, x.up, &w.out)
        if rc == RC_FAIL and not x.up.cut:   # closed while idle; nothing was sent, so any request may go elsewhere
            queue_clear(&w.bufs, &x.replay)
            x.request_left, x.body_seen, x.bytes_in, x.request_body, x.request_chunks = left, seen, bytes_in, body, chunks
            buf_give(&w.bufs, x.request_trailers)
            x.request_trailers = NULL
            x.replay_lost = 0
            x.attempts = 0
            x.upstream.cell.firsts -= 1      # it was none
            attempt_release(w, x, False, CLOSE_STALE)
            continue
        conn_rest(w, x.client, at + h.size + used, size - h.size - used)
        sent(w, x)
        return
    if out_store(&w.bufs, &w.out, &x.replay) != RC_OK:
        begin_refuse(w, x, at, size, R_BUFFER_LIMIT)
        return
    out_reset(&w.out)
    if conn_rest(w, x.client, at + h.size, size - h.size) != RC_OK:
        x.client.broken = 0
        exchange_fail(w, x, R_BUFFER_LIMIT, True)
        return
    if x.fault:
        again_after(w, x, drill_wait_ms(w, x))
    else:
        dispatched(w, x, rc)
