"""Upgrade tunnels (RFC 9110 7.8). A tunnel begins with the upstream's 101 and the token that was asked for, never before; bytes that the
client sent early wait till then. Each direction ends by itself: a FIN is passed on when all before it has been. The tunnel lives as long
as bytes move, and keeps no plan: a reload costs no memory for as long as a WebSocket stays open."""
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from gwcore._speedups.admission cimport admission_end
from gwcore._speedups.buffer cimport buf_bytes, buf_space, queue_clear
from gwcore._speedups.conn cimport NEVER_MS, conn_again, conn_arm, conn_flush, conn_read, conn_rest, conn_send, conn_shut
from gwcore._speedups.ends cimport client_end, client_left, exchange_fail, exchange_move
from gwcore._speedups.fields cimport same_word
from gwcore._speedups.forward cimport forward_interim
from gwcore._speedups.head cimport Field
from gwcore._speedups.outlist cimport out_add, out_reset
from gwcore._speedups.permit cimport permit_answer
from gwcore._speedups.plan cimport Str, plan_text, plan_upgrade
from gwcore._speedups.reasons cimport R_CLIENT_CLOSED, R_UPSTREAM_RESET
from gwcore._speedups.splice cimport Moved, splice_through
from gwcore._speedups.story cimport X_TUNNEL
from gwcore._speedups.types cimport RC_AGAIN, RC_DONE, RC_FAIL, RC_OK

cdef enum:
    HIGH = 131072            # bytes that may wait in one direction
    LOW = 32768
    READS_A_TURN = 8
    SPLICE_FROM = 65536      # bench/micro/bench_splice.py


cdef bint tunnel_agreed(const Exchange *x, const Head *h) noexcept nogil:
    """Does this 101 name the protocol that we asked for, and no other?"""
    cdef const Field *f
    cdef const Str *token
    if not x.upgrade or not h.wants_upgrade or h.upgrade_field < 0:
        return False
    token = plan_upgrade(x.plan.head, x.route, x.upgrade - 1)
    f = &h.f[h.upgrade_field]
    return same_word(h.base + f.value, f.value_len, plan_text(x.plan.head, token[0]), token.len)


cdef void plan_drop(Exchange *x) noexcept nogil:
    """Keep what the log will need, let the plan go."""
    cdef uint32_t n = x.route.name.len
    if n > buf_space(x.note) - x.note_path_len - x.note_id_len:
        n = buf_space(x.note) - x.note_path_len - x.note_id_len
    memcpy(buf_bytes(x.note) + x.note_path_len + x.note_id_len, plan_text(x.plan.head, x.route.name), n)
    x.note_route_len = n
    x.route_slot = x.route.slot
    x.tunnel_idle_ms = x.route.tunnel_idle_ms
    x.plan.refs -= 1
    x.plan = NULL
    x.route = NULL


cdef void tunnel_begin(Worker *w, Exchange *x, Head *h, const char *early, size_t size) noexcept nogil:
    """The upstream's 101 is in h, early[:size] came behind it."""
    cdef int rc
    queue_clear(&w.bufs, &x.replay)
    x.status = 101
    x.first_byte_us = w.now_us
    permit_answer(w, x, 101)
    admission_end(w, x)                                  # a tunnel is no request under way
    x.keep_alive = 0
    x.upstream_keep = 0
    exchange_move(w, x, X_TUNNEL)
    w.lane.worker.tunnels += 1
    w.lane.worker.tunnels_opened += 1
    out_reset(&w.out)
    forward_interim(w, x, h, &w.out)
    out_add(&w.out, early, size)
    x.bytes_out += w.out.bytes
    rc = conn_send(w, x.client, &w.out)
    conn_rest(w, x.up, early + size, 0)
    plan_drop(x)
    if rc == RC_FAIL:
        client_left(w, x)
        return
    conn_arm(w, x.up, w.now_ms + NEVER_MS)
    conn_arm(w, x.client, w.now_ms + x.tunnel_idle_ms)
    tunnel_pump(w, x)


cdef bint tunnel_move(Worker *w, Exchange *x, Conn *source, Conn *to) noexcept nogil:
    """One direction, as far as both ends go. False: the exchange is over."""
    cdef const char *at
    cdef size_t size
    cdef Moved moved
    cdef int rc, reads = 0
    cdef bint bulk = False                               # the last read was full: the rest of it moves by splice
    while to.output.bytes <= LOW:
        if bulk and source.readable and source.input == NULL and to.output.bytes == 0 and source.tls.ssl == NULL and to.tls.ssl == NULL:
            rc = splice_through(w, source, to, HIGH, &moved)
            if rc != RC_DONE:
                if source == x.client:
                    x.bytes_in += moved.taken
                else:
                    x.bytes_out += moved.taken
                if rc == RC_FAIL:
                    tunnel_broken(w, x, to if to.broken else source)
                    return False
                if moved.taken:
                    conn_arm(w, x.client, w.now_ms + x.tunnel_idle_ms)
                reads += 1
                if reads > READS_A_TURN and source.readable:
                    conn_again(w, x.client)
                    return True
                continue
        if source.input != NULL:
            at, size = buf_bytes(source.input), source.input.len
        elif source.ended == 2:
            if to.output.bytes == 0 and not to.shut:
                to.shut = 1
                if source.cut:                           # a FIN that may be somebody else's is not passed on as a clean end
                    to.cut = 1
                conn_shut(w, to)
                if source.shut:                          # the other direction ended before
                    client_end(w, x.client, False)
                    return False
            return True
        elif source.readable:
            reads += 1
            if reads > READS_A_TURN:
                conn_again(w, x.client)
                return True
            rc = conn_read(w, source, HIGH - LOW, &at, &size)
            if rc == RC_AGAIN:
                return True
            if rc == RC_DONE:
                continue
            if rc != RC_OK:
                tunnel_broken(w, x, source)
                return False
        else:
            return True
        if source == x.client:
            x.bytes_in += size
        else:
            x.bytes_out += size
        out_reset(&w.out)
        out_add(&w.out, at, size)
        rc = conn_send(w, to, &w.out)
        conn_rest(w, source, at + size, 0)
        if rc == RC_FAIL:
            tunnel_broken(w, x, to)
            return False
        bulk = size >= SPLICE_FROM
        conn_arm(w, x.client, w.now_ms + x.tunnel_idle_ms)
    return True


cdef void tunnel_broken(Worker *w, Exchange *x, const Conn *c) noexcept nogil:
    """One end was reset; the other one is, too."""
    if c == x.client:
        x.reason = R_CLIENT_CLOSED
        client_end(w, x.client, False)
    else:
        exchange_fail(w, x, R_UPSTREAM_RESET, True)


cdef void tunnel_pump(Worker *w, Exchange *x) noexcept nogil:
    if tunnel_move(w, x, x.client, x.up):
        tunnel_move(w, x, x.up, x.client)


cdef void tunnel_event(Worker *w, Exchange *x, Conn *c) noexcept nogil:
    """The kernel or the run queue spoke of one end."""
    if c.broken or (c.output.bytes and c.writable and conn_flush(w, c) == RC_FAIL):
        tunnel_broken(w, x, c)
        return
    tunnel_pump(w, x)
