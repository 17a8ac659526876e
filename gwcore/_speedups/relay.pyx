"""The way of a request to its upstream and of the answer back: attempts, bodies in both directions, back-pressure."""
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr
from gwcore._speedups.admission cimport admission_answer, admission_end
from gwcore._speedups.again cimport again_stale, answer_drop, answer_failed, answer_refused, attempt_failed, first_reason
from gwcore._speedups.attempt cimport attempt_release, attempt_take
from gwcore._speedups.body cimport body_end_response, body_request, body_response
from gwcore._speedups.buffer cimport buf_bytes, queue_clear
from gwcore._speedups.chunked cimport chunked_init
from gwcore._speedups.cllhttp cimport LLHTTP_RESPONSE
from gwcore._speedups.conn cimport NEVER_MS, SINK_HEDGE, Conn, Worker, conn_again, conn_arm, conn_read, conn_register, conn_rest, conn_send, conn_watch
from gwcore._speedups.copyanswer cimport copy_stands
from gwcore._speedups.deadline cimport answer_due, request_out
from gwcore._speedups.forward cimport forward_interim, forward_response
from gwcore._speedups.head cimport Head, HeadLimits, head_feed, head_init
from gwcore._speedups.histogram cimport histogram_cell
from gwcore._speedups.fields cimport M_HEAD
from gwcore._speedups.http1 cimport BODY_CHUNKED, BODY_CLOSE, BODY_LENGTH, keep_alive_ms, response_body, response_check
from gwcore._speedups.idle cimport idle_peer_closed
from gwcore._speedups.ladder cimport ladder_replaces
from gwcore._speedups.keeping cimport keep_head, keep_look, keep_store
from gwcore._speedups.outlist cimport out_add, out_reset, out_store
from gwcore._speedups.permit cimport permit_answer, permit_cancel, permit_refused
from gwcore._speedups.proxyproto cimport proxy_write
from gwcore._speedups.queueing cimport queue_enter, queue_lower, wait_over
from gwcore._speedups.reasons cimport (
    R_BAD_RESPONSE, R_BUFFER_LIMIT, R_DEADLINE, R_DNS_FAILED, R_HEADERS_TOO_LARGE, R_NO_ENDPOINT, R_QUEUE_FULL,
    R_RESPONSE_HEADERS_TOO_LARGE, R_RESPONSE_TRUNCATED, R_TOO_MANY_HEADERS, R_UPGRADE_FAILED, R_UPSTREAM_ERROR, R_UPSTREAM_RESET,
)
from gwcore._speedups.retry cimport ON_SENT, ON_STALE
from gwcore._speedups.splice cimport Moved, conn_dry, pipe_give, pipe_take, splice_move, splice_through
from gwcore._speedups.story cimport REQ_DISCARD, REQ_DONE, REQ_STREAM, X_ANSWERING, X_CONNECTING, X_QUEUED, X_SENT, Exchange, deadline_over
from gwcore._speedups.twin cimport hedge_arm, twin_swap
from gwcore._speedups.tunnel cimport tunnel_agreed, tunnel_begin
from gwcore._speedups.types cimport RC_AGAIN, RC_DONE, RC_FAIL, RC_OK
from gwcore.pool cimport CLOSE_ERROR, CLOSE_PEER, CLOSE_STRAY
from gwcore._speedups.connect cimport upstream_stray
from gwcore._speedups.ends cimport answered, client_left, client_write_ms, exchange_fail, exchange_move, twin_part

cdef enum:
    READS_A_TURN = 8         # of one connection, before others get their turn
    INTERIMS_MAX = 8
    READ_LEAST = 4096
    CHUNK_FRAME = 64         # more than framing adds to a piece of a body
    STALE_US = 1000000       # closed so soon after the request: it was about to close anyway

cdef double EWMA_SHARE = 0.1     # of the newest answer in an endpoint's latency

# ---- attempts -----------------------------------------------------------------------------------------------------

cdef void dispatch(Worker *w, Exchange *x) noexcept nogil:
    """Take a connection for a request whose head is in x.replay."""
    if deadline_over(w, x):
        exchange_fail(w, x, R_DEADLINE, False)
        return
    dispatched(w, x, attempt_take(w, x))


cdef void queue_up(Worker *w, Exchange *x) noexcept nogil:
    """There is no place for it now: it waits, or is refused. In a full queue it takes the turn of a lower tier."""
    cdef int reason = queue_enter(w, x)
    cdef Exchange *lower = queue_lower(w, x) if reason == R_QUEUE_FULL else NULL
    if lower != NULL:
        lower.upstream.cell.queue_full += 1
        exchange_fail(w, lower, R_QUEUE_FULL, False)
        reason = queue_enter(w, x)
    if reason:
        x.upstream.cell.queue_full += reason == R_QUEUE_FULL
        exchange_fail(w, x, first_reason(x, reason), False)
        return
    if x.phase != X_QUEUED:
        exchange_move(w, x, X_QUEUED)
    conn_register(w, x.client)
    conn_arm(w, x.client, x.waiter.deadline_ms)


cdef void dispatched(Worker *w, Exchange *x, int rc) noexcept nogil:
    if x.reason or rc != RC_FAIL:
        wait_over(w, x)
    if rc == RC_OK:
        send_replay(w, x)
    elif rc == RC_AGAIN:
        exchange_move(w, x, X_CONNECTING)
    elif x.reason == 0:
        queue_up(w, x)
    elif x.reason == R_DNS_FAILED or x.reason == R_NO_ENDPOINT or permit_refused(x):     # no attempt was made, so none is made again
        exchange_fail(w, x, first_reason(x, x.reason), False)
    else:
        attempt_failed(w, x, x.reason)


cdef bint worth_keeping(const Exchange *x) noexcept nogil:
    """May a request that is sent now have to be sent again?"""
    return x.compensates or x.idempotent and (x.reused or (x.upstream.retry_extra and (x.upstream.retry_on & ON_SENT or x.upstream.hedge_ms)))


cdef int body_keep(Worker *w, Exchange *x) noexcept nogil:
    """Copy the body bytes that wait behind what is kept of the request, if all that is then kept is within buffers.replay. RC_DONE: they are
    left as they are. RC_FAIL: x.reason."""
    cdef Conn *c = x.client
    cdef size_t used = 0
    cdef int rc
    if x.replay_lost or x.replay.bytes + c.input.len + CHUNK_FRAME > x.route.replay_bytes or not worth_keeping(x):
        return RC_DONE
    rc = body_request(w, x, buf_bytes(c.input), c.input.len, &w.out, &used)
    if rc != RC_FAIL and out_store(&w.bufs, &w.out, &x.replay) != RC_OK:
        x.reason = R_BUFFER_LIMIT
        rc = RC_FAIL
    out_reset(&w.out)
    conn_rest(w, c, buf_bytes(c.input) + used, c.input.len - used)
    return RC_FAIL if rc == RC_FAIL else RC_OK


cdef void send_replay(Worker *w, Exchange *x) noexcept nogil:
    """The connection is up: send what is kept, and body bytes that wait."""
    cdef Conn *c = x.client
    cdef size_t used = 0
    cdef bint waits = x.request_body == REQ_STREAM and c.input != NULL and not x.expects_continue
    cdef int rc
    out_reset(&w.out)
    rc = body_keep(w, x) if waits else RC_OK
    if rc != RC_FAIL and x.upstream.proxy_protocol and not x.reused and x.up.tls.ssl == NULL:
        proxy_write(c, &w.out, x.upstream.proxy_protocol)
    if rc != RC_FAIL:
        request_out(w, x, &w.out)
    if rc == RC_DONE:
        rc = body_request(w, x, buf_bytes(c.input), c.input.len, &w.out, &used)
    if rc == RC_FAIL:
        out_reset(&w.out)
        exchange_fail(w, x, x.reason, True)
        return
    if used:
        x.replay_lost = 1
    rc = conn_send(w, x.up, &w.out)
    if used:
        conn_rest(w, c, buf_bytes(c.input) + used, c.input.len - used)
    if rc == RC_FAIL and x.reused and not used and not x.stale_used and not x.up.cut:
        again_stale(w, x)                            # nothing was sent: any request may go again
        dispatch(w, x)
        return
    if x.replay_lost or not worth_keeping(x):
        queue_clear(&w.bufs, &x.replay)
        x.replay_lost = 1
    sent(w, x)


cdef void sent(Worker *w, Exchange *x) noexcept nogil:
    """The request head is with the kernel (or in the connection's queue)."""
    exchange_move(w, x, X_SENT)
    x.bytes_sent = 1
    if x.upstream.hedge_ms and x.request_body == REQ_DONE:
        hedge_arm(w, x)
    conn_arm(w, x.up, answer_due(w, x, x.route.response_ms, False))
    x.sent_us = w.now_us
    if x.expects_continue:
        x.expects_continue = 0
        if x.client.input == NULL:
            out_add(&w.out, b"HTTP/1.1 100 Continue\r\n\r\n", 25)
            conn_send(w, x.client, &w.out)
    if x.up.broken:
        write_failed(w, x)
    elif x.request_body == REQ_STREAM:
        request_pump(w, x)


cdef void write_failed(Worker *w, Exchange *x) noexcept nogil:
    """The upstream does not take the request any more. It may have answered before: read what is there, and wait for no more."""
    cdef Conn *u = x.up
    if x.request_body == REQ_STREAM:
        x.request_body = REQ_DISCARD
    x.upstream_keep = 0
    u.broken = 0
    u.cut = 1
    u.readable = 1
    u.ended = 1
    upstream_read(w, x)
    x = holder(u, x)
    if x.item.live and x.up == u and not u.readable and (x.phase == X_SENT or x.phase == X_ANSWERING):
        upstream_ended(w, x, False)


cdef void replay_keep(Worker *w, Exchange *x) noexcept nogil:
    """Copy what is about to be sent, so that it can be sent again: all of the request so far, or nothing."""
    if x.replay_lost:
        return
    if x.replay.bytes + w.out.bytes > x.route.replay_bytes or out_store(&w.bufs, &w.out, &x.replay) != RC_OK:
        queue_clear(&w.bufs, &x.replay)
        x.replay_lost = 1


cdef size_t body_room(const Exchange *x, const Conn *to) noexcept nogil:
    """How much may be read for `to`, so that no more than buffers.high waits should it take nothing."""
    return x.route.buffer_high - to.output.bytes if x.route.buffer_high > to.output.bytes + READ_LEAST else READ_LEAST


cdef int request_splice(Worker *w, Exchange *x) noexcept nogil:
    """Some of a large body of known length, from socket to socket. RC_OK: go on. RC_DONE: there is no pipe, copy. RC_FAIL: the exchange has
    been told."""
    cdef Moved moved
    cdef Conn *u = x.up
    cdef int rc = splice_through(w, x.client, u, x.request_left if x.request_left < x.route.buffer_high else x.route.buffer_high, &moved)
    if rc == RC_DONE:
        return rc
    if moved.taken:
        queue_clear(&w.bufs, &x.replay)
        x.replay_lost = 1
    x.request_left -= moved.taken
    x.body_seen += moved.taken
    x.bytes_in += moved.taken
    if x.request_left == 0:
        x.request_body = REQ_DONE
    if rc == RC_FAIL and u.broken:
        write_failed(w, x)
        return RC_FAIL
    if rc == RC_FAIL or moved.ended:                     # the client left in the middle of its body
        client_left(w, x)
        return RC_FAIL
    if x.phase == X_SENT and moved.taken:
        conn_arm(w, u, answer_due(w, x, x.upstream.write_ms if u.output.bytes else x.route.response_ms, True))
    return RC_OK


cdef void request_pump(Worker *w, Exchange *x) noexcept nogil:
    """Move request body from the client to the upstream, as far as both go."""
    cdef Conn *c = x.client
    cdef const char *at
    cdef size_t size, used
    cdef int rc, sent_rc, reads = 0
    while x.request_body == REQ_STREAM and x.up != NULL and x.up.output.bytes <= x.route.buffer_low:
        if c.input != NULL:
            at, size = buf_bytes(c.input), c.input.len
        elif c.readable:
            reads += 1
            if reads > READS_A_TURN:
                conn_again(w, c)
                break
            if x.request_kind == BODY_LENGTH and x.plan.head.splice_bytes and x.request_left >= x.plan.head.splice_bytes and x.up.output.bytes == 0 \
                    and c.tls.ssl == NULL and x.up.tls.ssl == NULL:
                rc = request_splice(w, x)
                if rc == RC_FAIL:
                    return
                if rc == RC_OK:
                    continue
            rc = conn_read(w, c, body_room(x, x.up), &at, &size)
            if rc == RC_AGAIN:
                break
            if rc != RC_OK:                          # the client left in the middle of its body
                client_left(w, x)
                return
        else:
            break
        out_reset(&w.out)
        rc = body_request(w, x, at, size, &w.out, &used)
        if rc == RC_FAIL:
            out_reset(&w.out)
            conn_rest(w, c, at + size, 0)
            exchange_fail(w, x, x.reason, True)
            return
        replay_keep(w, x)
        sent_rc = conn_send(w, x.up, &w.out)
        conn_rest(w, c, at + used, size - used)
        if sent_rc == RC_FAIL:
            write_failed(w, x)
            return
        if x.phase == X_SENT:
            conn_arm(w, x.up, answer_due(w, x, x.upstream.write_ms if x.up.output.bytes else x.route.response_ms, True))
    if x.request_body == REQ_STREAM and c.output.bytes == 0:
        if x.body_look_ms == 0:
            x.body_look_ms = body_due(w, x)
            x.body_mark_ms = w.now_ms
        conn_arm(w, c, x.body_look_ms)
    elif x.request_body == REQ_DONE and x.phase <= X_SENT:
        x.sent_us = w.now_us
        if x.upstream.hedge_ms and x.phase == X_SENT:
            hedge_arm(w, x)
            conn_arm(w, x.up, answer_due(w, x, x.upstream.write_ms if x.up.output.bytes else x.route.response_ms, True))
        conn_arm(w, c, w.now_ms + NEVER_MS)


cdef uint64_t body_due(Worker *w, const Exchange *x) noexcept nogil:
    """When the client must have sent more: an idle limit, and a look at the rate every grace period."""
    cdef uint64_t due = w.now_ms + x.route.body_idle_ms
    if x.route.body_min_rate and w.now_ms + x.plan.head.body_rate_grace_ms < due:
        due = w.now_ms + x.plan.head.body_rate_grace_ms
    return due


# ---- answers ------------------------------------------------------------------------------------------------------

cdef Exchange *holder(const Conn *u, Exchange *x) noexcept nogil:
    """Whose connection u is now: that of a second try that was answered first went over to the first."""
    return <Exchange *>u.exchange if u.item.live and u.exchange != NULL else x


cdef void upstream_read(Worker *w, Exchange *x) noexcept nogil:
    """Read from the upstream as long as the client takes it."""
    cdef Conn *u
    cdef const char *at
    cdef size_t size, before
    cdef int rc, reads = 0
    while x.item.live and x.up != NULL and (x.up.readable or x.piped) and (x.phase == X_SENT or x.phase == X_ANSWERING):
        u = x.up
        if x.pipe:
            response_splice(w, x, u)
            return
        if x.client.output.bytes > x.route.buffer_low:
            return                                   # back-pressure: the client's flush calls us again
        reads += 1
        if reads > READS_A_TURN:
            conn_again(w, x.client)
            return
        before = u.input.len if u.input != NULL else 0
        rc = conn_read(w, u, body_room(x, x.client), &at, &size)
        if rc == RC_AGAIN:
            return
        if rc != RC_OK:
            upstream_ended(w, x, rc == RC_DONE and not u.cut)
            return
        x.got_bytes = 1
        if x.phase == X_SENT:
            response_head(w, x, at, size, before)
            x = holder(u, x)
        else:
            out_reset(&w.out)
            response_body_on(w, x, u, at, size)


cdef void upstream_ended(Worker *w, Exchange *x, bint clean) noexcept nogil:
    """FIN (clean) or an error from the upstream."""
    cdef int rc
    if x.phase == X_SENT:
        if not x.got_bytes and x.reused and w.now_us - x.start_us < STALE_US:
            idle_peer_closed(&x.up.pooled, w.now_ms)
        if not x.got_bytes and x.reused and not x.stale_used and x.twin == NULL and x.upstream.retry_on & ON_STALE and x.idempotent and not x.replay_lost:
            again_stale(w, x)        # it closed the idle connection while our request was on its way (RFC 9112 9.3.1)
            dispatch(w, x)
            return
        if x.twin != NULL and not x.got_bytes and x.reused:
            permit_cancel(w, x)                      # it may have closed as idle; the other try goes on in any case
        attempt_failed(w, x, R_UPSTREAM_RESET)
        return
    if clean and x.response_kind == BODY_CLOSE:
        out_reset(&w.out)
        body_end_response(x, &w.out)
        x.bytes_out += w.out.bytes
        x.upstream_keep = 0
        rc = conn_send(w, x.client, &w.out)
        response_done(w, x, rc, True)
        return
    exchange_fail(w, x, R_RESPONSE_TRUNCATED, True)


cdef void response_head(Worker *w, Exchange *x, const char *at, size_t size, size_t before) noexcept nogil:
    cdef Head *h = &w.response
    cdef HeadLimits limits
    cdef int rc, reason
    cdef bint close
    limits.url_bytes = 0
    limits.head_bytes = x.plan.head.response_head_bytes
    limits.fields = x.plan.head.response_fields
    while True:
        rc = RC_AGAIN
        if size and (before == 0 or size >= limits.head_bytes or memchr(at + before, c'\n', size - before) != NULL):
            head_init(h, LLHTTP_RESPONSE)
            rc = head_feed(h, at, size, &limits)
        if rc == RC_AGAIN:
            if conn_rest(w, x.up, at, size) != RC_OK:
                exchange_fail(w, x, R_BUFFER_LIMIT, False)
            return
        reason = h.reason if rc == RC_FAIL else response_check(h, x.method == M_HEAD)
        if reason:
            if reason == R_TOO_MANY_HEADERS or reason == R_HEADERS_TOO_LARGE:
                reason = R_RESPONSE_HEADERS_TOO_LARGE
            else:
                reason = R_BAD_RESPONSE
            exchange_fail(w, x, reason, False)
            return
        if h.status >= 200:
            break
        x.interims += 1
        if h.status == 101:
            if tunnel_agreed(x, h):
                tunnel_begin(w, x, h, at + h.size, size - h.size)
            else:
                exchange_fail(w, x, R_UPGRADE_FAILED, False)
            return
        if x.interims > INTERIMS_MAX:
            exchange_fail(w, x, R_BAD_RESPONSE, False)
            return
        if h.status != 100 and not x.http10:
            out_reset(&w.out)
            forward_interim(w, x, h, &w.out)
            x.bytes_out += w.out.bytes
            if conn_send(w, x.client, &w.out) == RC_FAIL:
                client_left(w, x)
                return
        at += h.size
        size -= h.size
        before = 0
    if x.client.sink == SINK_HEDGE and not answer_failed(x, h.status):       # the first one gets its attempt, and it that of the first
        x.upstream.cell.hedges_won += 1
        x = x.twin
        twin_swap(x, x.twin)
    x.status = h.status
    x.first_byte_us = w.now_us
    permit_answer(w, x, h.status)
    admission_answer(w, x, h.status)
    if not x.fault:                          # a drill's delay is none of the upstream's
        latency_note(w, x)
    if h.status >= 429 and answer_refused(w, x, h, at, size):
        return
    if h.status >= 500 and (ladder_replaces(x, h.status) or x.copying != NULL and copy_stands(w, x) != NULL):
        answer_drop(w, x, h, at, size)
        exchange_fail(w, x, R_UPSTREAM_ERROR, False)
        return
    x.response_kind = <uint8_t>response_body(h, x.method == M_HEAD)
    x.response_left = <uint64_t>h.length if h.length > 0 else 0
    x.chunk_out = (x.response_kind == BODY_CHUNKED or x.response_kind == BODY_CLOSE) and not x.http10
    if x.response_kind == BODY_CHUNKED:
        chunked_init(&x.response_chunks, x.plan.head.chunk_ext_bytes, x.plan.head.trailer_bytes)
    if x.request_body != REQ_DISCARD:
        x.upstream_keep = h.keep_alive and x.response_kind != BODY_CLOSE and not (h.status == 204 and (h.has_length or h.chunked))
    if h.keep_field >= 0 and x.upstream_keep:
        idle_granted(x, keep_alive_ms(h))
    if (x.response_kind == BODY_CHUNKED or x.response_kind == BODY_CLOSE) and x.http10:
        x.keep_alive = 0
    if w.draining:
        x.keep_alive = 0
    close = not x.keep_alive
    if x.replay.bytes:
        queue_clear(&w.bufs, &x.replay)
    x.replay_lost = 1
    exchange_move(w, x, X_ANSWERING)
    if x.copying != NULL:
        keep_look(w, x, h)
    out_reset(&w.out)
    forward_response(w, x, h, &w.out, close)
    if x.collecting:
        keep_head(w, x, h)
    response_body_on(w, x, x.up, at + h.size, size - h.size)
    if x.item.live:
        twin_part(w, x)                              # at once, but not before the bytes of this turn were taken


cdef void latency_note(Worker *w, Exchange *x) noexcept nogil:
    """An answer's head is here: so long it took."""
    cdef double ms = (w.now_us - x.start_us) / 1000.0
    x.upstream.cell.seconds[histogram_cell(w.now_us - x.start_us)] += 1
    x.upstream.cell.sum_us += w.now_us - x.start_us
    if x.endpoint.ewma_ms == 0:
        x.endpoint.ewma_ms = ms
    else:
        x.endpoint.ewma_ms += (ms - x.endpoint.ewma_ms) * EWMA_SHARE


cdef void idle_granted(Exchange *x, int64_t ms) noexcept nogil:
    """What the upstream said of its connection's idle life; 0 is none."""
    if ms == 0:
        x.upstream_keep = 0
    elif ms > 0:
        x.up.pooled.hint_ms = <uint32_t>ms


cdef void response_body_on(Worker *w, Exchange *x, Conn *u, const char *at, size_t size) noexcept nogil:
    """Send what w.out holds and what at[:size] gives of the body. at[:size] is all that the upstream connection holds unread."""
    cdef size_t used = 0
    cdef int rc = body_response(w, x, at, size, &w.out, &used), sent_rc
    cdef bint stalled = x.client.output.bytes != 0
    x.bytes_out += w.out.bytes
    x.client.final = rc == RC_DONE and not x.keep_alive
    sent_rc = conn_send(w, x.client, &w.out)
    conn_rest(w, u, at + size, 0)
    if rc == RC_FAIL:
        exchange_fail(w, x, R_RESPONSE_TRUNCATED, True)
        return
    if sent_rc == RC_FAIL:
        client_left(w, x)
        return
    if rc == RC_DONE:
        # one byte more than the answer has, and the connection is out of step
        response_done(w, x, sent_rc, used == size)
        return
    conn_arm(w, u, w.now_ms + x.route.idle_ms)
    if sent_rc == RC_AGAIN:
        if not stalled:                              # bytes that we add to a stalled client are no progress of its own
            conn_arm(w, x.client, w.now_ms + client_write_ms(x))
    elif x.response_kind == BODY_LENGTH and x.plan.head.splice_bytes and x.response_left >= x.plan.head.splice_bytes \
            and x.client.tls.ssl == NULL and u.tls.ssl == NULL and not x.client.sink and not x.collecting:
        conn_watch(w, x.client)
        pipe_take(w, &x.pipe)                        # when there is none it goes on by copying


cdef void response_splice(Worker *w, Exchange *x, Conn *u) noexcept nogil:
    """The rest of a large body of known length, from socket to socket."""
    cdef Conn *c = x.client
    cdef Moved moved
    cdef int rc = splice_move(w, x.pipe, u, c, x.response_left, x.piped, &moved)
    x.response_left -= moved.taken
    x.piped += moved.taken - moved.given
    x.bytes_out += moved.given
    if rc == RC_FAIL:
        if c.broken:
            client_left(w, x)
        else:
            upstream_ended(w, x, False)
        return
    if x.response_left == 0 and x.piped == 0:
        pipe_give(w, &x.pipe, 0)
        conn_arm(w, c, w.now_ms + NEVER_MS)
        response_done(w, x, RC_OK, conn_dry(u))
        return
    if moved.ended:
        upstream_ended(w, x, True)
        return
    if moved.taken:
        conn_arm(w, u, w.now_ms + x.route.idle_ms)
    if x.piped and (moved.given or not c.timer.due_ms or c.timer.due_ms > w.now_ms + client_write_ms(x)):
        conn_arm(w, c, w.now_ms + client_write_ms(x))
    if rc == RC_AGAIN:
        conn_again(w, c)


cdef void response_done(Worker *w, Exchange *x, int sent_rc, bint clean) noexcept nogil:
    """The whole answer came from the upstream and was handed to the client's socket (sent_rc). clean: not one byte came behind it."""
    cdef Conn *u = x.up
    cdef bint in_step = clean and x.request_body == REQ_DONE and u.output.bytes == 0
    cdef bint keep = in_step and x.upstream_keep and not u.ended and not u.readable
    cdef int why = CLOSE_PEER if in_step else CLOSE_ERROR
    if x.collecting and clean and x.response_kind != BODY_CLOSE:     # where a body ends with its connection, nobody knows that it is whole
        keep_store(w, x)
    if not keep and not u.broken and (not clean or upstream_stray(u)):
        why = CLOSE_STRAY
    attempt_release(w, x, keep, why)
    admission_end(w, x)
    if x.request_body == REQ_STREAM:
        x.request_body = REQ_DISCARD
    answered(w, x, sent_rc)
