"""How exchanges and client connections end. Steps elsewhere release nothing themselves: exchange_end gives everything back, may be called
in any phase, and twice."""
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from gwcore._speedups.admission cimport admission_count, admission_end, limit_sample
from gwcore._speedups.accesslog cimport log_exchange, log_refused
from gwcore._speedups.answer cimport answer_error
from gwcore._speedups.attempt cimport attempt_release
from gwcore._speedups.body cimport body_request, body_skip
from gwcore._speedups.buffer cimport buf_bytes, buf_give, queue_clear
from gwcore._speedups.clients cimport client_enter
from gwcore._speedups.collect cimport keep_close
from gwcore._speedups.conn cimport (
    SCRATCH_BYTES, C_IDLE, C_LINGER, SINK_HEDGE, Conn, Worker, conn_again, conn_arm, conn_close, conn_limit, conn_move, conn_read, conn_register, conn_rest,
    conn_send, conn_shut,
)
from gwcore._speedups.copenssl cimport SSL_R_HTTP_REQUEST
from gwcore._speedups.copyanswer cimport copy_instead
from gwcore._speedups.drill cimport drill_count
from gwcore._speedups.histogram cimport histogram_cell
from gwcore._speedups.fields cimport M_HEAD
from gwcore._speedups.journal cimport journal_add
from gwcore._speedups.ladder cimport ladder_falls, ladder_static
from gwcore._speedups.outlist cimport out_reset, out_store
from gwcore._speedups.permit cimport permit_cancel, permit_fail
from gwcore._speedups.promise cimport promise_count
from gwcore._speedups.queueing cimport queue_leave, wait_over
from gwcore._speedups.reasons cimport R_BAD_PROXY_HEADER, R_BAD_REQUEST, R_CLIENT_CLOSED, R_CONNECTION_LIMIT, R_OVERLOAD, R_RESPONSE_TIMEOUT
from gwcore._speedups.shm cimport RouteCell
from gwcore._speedups.slab cimport slab_give
from gwcore._speedups.splice cimport conn_dry, pipe_give
from gwcore._speedups.story cimport (
    REQ_DISCARD, REQ_DONE, REQ_STREAM, X_ANSWERING, X_BACKOFF, X_CONNECTING, X_DISCARDING, X_FLUSHING, X_FREE, X_QUEUED, X_SENT, X_TUNNEL,
    Exchange,
)
from gwcore._speedups.sys cimport SOL_SOCKET, SO_LINGER, recv, setsockopt
from gwcore._speedups.tls cimport tls_end, tls_is_early
from gwcore._speedups.types cimport RC_AGAIN, RC_DONE, RC_FAIL, RC_OK, link_push
from gwcore.pool cimport CLOSE_ABORTED, CLOSE_ERROR, CLOSE_TUNNEL

# from FREE, QUEUED, BACKOFF, CONNECTING, SENT, ANSWERING, FLUSHING, DISCARDING, TUNNEL: the legal next phases
cdef uint32_t[9] LEGAL
cdef enum: TRYING = 1 << X_QUEUED | 1 << X_BACKOFF | 1 << X_CONNECTING | 1 << X_SENT | 1 << X_FLUSHING | 1 << X_FREE
LEGAL[:] = [
    TRYING,                  # FREE: the client left before its own answer
    TRYING & ~(1 << X_QUEUED),
    TRYING,
    TRYING,
    TRYING | 1 << X_ANSWERING | 1 << X_TUNNEL,
    1 << X_FLUSHING | 1 << X_FREE,
    1 << X_DISCARDING | 1 << X_FREE,
    1 << X_FREE,
    1 << X_FREE,
]

cdef enum:
    WATCH_MS = 100           # from here on a client that leaves is noticed, though its answer was to be the end

cdef struct LingerOption:
    int on
    int seconds


cdef void exchange_move(Worker *w, Exchange *x, int to) noexcept nogil:
    """The only writer of a phase."""
    if not LEGAL[x.phase] >> to & 1:
        w.lane.worker.illegal_moves += 1
    x.phase = <uint8_t>to


# ---- ends ---------------------------------------------------------------------------------------------------------

cdef void exchange_count(Worker *w, const Exchange *x, uint64_t us) noexcept nogil:
    """A client's request is over, after us."""
    cdef RouteCell *cell
    cdef int group = x.status // 100 if 100 <= x.status < 600 and x.reason != R_CLIENT_CLOSED else 0
    if x.route != NULL or x.phase == X_TUNNEL:
        cell = &w.lane.routes[x.route.slot if x.route != NULL else x.route_slot]
        cell.requests[group] += 1
        cell.bytes_in += x.bytes_in
        cell.bytes_out += x.bytes_out
        cell.cached[x.cached] += 1
        if x.phase == X_TUNNEL:              # its life is no latency
            w.lane.worker.tunnels -= 1
        else:
            cell.sum_us += us
            cell.seconds[histogram_cell(us)] += 1
            promise_count(w, x, cell, us)
    w.lane.worker.requests += 1
    w.lane.worker.bytes_in += x.bytes_in
    w.lane.worker.bytes_out += x.bytes_out
    if x.reason:
        w.lane.reasons[x.reason] += 1


cdef void exchange_tell(Worker *w, Exchange *x) noexcept nogil:
    """Count and log it."""
    cdef uint64_t us = w.now_us - x.start_us
    if x.client.sink:
        w.lane.worker.detached += 1
    else:
        exchange_count(w, x, us)
        if x.fault:
            drill_count(w, x, us)
    if x.upstream != NULL or x.reason == R_OVERLOAD:
        admission_count(w, x, us if x.phase != X_TUNNEL else 0)
    if w.ring != NULL:
        log_exchange(w, x)


cdef void twin_part(Worker *w, Exchange *x) noexcept nogil:
    """A request that is tried twice goes on with one try: x is about to end, or has its answer. A second try ends with its first, without a
    verdict; a first one that outlives its second goes on alone."""
    cdef Exchange *y = x.twin
    if y == NULL:
        return
    x.twin = y.twin = NULL
    if y.client.sink == SINK_HEDGE:
        client_end(w, y.client, False)


cdef void exchange_end(Worker *w, Exchange *x) noexcept nogil:
    """The one exit: count, log, give everything back. The client connection stays, without an exchange."""
    if not x.item.live:
        return
    twin_part(w, x)
    queue_leave(w, x)
    wait_over(w, x)
    permit_cancel(w, x)
    admission_end(w, x)
    if x.up != NULL:
        attempt_release(w, x, False, CLOSE_TUNNEL if x.phase == X_TUNNEL else CLOSE_ABORTED)
    if x.client.sink != SINK_HEDGE:
        exchange_tell(w, x)
    if x.replay.bytes:
        queue_clear(&w.bufs, &x.replay)
    pipe_give(w, &x.pipe, x.piped)
    x.piped = 0
    if x.copying != NULL:
        keep_close(w, x)
    buf_give(&w.bufs, x.note)
    buf_give(&w.bufs, x.kept)
    x.kept = NULL
    buf_give(&w.bufs, x.request_trailers)
    buf_give(&w.bufs, x.response_trailers)
    x.note = x.request_trailers = x.response_trailers = NULL
    if x.plan != NULL:
        x.plan.refs -= 1
    w.lane.worker.exchanges -= 1
    exchange_move(w, x, X_FREE)
    x.client.exchange = NULL
    slab_give(&w.exchanges, x)


cdef void client_end(Worker *w, Conn *c, bint abort) noexcept nogil:
    """Close a client connection, with whatever exchange it has. abort: by RST, so that nobody takes a cut answer for a whole one."""
    cdef LingerOption option
    if not c.item.live:
        return
    if c.exchange != NULL:
        exchange_end(w, <Exchange *>c.exchange)
    if abort and c.fd >= 0:
        option.on, option.seconds = 1, 0
        setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &option, sizeof(option))
        c.cut = 1
    conn_close(w, c)


cdef void client_linger(Worker *w, Conn *c) noexcept nogil:
    """The answer is out: shut down our side, read and drop what still comes for a while, then close. Closing at once with unread bytes
    would send RST, and RST eats the answer."""
    if c.ended == 2 or c.broken:             # a client without a socket has ended from the beginning
        conn_close(w, c)
        return
    conn_shut(w, c)
    if not conn_move(w, c, C_LINGER):
        conn_close(w, c)
        return
    buf_give(&w.bufs, c.input)
    c.input = NULL
    c.linger_left = w.plan.head.linger_bytes
    conn_arm(w, c, w.now_ms + w.plan.head.linger_ms)
    if not c.watched:
        c.readable = 1
    linger_read(w, c)
    if c.item.live and not conn_register(w, c):
        conn_close(w, c)


cdef void linger_read(Worker *w, Conn *c) noexcept nogil:
    cdef ssize_t n
    while c.readable or c.ended:
        n = recv(c.fd, w.scratch, 65536, 0)
        if n <= 0:
            c.readable = 0
            if n == 0 or c.broken:
                conn_close(w, c)
            return
        if n >= c.linger_left:
            conn_close(w, c)
            return
        c.linger_left -= <uint32_t>n


cdef void client_settle(Worker *w, Conn *c) noexcept nogil:
    """A new connection was read once. The kernel is told of it, unless nothing but the upstream's answer is waited for, with which it ends:
    then that is seldom worth its price, a tenth of such a request."""
    cdef Exchange *x
    if not c.item.live or c.watched:
        return
    x = <Exchange *>c.exchange
    if x != NULL and x.phase == X_SENT and x.request_body == REQ_DONE and not x.keep_alive and not x.upgrade:
        conn_arm(w, c, w.now_ms + WATCH_MS)
    elif not conn_register(w, c):
        client_end(w, c, False)


cdef void client_next(Worker *w, Conn *c, bint keep) noexcept nogil:
    """The exchange is over: wait for the next request, take one that came already, or close."""
    if not keep:
        if not c.watched:                    # nobody has told of bytes behind the request
            c.readable = not conn_dry(c)
        if c.readable or c.input != NULL or tls_is_early(&c.tls):        # what ends the handshake is on its way
            client_linger(w, c)
        else:
            conn_close(w, c)
        return
    if not conn_move(w, c, C_IDLE):
        conn_close(w, c)
        return
    conn_arm(w, c, conn_limit(w, c, w.now_ms + w.plan.head.keepalive_ms))
    link_push(&w.lru, &c.idle.link)
    if c.input != NULL or c.readable:
        conn_again(w, c)


cdef void exchange_complete(Worker *w, Exchange *x) noexcept nogil:
    """The client has the whole answer."""
    cdef Conn *c = x.client
    cdef bint keep = x.keep_alive and not w.draining
    cdef bint body_left = x.request_body != REQ_DONE
    if body_left and keep and x.discarded < x.plan.head.linger_bytes:
        exchange_move(w, x, X_DISCARDING)
        x.request_body = REQ_DISCARD
        conn_arm(w, c, w.now_ms + x.plan.head.linger_ms)
        discard(w, x)
        return
    exchange_end(w, x)
    if body_left:
        client_linger(w, c)
    else:
        client_next(w, c, keep)


cdef void discard(Worker *w, Exchange *x) noexcept nogil:
    """Answered before the request body was read: read the rest and drop it, so that it is never taken for a request (RFC 9112 9.3)."""
    cdef Conn *c = x.client
    cdef const char *at
    cdef size_t size, used
    cdef int rc
    while True:
        if c.input != NULL:
            at, size = buf_bytes(c.input), c.input.len
        elif c.readable:
            rc = conn_read(w, c, SCRATCH_BYTES, &at, &size)
            if rc == RC_AGAIN:
                return
            if rc != RC_OK:
                client_end(w, c, False)
                return
        else:
            return
        rc = body_skip(w, x, at, size, &used)
        conn_rest(w, c, at + used, size - used)
        if rc == RC_DONE:
            exchange_end(w, x)
            client_next(w, c, not w.draining)
            return
        if rc == RC_FAIL or x.discarded >= x.plan.head.linger_bytes:
            exchange_end(w, x)
            client_linger(w, c)
            return


cdef void answered(Worker *w, Exchange *x, int rc) noexcept nogil:
    """The answer was handed to conn_send, which said rc."""
    if rc == RC_FAIL:
        x.reason = R_CLIENT_CLOSED
        client_end(w, x.client, False)
        return
    exchange_move(w, x, X_FLUSHING)
    if rc == RC_AGAIN:
        conn_arm(w, x.client, w.now_ms + client_write_ms(x))
        return
    exchange_complete(w, x)


cdef uint32_t client_write_ms(const Exchange *x) noexcept nogil:
    return x.route.client_write_ms if x.route != NULL else x.plan.head.client_write_ms


cdef bint kept_whole(Worker *w, Exchange *x) noexcept nogil:
    """Is all of a request kept that is to be compensated? What waits of its body is taken in."""
    cdef Conn *c = x.client
    cdef size_t used = 0
    cdef int reason = x.reason
    if x.replay.bytes and not x.replay_lost and x.request_body == REQ_STREAM and c.input != NULL and not x.expects_continue:
        out_reset(&w.out)
        if body_request(w, x, buf_bytes(c.input), c.input.len, &w.out, &used) == RC_FAIL or out_store(&w.bufs, &w.out, &x.replay) != RC_OK:
            x.reason = <unsigned short>reason
            x.keep_alive = 0
            x.replay_lost = 1
        out_reset(&w.out)
        conn_rest(w, c, buf_bytes(c.input) + used, c.input.len - used)
    if x.replay.bytes and not x.replay_lost and x.request_body == REQ_DONE and x.body_seen <= x.ladder.compensate_bytes:
        return True
    w.lane.worker.compensations_lost += 1
    return False


cdef void exchange_fail(Worker *w, Exchange *x, int reason, bint close) noexcept nogil:
    """Refuse or give up, for `reason`. Nothing sent yet: an answer. Part of an answer sent: the connection is cut, never ended as if whole."""
    cdef Conn *c = x.client
    cdef int rc
    x.reason = reason
    queue_leave(w, x)
    permit_fail(w, x, reason)
    if reason == R_RESPONSE_TIMEOUT and x.placed:
        limit_sample(w, x)
    twin_part(w, x)
    admission_end(w, x)
    if x.up != NULL:
        attempt_release(w, x, False, CLOSE_ERROR)
    if x.client.sink == SINK_HEDGE:              # nobody is to hear of it
        client_end(w, c, False)
        return
    if x.phase >= X_ANSWERING:
        client_end(w, c, True)
        return
    if x.expects_continue or w.draining:
        close = True
    if close:
        x.keep_alive = 0
    out_reset(&w.out)
    x.status = <unsigned short>copy_instead(w, x, reason, &w.out)
    if x.status == 0 and ladder_falls(x, reason) and (not x.compensates or kept_whole(w, x) and journal_add(w, x)) and ladder_static(w, x, &w.out):
        x.status = <unsigned short>x.ladder.status
    if x.status == 0:
        x.status = <unsigned short>answer_error(w, &w.out, x.plan.head, reason, not x.keep_alive, x.method == M_HEAD, x)
    x.bytes_out += w.out.bytes
    c.final = not x.keep_alive
    rc = conn_send(w, c, &w.out)
    if close and rc != RC_FAIL:
        exchange_move(w, x, X_FLUSHING)
        if x.request_body == REQ_STREAM:
            x.discarded = x.plan.head.linger_bytes      # no more reading: linger
        if rc == RC_OK:
            exchange_end(w, x)
            client_linger(w, c)
            return
        conn_arm(w, c, w.now_ms + client_write_ms(x))
        return
    answered(w, x, rc)


cdef void head_refuse(Worker *w, Conn *c, int reason) noexcept nogil:
    """A head that could not be read, or not be served: answer as far as one can be, close."""
    cdef int status
    if w.servers[c.listener] != NULL and (c.tls.ssl == NULL or c.tls.due) and c.tls.error != SSL_R_HTTP_REQUEST:
        w.lane.reasons[reason] += 1          # no answer could be read before the handshake is over
        log_refused(w, c, reason, 0)
        client_end(w, c, False)
        return
    out_reset(&w.out)
    status = answer_error(w, &w.out, w.plan.head, reason, True, False, NULL)
    w.lane.reasons[reason] += 1
    w.lane.worker.requests += 1
    log_refused(w, c, reason, status)
    c.final = 1
    conn_send(w, c, &w.out)          # a few hundred bytes on an idle socket; what does not fit is not waited for
    client_linger(w, c)


cdef bint client_admit(Worker *w, Conn *c) noexcept nogil:
    """limits.connections_per_client, once the client is known. False: it was refused."""
    if w.plan.head.connections_per_client == 0 or c.family == 0 or c.trusted:
        return True
    c.counted = client_enter(w.segment, w.lane, c.peer, c.family, w.plan.head.connections_per_client)
    if not c.counted:
        head_refuse(w, c, R_CONNECTION_LIMIT)            # c is gone
        return False
    return True


cdef void proxy_refuse(Worker *w, Conn *c) noexcept nogil:
    """No PROXY header where one is due, or from a stranger: there is no client to answer."""
    w.lane.reasons[<int>R_BAD_PROXY_HEADER] += 1
    log_refused(w, c, R_BAD_PROXY_HEADER, 0)
    client_end(w, c, False)


cdef void tls_refuse(Worker *w, Conn *c, int reason) noexcept nogil:
    """The handshake failed, or took too long. Who speaks plain HTTP here is told so; others got an alert, which must arrive."""
    if c.tls.error == SSL_R_HTTP_REQUEST:
        tls_end(&c.tls)
        head_refuse(w, c, R_BAD_REQUEST)
        return
    w.lane.reasons[reason] += 1
    w.lane.tls.failed += 1
    log_refused(w, c, reason, 0)
    client_linger(w, c)


cdef void client_left(Worker *w, Exchange *x) noexcept nogil:
    x.reason = R_CLIENT_CLOSED
    if x.phase < X_ANSWERING:
        x.status = 499
    client_end(w, x.client, x.phase == X_ANSWERING or x.phase == X_FLUSHING)     # whoever still reads must not take a part for the whole


def edges() -> dict[str, list[str]]:
    """The legal moves of an exchange, for tests and pictures."""
    names = ["free", "queued", "backoff", "connecting", "sent", "answering", "flushing", "discarding", "tunnel"]
    return {a: [b for k, b in enumerate(names) if LEGAL[i] >> k & 1] for i, a in enumerate(names)}
