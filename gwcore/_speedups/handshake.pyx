"""The handshake of a client connection: in this thread, or given to the crew and taken back."""
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from gwcore._speedups.buffer cimport buf_give, buf_room, buf_take
from gwcore._speedups.conn cimport CONN_JOB, C_IDLE, LocalPlan, plan_release, sealed_push, window_fill, window_keep
from gwcore._speedups.handshakes cimport crew_give, step_free
from gwcore._speedups.slab cimport slab_get, slab_handle
from gwcore._speedups.tls cimport EARLY_NONE, EARLY_TRY, LOOKUP_ANSWERED, TLS_IN_BYTES, TLS_OUT_BYTES, tls_adopt, tls_begin, tls_holds, tls_io_open, tls_step
from gwcore._speedups.tlsjobs cimport job_watch
from gwcore._speedups.tlsserver cimport TlsServer, server_count, server_identity
from gwcore._speedups.types cimport RC_AGAIN, RC_FAIL, RC_OK


cdef bint handshake_due(Worker *w, Conn *c) noexcept nogil:
    """Expect a TLS handshake on a client connection whose listener asks for one; what came already is ciphertext. False when memory is out."""
    cdef TlsServer *server = w.servers[c.listener]
    if server == NULL:
        return True
    if not tls_io_open(&w.tls) or not tls_begin(&w.tls, &c.tls, server.contexts[0], True):
        return False
    c.tls.server = server
    c.tls.sealed = c.input
    c.input = NULL
    c.plan = w.plan
    c.plan.refs += 1
    if server.spec.early and w.crew == NULL and not server.spec.asynchronous:
        c.tls.early = EARLY_TRY
    return True


cdef bint identity_keep(Worker *w, Conn *c) noexcept nogil:
    """Remember who the client's certificate says it is. False when it has ended, or memory has."""
    cdef char lines[1000]
    cdef long n = server_identity(&c.tls, lines, sizeof(lines))
    if n <= 0:
        return n == 0
    c.tls.who = buf_take(&w.bufs, n)
    if c.tls.who == NULL:
        return False
    memcpy(buf_room(c.tls.who), lines, n)
    c.tls.who.len = <uint32_t>n
    return True


cdef void handshake_over(Worker *w, Conn *c) noexcept nogil:
    """Finished has come: count, and let go of what the handshake needed."""
    server_count(<TlsServer *>c.tls.server, &c.tls, w.now_us - c.opened_ms * 1000)
    plan_release(c)
    if tls_holds(&c.tls):
        c.readable = 1


cdef int settle(Worker *w, Conn *c, int step) noexcept nogil:
    """After a step of the handshake: what is due when it is over."""
    if step == RC_OK:
        w.lane.tls.sessions += 1                 # tls_drop takes it back
    if step == RC_OK and not identity_keep(w, c):
        c.tls.verify_failed = 1
        step = RC_FAIL
    if step == RC_OK and c.tls.early == EARLY_NONE:
        handshake_over(w, c)
    return step


cdef int one_step(Worker *w, Conn *c) noexcept nogil:
    """A step over the window, and what it made is sent."""
    cdef int step
    while True:
        w.tls.out_used = 0
        step = tls_step(&w.tls, &c.tls)
        if w.tls.out_used and sealed_push(w, c) == RC_FAIL:
            return RC_FAIL
        if step == RC_AGAIN and c.tls.waiting:
            return step if job_watch(w.ep, &c.tls, <uint64_t>c.item.gen << 32 | <uint64_t>CONN_JOB << 28 | c.item.slot) else RC_FAIL
        if step != RC_AGAIN or w.tls.in_left == 0:
            return step


cdef int steps(Worker *w, Conn *c) noexcept nogil:
    """As far as bytes are there. RC_OK: the handshake is over. RC_AGAIN: it waits for the peer. RC_PARK: for Redis. RC_DONE, RC_FAIL: the peer ended, or it
    failed (c.tls.error; the alert is sent)."""
    cdef int rc, step
    cdef bint resumed = c.tls.paused         # the step goes on where it was, whether bytes came or not
    c.tls.paused = 0
    while True:
        rc = window_fill(w, c, TLS_IN_BYTES)
        if rc != RC_OK and not (rc == RC_AGAIN and (c.tls.lookup == LOOKUP_ANSWERED or resumed or tls_holds(&c.tls))):
            return rc
        resumed = False
        step = one_step(w, c)
        if window_keep(w, c) != RC_OK:
            step = RC_FAIL
        if step != RC_AGAIN or c.tls.waiting:
            return step
        if rc == RC_AGAIN or not c.readable:
            return RC_AGAIN


cdef int handshake_go(Worker *w, Conn *c) noexcept nogil:
    """Go on with the handshake of a client. RC_OK: it is over, and c.readable says whether bytes wait. Else as steps."""
    return settle(w, c, steps(w, c))


cdef int handshake_connect(Worker *w, Conn *c) noexcept nogil:
    """Begin or go on with the handshake with an upstream. RC_OK: it is over. Else as steps."""
    cdef int rc
    if not c.tls.begun and not c.readable:       # the first word is ours
        w.tls.in_left = 0
        return one_step(w, c)
    rc = steps(w, c)
    if rc == RC_OK and tls_holds(&c.tls):
        c.readable = 1
    return rc


cdef int handshake_give(Worker *w, Conn *c) noexcept nogil:
    """Let a thread of the crew go on with the handshake. RC_AGAIN: it does, or nothing has come to go on with. Else as handshake_go."""
    cdef int rc = window_fill(w, c, TLS_IN_BYTES)
    if rc != RC_OK and not (rc == RC_AGAIN and c.tls.lookup == LOOKUP_ANSWERED):
        return rc
    if not crew_give(w.crew, slab_handle(&c.item), &c.tls, c.plan, w.tls.in_at, w.tls.in_left):
        return RC_FAIL
    c.plan = NULL                            # the step holds it now, and has a copy of the bytes
    c.tls.away = 1
    buf_give(&w.bufs, c.tls.sealed)
    c.tls.sealed = NULL
    return RC_AGAIN


cdef Conn *handshake_back(Worker *w, Step *s, int *rc) noexcept nogil:
    """A step is done. Its connection, with rc as of handshake_go; NULL when nobody waits for it any more."""
    cdef Conn *c = <Conn *>slab_get(&w.clients, s.handle)
    cdef size_t at = 0, n
    if c == NULL or c.state != C_IDLE or not c.tls.away:
        (<LocalPlan *>s.plan).refs -= 1
        step_free(s)
        return NULL
    c.tls = s.tls
    c.tls.away = 0
    c.tls.answered = c.tls.answered or s.out_size != 0
    s.tls.ssl = NULL
    c.plan = <LocalPlan *>s.plan
    tls_adopt(&w.tls, &c.tls)
    w.tls.in_at, w.tls.in_left = s.bytes + s.size - s.left, s.left
    rc[0] = s.rc if window_keep(w, c) == RC_OK else RC_FAIL
    while at < s.out_size:
        n = s.out_size - at if s.out_size - at < TLS_OUT_BYTES else TLS_OUT_BYTES
        memcpy(w.tls.out, s.out + at, n)
        w.tls.out_used = n
        at += n
        if sealed_push(w, c) == RC_FAIL:
            rc[0] = RC_FAIL
            break
    step_free(s)
    rc[0] = settle(w, c, rc[0])
    if rc[0] == RC_AGAIN and c.tls.sealed != NULL:
        c.readable = 1
    return c
