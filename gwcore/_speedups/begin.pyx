"""From the first byte of a request to its exchange: the head is read, checked and routed, then answered or sent on.

client_input -> client_head -> exchange_begin -> begin_answer | begin_proxy.
"""
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy
from gwcore._speedups.accesslog cimport log_refused
from gwcore._speedups.answer cimport answer_empty, answer_route
from gwcore._speedups.buffer cimport buf_bytes
from gwcore._speedups.choose cimport head_has, upgrade_asked
from gwcore._speedups.cllhttp cimport LLHTTP_REQUEST
from gwcore._speedups.cached cimport cached_begin
from gwcore._speedups.conn cimport (
    LOOK_LOG_MS, SCRATCH_BYTES, C_HEAD, C_IDLE, Conn, Worker, conn_again, conn_arm, conn_limit, conn_move, conn_read, conn_rest, conn_send,
    worker_look,
)
from gwcore._speedups.fields cimport BYTE_CLASS, B_TOKEN, M_HEAD, M_OPTIONS, M_TRACE
from gwcore._speedups.forward cimport exchange_note
from gwcore._speedups.early cimport early_safe
from gwcore._speedups.greet cimport greet
from gwcore._speedups.handshake cimport handshake_due
from gwcore._speedups.head cimport Head, HeadLimits, head_feed, head_init
from gwcore._speedups.http1 cimport BODY_LENGTH, host_normal, request_check
from gwcore._speedups.outlist cimport out_reset
from gwcore._speedups.path cimport PATH_PLAIN, path_kind, path_normalise
from gwcore._speedups.ladder cimport ladder_begin
from gwcore._speedups.plan cimport TARGET_RESPOND, plan_trusts
from gwcore._speedups.pressure cimport pressure_refuses
from gwcore._speedups.promise cimport tier_find
from gwcore._speedups.proxyproto cimport ProxyPeer, proxy_parse
from gwcore._speedups.reasons cimport (
    R_BAD_PATH, R_BODY_TOO_LARGE, R_BUFFER_LIMIT, R_CLIENT_CLOSED, R_METHOD_NOT_ALLOWED, R_MISDIRECTED, R_NO_ROUTE, R_OVERLOAD,
    R_TOO_EARLY,
)
from gwcore._speedups.proxy cimport begin_proxy, begin_refuse, exchange_new
from gwcore._speedups.ring cimport ring_room
from gwcore._speedups.router cimport RouteQuery, router_find
from gwcore._speedups.story cimport REQ_DISCARD, REQ_STREAM, Exchange
from gwcore._speedups.tls cimport tls_is_early
from gwcore._speedups.tlsserver cimport server_owns
from gwcore._speedups.types cimport RC_AGAIN, RC_FAIL, RC_OK, link_append, link_drop
from gwcore._speedups.ends cimport answered, client_admit, client_end, head_refuse, proxy_refuse

cdef enum:
    LOG_ROOM = 1 << 18       # of the ring: what requests under way may still need


cdef void client_input(Worker *w, Conn *c) noexcept nogil:
    """Read and begin what can be begun. The connection is idle or in the middle of a head."""
    cdef const char *at
    cdef size_t size, before
    cdef int rc
    if c.proxy_due and not proxy_read(w, c):
        return
    if c.tls.due and not greet(w, c):
        return
    if w.ring != NULL and w.plan.head.log_block and ring_room(w.ring) < LOG_ROOM:
        link_drop(&c.run.link)                       # access_log.full: block; the tick looks again
        link_append(&w.held, &c.run.link)
        worker_look(w, LOOK_LOG_MS)
        return
    if c.input != NULL and (c.state == C_IDLE or c.tls.fed):         # pipelined bytes, or early data
        at, size = buf_bytes(c.input), c.input.len
        before = size - c.tls.fed if c.state == C_HEAD else 0
        c.tls.fed = 0
    else:
        if not c.readable:
            return
        before = c.input.len if c.input != NULL else 0
        rc = conn_read(w, c, SCRATCH_BYTES, &at, &size)
        if rc == RC_AGAIN:
            return
        if rc != RC_OK:
            if rc == RC_FAIL and not c.broken:
                head_refuse(w, c, R_BUFFER_LIMIT)    # a head beyond the limits was refused before it filled the longest buffer
            else:
                if c.state == C_HEAD:
                    w.lane.reasons[<int>R_CLIENT_CLOSED] += 1
                    log_refused(w, c, R_CLIENT_CLOSED, 499)
                client_end(w, c, False)
            return
    client_head(w, c, at, size, before)


cdef bint proxy_read(Worker *w, Conn *c) noexcept nogil:
    """The PROXY header that a connection begins with. True: it has come, and the client is known."""
    cdef ProxyPeer peer
    cdef const char *at
    cdef size_t size
    cdef long n
    cdef int rc
    if not c.readable:
        return False
    rc = conn_read(w, c, SCRATCH_BYTES, &at, &size)
    if rc != RC_OK:
        if rc != RC_AGAIN:
            client_end(w, c, False)
        return False
    n = proxy_parse(at, size, &peer)
    if n == RC_AGAIN and conn_rest(w, c, at, size) == RC_OK:
        if c.readable:
            conn_again(w, c)
        return False
    if n < 0:
        conn_rest(w, c, at + size, 0)
        proxy_refuse(w, c)
        return False
    c.proxy_due = 0
    if peer.family:
        memcpy(c.peer, peer.address, 16)
        c.family, c.port = peer.family, peer.port
        c.trusted = plan_trusts(w.plan.head, c.peer)
    if conn_rest(w, c, at + n, size - n) != RC_OK or not handshake_due(w, c):
        client_end(w, c, False)
        return False
    if not client_admit(w, c):
        return False
    conn_arm(w, c, w.now_ms + (w.plan.head.tls_handshake_ms if c.tls.due else w.plan.head.header_ms))
    return True


cdef void client_head(Worker *w, Conn *c, const char *at, size_t size, size_t before) noexcept nogil:
    """at[:size] begins with a request head, of which at[:before] was looked at already. It is parsed when a line more of it has come (or
    when it cannot be one), so the outcome does not depend on the splits and the work is bounded by lines x bytes, both limited."""
    cdef Head *h = &w.request
    cdef HeadLimits limits
    cdef int rc = RC_AGAIN
    limits.url_bytes = w.plan.head.url_bytes
    limits.head_bytes = w.plan.head.head_bytes
    limits.fields = w.plan.head.fields
    if size >= limits.head_bytes or memchr(at + before, c'\n', size - before) != NULL or not (BYTE_CLASS[<uint8_t>at[0]] & B_TOKEN or at[0] == c'\r'):
        head_init(h, LLHTTP_REQUEST)
        rc = head_feed(h, at, size, &limits)
    if rc == RC_OK:
        exchange_begin(w, c, at, size)
        return
    if rc == RC_FAIL:
        if c.state == C_IDLE:
            conn_move(w, c, C_HEAD)
        head_refuse(w, c, h.reason)
        return
    if c.state == C_IDLE:
        conn_move(w, c, C_HEAD)
        conn_arm(w, c, conn_limit(w, c, w.now_ms + w.plan.head.header_ms))       # total, from the first byte
    if conn_rest(w, c, at, size) != RC_OK:
        c.broken = 0                                 # what it said is lost, but it can be told why
        head_refuse(w, c, R_BUFFER_LIMIT)
    elif c.readable:
        conn_again(w, c)


cdef void exchange_begin(Worker *w, Conn *c, const char *at, size_t size) noexcept nogil:
    """A whole head is in w.request; at[:size] holds it and what came behind it."""
    cdef Head *h = &w.request
    cdef Exchange *x
    cdef RouteQuery q
    cdef uint64_t allowed = 0
    cdef const char *path
    cdef long path_len
    cdef int reason = request_check(h)
    if c.state == C_IDLE and reason:
        conn_move(w, c, C_HEAD)
    if reason:
        head_refuse(w, c, reason)
        return
    x = exchange_new(w, c, h)
    if x == NULL:
        head_refuse(w, c, R_BUFFER_LIMIT)
        return
    x.bytes_in = h.size
    x.early = tls_is_early(&c.tls)
    path, path_len = h.base + h.path, h.path_len
    if h.base[h.path] != c'*' and path_kind(path, path_len) != PATH_PLAIN:
        path_len = path_normalise(path, path_len, w.path)
        if path_len >= 0 and (path_len != h.path_len or memcmp(path, w.path, path_len) != 0):
            path = w.path
    exchange_note(w, x, h, path, path_len if path_len >= 0 else 0, c.trusted)
    if x.note == NULL:
        begin_refuse(w, x, at, size, R_BUFFER_LIMIT)
        return
    if path_len < 0:
        begin_refuse(w, x, at, size, R_BAD_PATH)
        return
    if x.early and not early_safe(h):
        begin_refuse(w, x, at, size, R_TOO_EARLY)
        return
    if h.method == M_TRACE:
        begin_refuse(w, x, at, size, R_METHOD_NOT_ALLOWED)
        return
    if h.method == M_OPTIONS and h.max_forwards == 0:    # RFC 9110 7.6.2: meant for us
        begin_final(w, x, at, size)
        return
    q.host = w.host
    q.host_len = host_normal(h.base + h.authority, h.authority_len, w.host)
    q.path, q.path_len = path, path_len
    q.query, q.query_len = h.base + h.query, h.query_len
    q.method = h.method
    q.head = h
    q.has_field = head_has
    if c.tls.ssl != NULL and not server_owns(w.servers[c.listener], &c.tls, q.host, q.host_len):
        begin_refuse(w, x, at, size, R_MISDIRECTED)
        return
    x.route = router_find(x.plan.head, x.plan.regexes, &q, &allowed)
    if x.route == NULL:
        x.allowed = allowed
        begin_refuse(w, x, at, size, R_METHOD_NOT_ALLOWED if allowed else R_NO_ROUTE)
        return
    x.body_limit = x.route.body_bytes
    x.tier = x.route.tier
    if c.trusted and x.plan.head.tier_name.len:
        tier_find(x, h)
    if x.route.ladder[x.tier]:
        ladder_begin(w, x, h, q.host_len)
    if h.wants_upgrade:
        x.upgrade = upgrade_asked(x, h)
    if x.request_kind == BODY_LENGTH and x.body_limit and x.request_left > x.body_limit:
        begin_refuse(w, x, at, size, R_BODY_TOO_LARGE)
        return
    if w.copies != NULL and x.route.kind != TARGET_RESPOND and cached_begin(w, x, at, size, path, path_len):
        return
    if x.route.kind == TARGET_RESPOND:
        begin_answer(w, x, at, size)
    elif w.pressure.shedding and pressure_refuses(w, x.tier):
        begin_refuse(w, x, at, size, R_OVERLOAD)         # an own answer is none the dearer
    else:
        begin_proxy(w, x, at, size, path, path_len)


cdef void begin_answer(Worker *w, Exchange *x, const char *at, size_t size) noexcept nogil:
    """The route answers by itself."""
    if x.expects_continue:
        x.keep_alive = 0                     # answered without asking for the body (RFC 9110 10.1.1)
    out_reset(&w.out)
    answer_route(w, &w.out, x.plan.head, x.route, not x.keep_alive, x.http10, x.method == M_HEAD)
    own_answer(w, x, x.route.status, at, size)


cdef void own_answer(Worker *w, Exchange *x, int status, const char *at, size_t size) noexcept nogil:
    """Send what w.out holds as the whole answer; what is left of the request body is dropped."""
    x.status = <unsigned short>status
    x.bytes_out = w.out.bytes
    conn_rest(w, x.client, at + w.request.size, size - w.request.size)
    if x.request_body == REQ_STREAM:
        x.request_body = REQ_DISCARD
    x.client.final = not x.keep_alive
    answered(w, x, conn_send(w, x.client, &w.out))


cdef void begin_final(Worker *w, Exchange *x, const char *at, size_t size) noexcept nogil:
    """OPTIONS that may go no further."""
    out_reset(&w.out)
    answer_empty(w, &w.out, x.plan.head, not x.keep_alive, x.http10)
    own_answer(w, x, 204, at, size)
