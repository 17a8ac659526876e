"""A request's life by its events: what a client's or an upstream's connection, or a timer, has to say of it.

begin -> (queue | connect) -> sent -> answering -> complete -> next request.
"""
from libc.stdint cimport uint64_t
from gwcore._speedups.again cimport attempt_failed
from gwcore._speedups.attempt cimport attempt_connected, attempt_late, attempt_release
from gwcore._speedups.begin cimport client_input
from gwcore._speedups.connect cimport QUIET, upstream_close, upstream_unasked
from gwcore._speedups.conn cimport C_CONNECTING, C_HEAD, C_LINGER, NEVER_MS, Conn, Worker, conn_arm, conn_flush, conn_watch
from gwcore._speedups.cached cimport cached_late
from gwcore._speedups.deadline cimport answer_due, try_due
from gwcore._speedups.drill cimport drill_over
from gwcore._speedups.greet cimport greet_early
from gwcore._speedups.hedge cimport hedge_begin
from gwcore._speedups.http1 cimport BODY_LENGTH
from gwcore._speedups.idle cimport idle_outlived, idle_peer_closed
from gwcore._speedups.permit cimport permit_fail
from gwcore._speedups.queueing cimport queue_leave, queue_next, queue_overdue
from gwcore._speedups.reasons cimport (
    R_BODY_TIMEOUT, R_BODY_TOO_SLOW, R_CLIENT_WRITE_TIMEOUT, R_CONNECT_TIMEOUT, R_DEADLINE, R_FAULT_INJECTED, R_HEADER_TIMEOUT,
    R_QUEUE_TIMEOUT, R_RESPONSE_IDLE, R_RESPONSE_TIMEOUT, R_TLS_HANDSHAKE_TIMEOUT, R_TUNNEL_IDLE, R_UPSTREAM_WRITE_TIMEOUT,
)
from gwcore._speedups.story cimport REQ_STREAM, X_ANSWERING, X_BACKOFF, X_DISCARDING, X_FLUSHING, X_QUEUED, X_SENT, X_TUNNEL, Exchange, deadline_over
from gwcore._speedups.sys cimport FIONREAD, ioctl
from gwcore._speedups.tls cimport tls_holds, tls_is_early
from gwcore._speedups.tunnel cimport tunnel_event
from gwcore._speedups.types cimport RC_FAIL, RC_OK
from gwcore._speedups.upstream cimport Upstream
from gwcore._speedups.warm cimport warm_event, warm_peer_closed, warm_timeout
from gwcore.pool cimport CLOSE_IDLE, CLOSE_MAX_AGE, CLOSE_TIMEOUT
from gwcore._speedups.ends cimport (
    client_end, client_left, client_linger, client_write_ms, discard, exchange_complete, exchange_end, exchange_fail, head_refuse,
    linger_read, proxy_refuse, tls_refuse,
)
from gwcore._speedups.relay cimport dispatch, request_pump, send_replay, upstream_read, write_failed, body_due

cdef void queue_serve(Worker *w, Upstream *u) noexcept nogil:
    """A place may be free: let those who are next have it. Before that leaves whom a standing queue has made too late."""
    cdef Exchange *x
    while True:
        x = queue_overdue(w, u)
        if x == NULL:
            break
        u.cell.queue_timeout += 1
        exchange_fail(w, x, R_QUEUE_TIMEOUT, False)
    while True:
        x = queue_next(w, u)
        if x == NULL:
            return
        queue_leave(w, x)
        x.turn = 1
        conn_arm(w, x.client, w.now_ms + NEVER_MS)
        dispatch(w, x)
        if x.item.live and x.phase == X_QUEUED:
            return


cdef void client_event(Worker *w, Conn *c) noexcept nogil:
    """The kernel or the run queue spoke of a client connection; its flags say what."""
    cdef Exchange *x = <Exchange *>c.exchange
    cdef int rc
    if c.state == C_LINGER:
        linger_read(w, c)
        return
    if tls_is_early(&c.tls) and not greet_early(w, c):
        return
    if x == NULL:
        if c.broken or (c.output.bytes and c.writable and conn_flush(w, c) == RC_FAIL):      # the rest of a flight of the handshake
            client_end(w, c, False)
        else:
            client_input(w, c)
        return
    if x.phase == X_TUNNEL:
        tunnel_event(w, x, c)
        return
    if c.broken:
        client_left(w, x)
        return
    if c.output.bytes and c.writable:
        rc = conn_flush(w, c)
        if rc == RC_FAIL:
            client_left(w, x)
            return
        if x.phase == X_FLUSHING and rc == RC_OK:
            if x.discarded >= x.plan.head.linger_bytes and not x.keep_alive:
                exchange_end(w, x)
                client_linger(w, c)
            else:
                exchange_complete(w, x)
            return
        if x.phase != X_QUEUED and x.phase != X_BACKOFF:         # there the timer tells how long it waits
            conn_arm(w, c, w.now_ms + (client_write_ms(x) if c.output.bytes else NEVER_MS))
    if x.phase == X_DISCARDING:
        discard(w, x)
        return
    if x.request_body == REQ_STREAM and (x.phase == X_SENT or x.phase == X_ANSWERING):
        request_pump(w, x)
        if not x.item.live or x.client != c:
            return
    if c.ended and x.phase != X_FLUSHING and (x.keep_alive and not x.http10 or body_cut(x)):
        client_left(w, x)                    # FIN means gone, unless the client said that this was its last request
        return
    if x.up != NULL and (x.up.readable or x.piped):
        upstream_read(w, x)


cdef bint body_cut(const Exchange *x) noexcept nogil:
    """The client has ended: is less of the body there, read or not, than it promised? Not told of chunks that nobody has read."""
    cdef int waiting = 0
    if x.request_body != REQ_STREAM or x.request_kind != BODY_LENGTH or ioctl(x.client.fd, FIONREAD, &waiting) != 0:
        return False
    if x.client.tls.ssl != NULL and tls_holds(&x.client.tls):
        return False                         # how much of it the session holds is not known
    return x.request_left > <uint64_t>waiting + (x.client.input.len if x.client.input != NULL else 0)


cdef void body_look(Worker *w, Exchange *x) noexcept nogil:
    """Does the request body come, and fast enough? While the upstream holds it back the client is not to blame."""
    cdef uint64_t elapsed = w.now_ms - x.body_since_ms
    if x.up.output.bytes:
        x.body_since_ms = x.body_mark_ms = w.now_ms
        x.body_base = x.body_seen
    elif x.body_seen == x.body_mark and w.now_ms - x.body_mark_ms >= x.route.body_idle_ms:
        exchange_fail(w, x, R_BODY_TIMEOUT, True)
        return
    elif x.route.body_min_rate and elapsed >= x.plan.head.body_rate_grace_ms and (x.body_seen - x.body_base) * 1000 < elapsed * x.route.body_min_rate:
        exchange_fail(w, x, R_BODY_TOO_SLOW, True)
        return
    if x.body_seen != x.body_mark:
        x.body_mark = x.body_seen
        x.body_mark_ms = w.now_ms
    x.body_look_ms = body_due(w, x)
    conn_arm(w, x.client, x.body_look_ms)


cdef void client_timeout(Worker *w, Conn *c) noexcept nogil:
    cdef Exchange *x = <Exchange *>c.exchange
    if not c.watched:                        # the upstream takes its time: a client that leaves shall be noticed
        if not conn_watch(w, c):
            client_end(w, c, False)
        return
    if x == NULL:
        if c.state == C_LINGER:              # long enough
            client_end(w, c, False)
        elif c.tls.due or tls_is_early(&c.tls):
            tls_refuse(w, c, R_TLS_HANDSHAKE_TIMEOUT)
        elif c.state == C_HEAD:
            head_refuse(w, c, R_HEADER_TIMEOUT)
        elif c.proxy_due:
            proxy_refuse(w, c)
        else:
            client_end(w, c, False)          # idle long enough
        return
    if x.phase == X_BACKOFF:
        conn_arm(w, c, w.now_ms + NEVER_MS)
        if x.fault and drill_over(w, x):
            exchange_fail(w, x, R_FAULT_INJECTED, False)
        else:
            dispatch(w, x)
    elif x.phase == X_QUEUED and deadline_over(w, x):
        exchange_fail(w, x, R_DEADLINE, False)
    elif x.phase == X_QUEUED:
        x.upstream.cell.queue_timeout += 1
        exchange_fail(w, x, R_QUEUE_TIMEOUT, False)
    elif x.phase == X_DISCARDING:
        client_end(w, c, False)
    elif x.phase == X_TUNNEL:
        x.reason = R_TUNNEL_IDLE
        client_end(w, c, False)
    elif c.output.bytes or x.piped:
        x.reason = R_CLIENT_WRITE_TIMEOUT
        client_end(w, c, True)
    elif x.request_body == REQ_STREAM and (x.phase == X_SENT or x.phase == X_ANSWERING):
        body_look(w, x)
    else:
        conn_arm(w, c, w.now_ms + NEVER_MS)


cdef void upstream_event(Worker *w, Conn *c) noexcept nogil:
    """The kernel spoke of an upstream connection."""
    cdef Exchange *x = <Exchange *>c.exchange
    cdef int rc
    if x == NULL:
        if c.state == C_CONNECTING:
            warm_event(w, c)
            return
        rc = upstream_unasked(w, c)
        if rc != QUIET:
            if c.ended or c.broken:
                idle_peer_closed(&c.pooled, w.now_ms)
                warm_peer_closed(w, c)
            upstream_close(w, c, rc)
        return
    if c.state == C_CONNECTING:
        rc = attempt_connected(w, x, c)
        if rc == RC_OK:
            send_replay(w, x)
            if x.item.live and x.up == c and c.readable:     # it spoke, or ended, in the same moment: no other event will tell
                upstream_read(w, x)
        elif rc == RC_FAIL:
            attempt_failed(w, x, x.reason)
        return
    if x.phase == X_TUNNEL:
        tunnel_event(w, x, c)
        return
    if c.output.bytes and c.writable and not c.broken:
        if conn_flush(w, c) == RC_FAIL:
            write_failed(w, x)
            return
        if x.phase == X_SENT:
            conn_arm(w, c, answer_due(w, x, x.upstream.write_ms if c.output.bytes else x.route.response_ms, False))
        if c.output.bytes <= x.route.buffer_low and x.request_body == REQ_STREAM:
            request_pump(w, x)
            if not x.item.live or x.up != c:
                return
    if c.broken:
        c.broken = 0
        c.cut = 1
        c.readable = 1                       # bytes that came before the error are still to be read
        c.ended = 1
    if c.readable:
        upstream_read(w, x)


cdef void upstream_timeout(Worker *w, Conn *c) noexcept nogil:
    cdef Exchange *x = <Exchange *>c.exchange
    if x == NULL:
        if c.state == C_CONNECTING:
            warm_timeout(w, c)
            return
        idle_outlived(&c.pooled, w.now_ms)
        upstream_close(w, c, CLOSE_MAX_AGE if w.now_ms >= c.pooled.retire_ms else CLOSE_IDLE)
        return
    if deadline_over(w, x) and x.phase < X_ANSWERING:
        if x.copying != NULL and cached_late(w, x):
            conn_arm(w, c, answer_due(w, x, x.route.response_ms, False))
            return
        permit_fail(w, x, R_DEADLINE)
        attempt_release(w, x, False, CLOSE_TIMEOUT)
        exchange_fail(w, x, R_DEADLINE, False)
        return
    if x.hedge_due_ms and x.phase == X_SENT and w.now_ms >= x.hedge_due_ms:
        x.hedge_due_ms = 0
        conn_arm(w, c, w.now_ms + x.upstream.write_ms if c.output.bytes else try_due(x, x.sent_us // 1000 + x.route.response_ms))
        hedge_begin(w, x)
        return
    if c.state == C_CONNECTING:
        if attempt_late(w, x):
            return
        attempt_failed(w, x, R_CONNECT_TIMEOUT)
    elif x.phase == X_TUNNEL:                # the client's timer watches over both
        conn_arm(w, c, w.now_ms + NEVER_MS)
    elif c.output.bytes:
        attempt_failed(w, x, R_UPSTREAM_WRITE_TIMEOUT)
    elif x.phase == X_SENT:
        if x.request_body == REQ_STREAM:     # the client is still sending: its own limits watch that
            conn_arm(w, c, answer_due(w, x, x.route.response_ms, False))
        else:
            attempt_failed(w, x, R_RESPONSE_TIMEOUT)
    elif x.client.output.bytes or x.piped:   # we hold it back ourselves
        conn_arm(w, c, w.now_ms + x.route.idle_ms)
    else:
        exchange_fail(w, x, R_RESPONSE_IDLE, True)
