"""Handshakes, without letting a storm of them hold up live traffic: a step costs as much as a hundred requests. With a crew of threads they
leave this one; without, a batch of events takes steps for a fraction of a millisecond, and the others go on in the next."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from gwcore._speedups.conn cimport Conn, Worker, conn_again, conn_arm, random_next
from gwcore._speedups.ends cimport client_end, client_left, tls_refuse
from gwcore._speedups.early cimport early_keep, early_read
from gwcore._speedups.handshake cimport handshake_back, handshake_give, handshake_go
from gwcore._speedups.handshakes cimport Step, crew_full, crew_take
from gwcore._speedups.reasons cimport R_FAULT_INJECTED, R_OVERLOAD, R_TLS_CLIENT_CERT, R_TLS_HANDSHAKE
from gwcore._speedups.sessions cimport LETTER_ASK, LETTER_CLAIM, mail_put, session_offered
from gwcore._speedups.slab cimport slab_handle
from gwcore._speedups.store cimport SESSION_ID
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.sys cimport CLOCK_MONOTONIC, clock_gettime, timespec
from gwcore._speedups.tls cimport FAULT_CUT, FAULT_FAIL, FAULT_NONE, FAULT_STALL, FAULT_UNDRAWN, LOOKUP_ANSWERED, LOOKUP_WANTED, CLAIM_ASKED, tls_is_early
from gwcore._speedups.tlsserver cimport TlsServer
from gwcore._speedups.types cimport RC_AGAIN, RC_DONE, RC_FAIL, RC_OK, RC_PARK, link_append, link_drop, link_empty


cdef void park(Worker *w, Conn *c) noexcept nogil:
    """The handshake waits until Python has asked for its session, or goes on at once when nobody can be asked."""
    cdef uint8_t id[SESSION_ID]
    cdef TlsServer *s = <TlsServer *>c.tls.server
    if session_offered(c.tls.ssl, s.sessions.max_version, id) and mail_put(
            &w.mail, LETTER_CLAIM if c.tls.claim == CLAIM_ASKED else LETTER_ASK, slab_handle(&c.item), s.sessions.lifetime_s, id):
        return
    w.lane.tls.redis_skipped += 1
    unpark(w, c)


cdef void unpark(Worker *w, Conn *c) noexcept nogil:
    """Let a parked handshake go on."""
    c.tls.lookup = LOOKUP_ANSWERED
    conn_again(w, c)


cdef bint greeted(Worker *w, Conn *c, int rc) noexcept nogil:
    """What a step came to. True: the handshake is over, and bytes may wait."""
    if rc == RC_AGAIN:
        return False
    if rc == RC_PARK:
        park(w, c)
        return False
    if rc == RC_DONE and not c.tls.begun:
        client_end(w, c, False)              # a probe of the port
        return False
    if rc != RC_OK:
        tls_refuse(w, c, R_TLS_CLIENT_CERT if c.tls.verify_failed else R_TLS_HANDSHAKE)
        return False
    if tls_is_early(&c.tls):                 # the time limit of the handshake goes on
        if not early_keep(w, c):
            client_end(w, c, False)
            return False
        return greet_early(w, c)
    conn_arm(w, c, w.now_ms + w.plan.head.header_ms)
    return c.readable


cdef bint greet_early(Worker *w, Conn *c) noexcept nogil:
    """More of early data, and the end of the handshake behind it, whatever the connection does meanwhile. False: it is no more."""
    cdef int rc = early_read(w, c)
    if rc == RC_OK:
        return True
    if rc == RC_FAIL and not c.broken and c.exchange == NULL:
        tls_refuse(w, c, R_TLS_HANDSHAKE)
        return False
    if rc == RC_FAIL and not c.broken:
        w.lane.reasons[<int>R_TLS_HANDSHAKE] += 1
        w.lane.tls.failed += 1
        c.broken = 1
    if c.exchange != NULL:
        client_left(w, <Exchange *>c.exchange)
    else:
        client_end(w, c, False)
    return False


cdef bint spoilt(Worker *w, Conn *c) noexcept nogil:
    """Does tls.faults stop this handshake here? For tests; key material is never touched."""
    cdef uint32_t dice
    if c.tls.fault == FAULT_UNDRAWN:
        dice = <uint32_t>(random_next(w) >> 48)
        c.tls.fault = FAULT_NONE
        if dice < w.plan.head.fault_fail:
            c.tls.fault = FAULT_FAIL
        elif dice < w.plan.head.fault_fail + w.plan.head.fault_stall:
            c.tls.fault = FAULT_STALL
        elif dice < w.plan.head.fault_fail + w.plan.head.fault_stall + w.plan.head.fault_cut:
            c.tls.fault = FAULT_CUT
    if c.tls.fault == FAULT_FAIL or (c.tls.fault == FAULT_CUT and c.tls.begun):
        w.lane.reasons[<int>R_FAULT_INJECTED] += 1
        client_end(w, c, True)
        return True
    return c.tls.fault == FAULT_STALL


cdef uint64_t clock_us() noexcept nogil:
    """Now, and not when the batch began."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000 + <uint64_t>t.tv_nsec // 1000


cdef bint greet(Worker *w, Conn *c) noexcept nogil:
    """Go on with the handshake that a TLS connection begins with. True: it is over, and bytes may wait."""
    cdef uint64_t begin
    cdef int rc
    if c.tls.away or c.tls.waiting or c.tls.lookup == LOOKUP_WANTED:
        return False
    if w.plan.head.fault_fail + w.plan.head.fault_stall + w.plan.head.fault_cut and c.readable and spoilt(w, c):
        return False
    if w.crew != NULL:
        if c.readable and not c.tls.answered and crew_full(w.crew):
            tls_refuse(w, c, R_OVERLOAD)     # before requests are: they have cost something already
            return False
        return greeted(w, c, handshake_give(w, c))
    if c != w.greeter and (w.greet_us >= GREET_US or not link_empty(&w.greeting)):      # in turn, or new clients would starve those who wait
        link_drop(&c.run.link)
        link_append(&w.greeting, &c.run.link)
        return False
    begin = clock_us()
    rc = handshake_go(w, c)
    w.greet_us += <uint32_t>(clock_us() - begin)
    return greeted(w, c, rc)


cdef void greet_back(Worker *w) noexcept nogil:
    """Steps came back from the crew."""
    cdef Step *s = crew_take(w.crew)
    cdef Step *after
    cdef Conn *c
    cdef int rc
    while s != NULL:
        after = s.next
        c = handshake_back(w, s, &rc)
        if c != NULL and (greeted(w, c, rc) or (rc == RC_AGAIN and c.readable)):
            conn_again(w, c)
        s = after
