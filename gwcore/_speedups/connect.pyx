"""Connections to endpoints. Their places in the pool, the gauges and the round-trip times are kept here and nowhere else, so that a
connection which is made ahead of need, or beside another, counts like one that a request made."""
from libc.stdint cimport uint32_t

from gwcore._speedups.conn cimport (
    CONN_UPSTREAM, SCRATCH_BYTES, C_CONNECTING, C_POOLED, C_READY, LOOK_IDLE_MS, LOOK_WARM_MS, conn_arm, conn_close, conn_flush, conn_move, conn_open, conn_register,
    conn_read, conn_send, random_next, worker_look,
)
from gwcore._speedups.handshake cimport handshake_connect
from gwcore._speedups.idle cimport idle_life_ms
from gwcore._speedups.outlist cimport out_reset
from gwcore._speedups.proxyproto cimport proxy_write
from gwcore._speedups.reasons cimport R_CONNECT_FAILED, R_CONNECT_REFUSED, R_CONNECT_TIMEOUT, R_UPSTREAM_TLS, R_UPSTREAM_TLS_VERIFY
from gwcore._speedups.shm cimport UpstreamCell
from gwcore._speedups.story cimport Exchange, by_deadline
from gwcore._speedups.sys cimport (
    AF_UNIX, EAGAIN, ECONNREFUSED, EINPROGRESS, ETIMEDOUT, IPPROTO_TCP, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, SO_ERROR,
    MSG_DONTWAIT, MSG_PEEK, TCP_INFO, TCP_NODELAY, close, connect, errno, getsockopt, recv, setsockopt, sockaddr, socket, socklen_t, tcp_info,
)
from gwcore._speedups.tls cimport tls_io_open
from gwcore._speedups.tlsclient cimport client_begin
from gwcore._speedups.types cimport RC_AGAIN, RC_FAIL, RC_OK, size_t
from gwcore._speedups.upstream cimport endpoint_short
from gwcore.pool cimport CLOSE_ERROR, CLOSE_PEER, CLOSE_STRAY, pool_at_cap, pool_closed, pool_opened, pool_opening, pool_release


cdef int connect_reason(int error) noexcept nogil:
    if error == ECONNREFUSED:
        return R_CONNECT_REFUSED
    return R_CONNECT_TIMEOUT if error == ETIMEDOUT else R_CONNECT_FAILED


cdef Conn *connect_start(Worker *w, Endpoint *e, bint other, uint64_t key, void *exchange, int *reason) noexcept nogil:
    """Begin a connection to e (by its other address, if so asked), for an exchange or ahead of need. It has a place in the pool from now
    on, and may be up at once: c.writable. NULL: reason[0]."""
    cdef const sockaddr *to = <sockaddr *>e.other if other else <sockaddr *>e.sockaddr
    cdef int one = 1, rc, fd = socket(to.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    cdef Conn *c
    reason[0] = R_CONNECT_FAILED
    if fd < 0:
        return NULL
    c = conn_open(w, CONN_UPSTREAM, fd)
    if c == NULL:
        close(fd)
        return NULL
    conn_move(w, c, C_CONNECTING)
    c.owner = e
    c.exchange = exchange
    c.other = other
    e.warming += exchange == NULL
    pool_opening(&e.pool, &c.pooled, c.item.slot, key, w.now_ms, <uint32_t>(random_next(w) >> 40))
    e.upstream.cell.opens += 1
    e.upstream.cell.warmed += exchange == NULL
    e.upstream.cell.connecting += 1
    if to.sa_family != AF_UNIX:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    rc = connect(fd, to, e.other_len if other else e.sockaddr_len)
    c.writable = rc == 0 and e.upstream.client == NULL       # with TLS it is up later
    if rc != 0 and errno != EINPROGRESS:
        reason[0] = R_CONNECT_REFUSED if errno == EAGAIN else connect_reason(errno)
    elif conn_register(w, c):
        return c
    upstream_close(w, c, CLOSE_ERROR)
    return NULL


cdef int connect_result(Worker *w, Conn *c, int *reason) noexcept nogil:
    """The kernel spoke about a connecting socket. RC_OK: it is up, with TLS where that is due. RC_AGAIN: not yet. RC_FAIL: reason[0]."""
    cdef int error = 0
    cdef socklen_t size = sizeof(error)
    if getsockopt(c.fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0:
        error = errno
    if error:
        reason[0] = connect_reason(error) if c.tls.ssl == NULL else R_UPSTREAM_TLS
        return RC_FAIL
    if not c.writable:
        return RC_AGAIN
    return RC_OK if (<Endpoint *>c.owner).upstream.client == NULL and c.tls.ssl == NULL else secure_step(w, c, reason)


cdef int secure_step(Worker *w, Conn *c, int *reason) noexcept nogil:
    """The TCP connection is up: begin, or go on with, TLS. As connect_result."""
    cdef Endpoint *e = <Endpoint *>c.owner
    cdef Exchange *x = <Exchange *>c.exchange
    cdef int rc
    reason[0] = R_UPSTREAM_TLS
    if c.tls.ssl == NULL:
        if e.upstream.proxy_protocol and x != NULL:          # it comes before the first byte of TLS
            out_reset(&w.out)
            proxy_write(x.client, &w.out, e.upstream.proxy_protocol)
            if conn_send(w, c, &w.out) == RC_FAIL:
                return RC_FAIL
        if not tls_io_open(&w.tls) or not client_begin(
                &w.tls, &c.tls, e.upstream.client, &e.sessions, e.tls_name if e.tls_name[0] else NULL, e.tls_ip, e.tls_sni if e.tls_sni[0] else NULL):
            return RC_FAIL
        conn_arm(w, c, w.now_ms + e.upstream.tls_ms if x == NULL else by_deadline(x, w.now_ms + e.upstream.tls_ms))
    elif c.output.bytes and conn_flush(w, c) == RC_FAIL:
        return RC_FAIL
    rc = handshake_connect(w, c)
    if rc == RC_AGAIN:
        return rc
    if rc == RC_OK:
        e.upstream.cell.tls_full += not c.tls.resumed
        e.upstream.cell.tls_resumed += c.tls.resumed
        return RC_OK
    if c.tls.verify_failed:
        reason[0] = R_UPSTREAM_TLS_VERIFY
    return RC_FAIL


cdef void rtt_note(const Conn *c) noexcept nogil:
    """The kernel's smoothed round-trip time and its mean deviation. Taken when a connection came up and when it ends: never for a request."""
    cdef Endpoint *e = <Endpoint *>c.owner
    cdef UpstreamCell *cell = e.upstream.cell
    cdef tcp_info info
    cdef socklen_t size = sizeof(info)
    if (<const sockaddr *>e.sockaddr).sa_family == AF_UNIX or getsockopt(c.fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0:
        return
    cell.rtt_n += 1
    cell.rtt_us += info.tcpi_rtt
    cell.rtt_square_us += <uint64_t>info.tcpi_rtt * info.tcpi_rtt
    cell.rtt_var_us += info.tcpi_rttvar


cdef void connect_up(Worker *w, Conn *c) noexcept nogil:
    """It is up, and in use."""
    cdef Endpoint *e = <Endpoint *>c.owner
    conn_move(w, c, C_READY)
    pool_opened(&c.pooled)
    c.writable = 1
    e.warming -= c.exchange == NULL
    e.other_first = c.other                  # this way leads there: the next goes it first (RFC 8305 4)
    e.upstream.cell.connecting -= 1
    e.upstream.cell.in_use += 1
    rtt_note(c)


cdef int upstream_unasked(Worker *w, Conn *c) noexcept nogil:
    """Has an idle connection said anything, or ended? QUIET, or the CloseReason. What TLS says for itself, such as that a session may be
    resumed, does not count."""
    cdef const char *at
    cdef size_t size
    cdef int rc
    if not c.readable and not c.ended and not c.broken:
        return QUIET
    if c.tls.ssl == NULL:
        return CLOSE_STRAY if upstream_stray(c) else CLOSE_PEER
    if c.broken:
        return CLOSE_PEER
    rc = conn_read(w, c, SCRATCH_BYTES, &at, &size)
    if rc == RC_AGAIN and not c.ended:
        return QUIET
    return CLOSE_STRAY if rc == RC_OK else CLOSE_PEER


cdef bint upstream_stray(Conn *c) noexcept nogil:
    """Do bytes wait that belong to no answer? Asked of connections that are about to be closed. False with TLS, where nobody can look."""
    cdef char byte
    return c.tls.ssl == NULL and c.readable and recv(c.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0


cdef bint upstream_keep(Worker *w, Conn *c) noexcept nogil:
    """Give a connection that is up and in step to its pool. False: it was closed instead."""
    cdef Endpoint *e = <Endpoint *>c.owner
    cdef int verdict = pool_release(&c.pooled, w.now_ms)
    if verdict >= 0:
        upstream_close(w, c, verdict)
        return False
    c.exchange = NULL
    conn_move(w, c, C_POOLED)
    e.upstream.cell.in_use -= 1
    e.upstream.cell.idle += 1
    conn_arm(w, c, w.now_ms + idle_life_ms(&c.pooled))
    if pool_at_cap(&e.pool):
        worker_look(w, LOOK_IDLE_MS)
    return True


cdef void upstream_close(Worker *w, Conn *c, int why) noexcept nogil:
    """Close a connection in whatever state it is."""
    cdef Endpoint *e = <Endpoint *>c.owner
    cdef UpstreamCell *cell = e.upstream.cell
    if c.state == C_CONNECTING:
        cell.connecting -= 1
        e.warming -= c.exchange == NULL
    else:
        rtt_note(c)
        if c.state == C_POOLED:
            cell.idle -= 1
        else:
            cell.in_use -= 1
    cell.closed[why] += 1
    pool_closed(&c.pooled, why)
    conn_close(w, c)
    if endpoint_short(e):
        worker_look(w, LOOK_WARM_MS + random_next(w) % LOOK_WARM_MS)
