"""A provider or engine that works elsewhere pauses the job in which OpenSSL runs a handshake step, and gives descriptors that become readable
when it is done. They are watched like sockets. A job that is paused can only be ended by going on with it: when its connection ends first, the
session is put aside here until its time has come."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

from gwcore._speedups.copenssl cimport SSL_get_all_async_fds, SSL_set_default_passwd_cb_userdata
from gwcore._speedups.sys cimport EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_MOD, epoll_ctl, epoll_event
from gwcore._speedups.tls cimport tls_end, tls_step
from gwcore._speedups.types cimport size_t

cdef enum:
    FDS_MOST = 16            # of one job

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLLONESHOT


cdef bint job_watch(int ep, Tls *t, uint64_t data) noexcept nogil:
    """Have epoll say `data`, once, when the job that t waits for may go on. False when that cannot be watched."""
    cdef int[FDS_MOST] fds
    cdef size_t n = 0, i
    cdef epoll_event e
    if SSL_get_all_async_fds(t.ssl, NULL, &n) != 1 or n == 0 or n > FDS_MOST or SSL_get_all_async_fds(t.ssl, fds, &n) != 1:
        return False
    e.events = EPOLLIN | EPOLLONESHOT
    e.data.u64 = data
    for i in range(n):
        if epoll_ctl(ep, EPOLL_CTL_ADD, fds[i], &e) != 0 and epoll_ctl(ep, EPOLL_CTL_MOD, fds[i], &e) != 0:
            return False
    return True


cdef bint job_orphan(Jobs *j, int ep, Tls *t, void *plan, uint64_t data) noexcept nogil:
    """Take over a session that waits, and the hold on its plan; epoll will say data | the row. False when memory is out: the session is lost, and
    so is what its job holds."""
    cdef uint32_t row = 0
    cdef Job **rows
    while row < j.n and j.rows[row].tls.ssl != NULL:
        row += 1
    if row == j.n:
        rows = <Job **>realloc(j.rows, (j.n + 1) * sizeof(Job *))
        if rows == NULL:
            return False
        j.rows = rows
        j.rows[row] = <Job *>calloc(1, sizeof(Job))      # rows do not move: OpenSSL's callbacks know where they are
        if j.rows[row] == NULL:
            return False
        j.n += 1
    j.rows[row].tls = t[0]
    j.rows[row].plan = plan
    SSL_set_default_passwd_cb_userdata(t.ssl, &j.rows[row].tls)
    t.ssl = NULL
    if job_watch(ep, &j.rows[row].tls, data | row):
        return True
    t[0] = j.rows[row].tls                               # the caller ends it
    j.rows[row].tls.ssl = NULL
    j.rows[row].plan = NULL
    return False


cdef void *job_resume(Jobs *j, TlsIo *io, int ep, uint32_t row, uint64_t data) noexcept nogil:
    """The job of an orphan may go on. When it has ended its plan, whose hold is the caller's again; else NULL."""
    cdef Job *o
    cdef void *plan
    if row >= j.n or j.rows[row].tls.ssl == NULL:
        return NULL
    o = j.rows[row]
    io.in_left = io.out_used = 0
    o.tls.waiting = 0
    tls_step(io, &o.tls)                                 # nobody reads what it makes
    if o.tls.waiting and job_watch(ep, &o.tls, data | row):
        return NULL
    tls_end(&o.tls)
    plan = o.plan
    o.plan = NULL
    return plan


cdef uint32_t jobs_waiting(const Jobs *j) noexcept nogil:
    cdef uint32_t i, n = 0
    for i in range(j.n):
        n += j.rows[i].tls.ssl != NULL
    return n


cdef void jobs_close(Jobs *j) noexcept nogil:
    """At the end of the process: what still waits is let go."""
    cdef uint32_t i
    for i in range(j.n):
        tls_end(&j.rows[i].tls)
        free(j.rows[i])
    free(j.rows)
    j.rows = NULL
    j.n = 0
