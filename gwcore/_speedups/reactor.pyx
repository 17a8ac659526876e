"""The reactor. epoll_wait takes up to 512 events; after each return the clock is read once, the events are served, then connections with
something left to do, queues, and timers. It goes round again while events come in batches and its millisecond lasts, then gives the
thread back to uvloop, of which it is one readable descriptor."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from gwcore._speedups.conn cimport (
    CONN_CLIENT, CONN_CLOCK, CONN_CREW, CONN_JOB, CONN_ORPHAN, LocalPlan, CONN_LISTENER, LISTENERS_MAX, LOOK_IDLE_MS, LOOK_WAIT_MS, C_IDLE, Conn, SCRATCH_BYTES, TIMER_CLIENT, TIMER_PULSE, TIMER_UPSTREAM, TIMER_WORKER,
    Worker, conn_arm, conn_move, conn_open, conn_register, worker_look,
)
from gwcore._speedups.address cimport address_of
from gwcore._speedups.attempt cimport idle_at_cap, idle_give_way, idle_spare
from gwcore._speedups.copies cimport copies_turn_end
from gwcore._speedups.ends cimport client_admit, client_end, client_settle, head_refuse, proxy_refuse
from gwcore._speedups.exchange cimport client_event, client_timeout, queue_serve, upstream_event, upstream_timeout
from gwcore._speedups.greet cimport GREET_US, greet_back
from gwcore._speedups.handshake cimport handshake_due
from gwcore._speedups.handshakes cimport crew_stop
from gwcore._speedups.plan cimport plan_trusts
from gwcore._speedups.pressure cimport pressure_close, pressure_pulse, pressure_watch
from gwcore._speedups.queueing cimport queue_ask
from gwcore._speedups.reasons cimport R_CONNECTION_LIMIT
from gwcore._speedups.slab cimport slab_at, slab_bytes
from gwcore._speedups.sys cimport (
    CLOCK_MONOTONIC, CLOCK_REALTIME, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLL_CLOEXEC,
    EPOLL_CTL_ADD, EPOLL_CTL_MOD, SOCK_CLOEXEC, SOCK_NONBLOCK, TFD_CLOEXEC, TFD_NONBLOCK, TFD_TIMER_ABSTIME, accept4, clock_gettime, close,
    epoll_create1, epoll_ctl, epoll_event, epoll_wait, errno, itimerspec, read, sockaddr, sockaddr_in6, sockaddr_storage, socklen_t,
    timerfd_create, timerfd_settime, timespec,
)
from gwcore._speedups.timer cimport Timer, timer_init, wheel_advance, wheel_init, wheel_next_ms, wheel_pop
from gwcore._speedups.tlsjobs cimport job_resume
from gwcore._speedups.types cimport Link, Node, link_append, link_drop, link_empty, link_init, link_push
from gwcore._speedups.upstream cimport Upstream
from gwcore._speedups.warm cimport warm_look

cdef enum:
    EVENTS = 512
    BUSY_EVENTS = 2          # a batch at least so large asks for another: a turn of the outer loop costs more than an empty wait
    BUDGET_US = 1000
    ACCEPTS = 16             # in one turn, of one listener
    RUNS = 512
    TIMERS = 16              # time limits served in one batch; the others are due at once
    TLS_SESSION_BYTES = 13400    # of OpenSSL's for one idle connection of a client, by measurement: bench.load.idle --tls

cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    struct tm:
        int tm_year, tm_mon, tm_mday, tm_hour, tm_min, tm_sec, tm_wday
    tm *gmtime_r(const time_t *t, tm *out)

cdef const char *DAYS = b"SunMonTueWedThuFriSat"
cdef const char *MONTHS = b"JanFebMarAprMayJunJulAugSepOctNovDec"


cdef void two(char *out, int n) noexcept nogil:
    out[0], out[1] = <char>(48 + n // 10), <char>(48 + n % 10)


cdef void date_write(Worker *w, uint64_t second) noexcept nogil:
    """The Date line of this second (RFC 9110 5.6.7)."""
    cdef tm t
    cdef time_t s = <time_t>second
    gmtime_r(&s, &t)
    memcpy(w.date, b"Date: Sun, 00 Jan 0000 00:00:00 GMT\r\n\r\n", 39)
    memcpy(w.date + 6, DAYS + 3 * t.tm_wday, 3)
    two(w.date + 11, t.tm_mday)
    memcpy(w.date + 14, MONTHS + 3 * t.tm_mon, 3)
    two(w.date + 18, (t.tm_year + 1900) // 100)
    two(w.date + 20, t.tm_year % 100)
    two(w.date + 23, t.tm_hour)
    two(w.date + 26, t.tm_min)
    two(w.date + 29, t.tm_sec)
    w.date_s = second


cdef void reactor_clock(Worker *w) noexcept nogil:
    """One read of the monotonic clock; wall time follows by an offset that is taken anew every second."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    w.now_us = <uint64_t>t.tv_sec * 1000000 + <uint64_t>t.tv_nsec // 1000
    w.now_ms = w.now_us // 1000
    w.wall_ms = w.now_ms + w.wall_offset_ms
    if w.wall_ms // 1000 != w.date_s:
        clock_gettime(CLOCK_REALTIME, &t)
        w.wall_ms = <uint64_t>t.tv_sec * 1000 + <uint64_t>t.tv_nsec // 1000000
        w.wall_offset_ms = w.wall_ms - w.now_ms
        date_write(w, w.wall_ms // 1000)


cdef bint reactor_open(Reactor *r) noexcept nogil:
    """The epoll descriptor and the timer; False when the kernel refuses one."""
    cdef Worker *w = &r.w
    cdef epoll_event e
    w.ep = epoll_create1(EPOLL_CLOEXEC)
    w.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
    w.scratch = <char *>malloc(SCRATCH_BYTES)
    if w.ep < 0 or w.timer_fd < 0 or w.scratch == NULL:
        return False
    e.events = EPOLLIN
    e.data.u64 = <uint64_t>CONN_CLOCK << 28
    epoll_ctl(w.ep, EPOLL_CTL_ADD, w.timer_fd, &e)
    reactor_clock(w)
    wheel_init(&w.wheel, w.now_ms)
    timer_init(&w.tick, 0, TIMER_WORKER)
    timer_init(&w.pulse, 0, TIMER_PULSE)
    link_init(&w.lru)
    link_init(&w.runnable)
    link_init(&w.held)
    link_init(&w.serve)
    link_init(&w.greeting)
    return True


cdef bint reactor_crew(Reactor *r, Crew *crew) noexcept nogil:
    """Let this crew do the handshakes from now on. False: the system does not watch it, and it is still the caller's."""
    cdef epoll_event e
    e.events = EPOLLIN
    e.data.u64 = <uint64_t>CONN_CREW << 28
    if epoll_ctl(r.w.ep, EPOLL_CTL_ADD, crew.wake_fd, &e) != 0:
        return False
    r.w.crew = crew
    return True


cdef void reactor_close(Reactor *r) noexcept nogil:
    cdef int i
    for i in range(r.n_listeners):
        listener_drop(r, i, False)
    crew_stop(r.w.crew)
    r.w.crew = NULL
    if r.w.ep >= 0:
        close(r.w.ep)
    if r.w.timer_fd >= 0:
        close(r.w.timer_fd)
    pressure_close(&r.w)
    free(r.w.scratch)
    r.w.scratch = NULL
    r.w.ep = r.w.timer_fd = -1


# ---- listeners ----------------------------------------------------------------------------------------------------

cdef bint listener_add(Reactor *r, const char *address, uint32_t size, int fd) noexcept nogil:
    """Accept from fd, which is the reactor's from here on. False when there are too many."""
    cdef epoll_event e
    cdef Listener *l
    cdef int i = 0
    while i < r.n_listeners and r.listeners[i].fd >= 0:
        i += 1
    if i == LISTENERS_MAX or size > sizeof(l.address):
        return False
    if i == r.n_listeners:
        r.n_listeners += 1
    l = &r.listeners[i]
    l.fd, l.paused, l.address_len = fd, False, size
    memcpy(l.address, address, size)
    e.events = EPOLLIN
    e.data.u64 = <uint64_t>CONN_LISTENER << 28 | i
    return epoll_ctl(r.w.ep, EPOLL_CTL_ADD, fd, &e) == 0


cdef void listener_drop(Reactor *r, int i, bint empty_queue) noexcept nogil:
    """Stop accepting. empty_queue: first take in what the kernel has completed, or its clients would be reset."""
    cdef Listener *l = &r.listeners[i]
    if l.fd < 0:
        return
    if empty_queue:
        while accept_some(r, l):
            pass
    close(l.fd)
    l.fd = -1


cdef void listeners_pause(Reactor *r, bint pause) noexcept nogil:
    cdef epoll_event e
    cdef int i
    if r.w.accept_paused == pause:
        return
    r.w.accept_paused = pause
    for i in range(r.n_listeners):
        if r.listeners[i].fd < 0:
            continue
        e.events = 0 if pause else EPOLLIN
        e.data.u64 = <uint64_t>CONN_LISTENER << 28 | i
        epoll_ctl(r.w.ep, EPOLL_CTL_MOD, r.listeners[i].fd, &e)
    if pause:
        r.w.lane.worker.accept_paused += 1
        worker_look(&r.w, LOOK_IDLE_MS)


cdef bint shed_idle(Worker *w) noexcept nogil:
    """Close the client connection that has been idle longest; False when none is idle."""
    if link_empty(&w.lru):
        return False
    w.lane.worker.shed_idle += 1
    client_end(w, <Conn *>slab_at(&w.clients, (<Node *>w.lru.prev).owner), False)
    return True


cdef bint accept_some(Reactor *r, Listener *l) noexcept nogil:
    """Accept a batch. True: there may be more."""
    cdef Worker *w = &r.w
    cdef sockaddr_storage from_
    cdef socklen_t size
    cdef Conn *c
    cdef int fd, _i
    for _i in range(ACCEPTS):
        if w.fds >= w.fd_limit and not shed_idle(w):
            listeners_pause(r, True)
            return False
        size = sizeof(sockaddr_in6) + 100
        fd = accept4(l.fd, <sockaddr *>&from_, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd < 0:
            if (errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM) and not shed_idle(w):
                listeners_pause(r, True)
            return False
        w.lane.worker.accepted += 1
        c = conn_open(w, CONN_CLIENT, fd)
        if c == NULL:
            close(fd)
            return False
        conn_move(w, c, C_IDLE)
        c.listener = <uint8_t>(l - &r.listeners[0])
        c.family = address_of(&from_, c.peer, &c.port)
        c.trusted = plan_trusts(w.plan.head, c.peer)
        if w.lane.worker.connections - w.lingering > w.connection_limit and not shed_idle(w):
            head_refuse(w, c, R_CONNECTION_LIMIT)
            continue
        if l.proxy_protocol:
            if c.family and not c.trusted:
                proxy_refuse(w, c)
                continue
            c.proxy_due = 1
        elif not client_admit(w, c):
            continue
        if not c.proxy_due and not handshake_due(w, c) or (c.proxy_due or c.tls.due) and not conn_register(w, c):
            client_end(w, c, False)
            continue
        link_push(&w.lru, &c.idle.link)
        conn_arm(w, c, w.now_ms + (w.plan.head.tls_handshake_ms if c.tls.due else w.plan.head.header_ms))
        c.readable = 1               # the request is often there already: read before the kernel is asked
        client_event(w, c)
        client_settle(w, c)
    return True


# ---- a turn -------------------------------------------------------------------------------------------------------

cdef void serve_event(Reactor *r, const epoll_event *e) noexcept nogil:
    cdef Worker *w = &r.w
    cdef uint64_t data = e.data.u64, token
    cdef uint32_t slot = data & 0x0fffffff, side = (data >> 28) & 15, events = e.events
    cdef Conn *c
    cdef LocalPlan *plan
    if side == CONN_LISTENER:
        if r.listeners[slot].fd >= 0:
            accept_some(r, &r.listeners[slot])
        return
    if side == CONN_CLOCK:
        read(w.timer_fd, &token, sizeof(token))
        if w.armed_ms and w.now_us > w.armed_ms * 1000 + w.pressure.wait_us:
            w.pressure.wait_us = w.now_us - w.armed_ms * 1000
        w.armed_ms = 0
        return
    if side == CONN_CREW:
        read(w.crew.wake_fd, &token, sizeof(token))
        greet_back(w)
        return
    if side == CONN_ORPHAN:
        plan = <LocalPlan *>job_resume(&w.jobs, &w.tls, w.ep, slot, <uint64_t>CONN_ORPHAN << 28)
        if plan != NULL:
            plan.refs -= 1
        return
    if side == CONN_JOB:
        c = <Conn *>slab_at(&w.clients, slot)
        if c.item.gen == <uint32_t>(data >> 32) and c.item.live and c.tls.waiting and c.state == C_IDLE:
            c.tls.waiting = 0
            c.tls.paused = 1
            client_event(w, c)
        return
    c = <Conn *>slab_at(&w.clients if side == CONN_CLIENT else &w.upstreams, slot)
    if c.item.gen != <uint32_t>(data >> 32) or not c.item.live:
        return                       # an event of a connection that is gone
    if events & EPOLLIN:
        c.readable = 1
    if events & EPOLLOUT:
        c.writable = 1
    if events & EPOLLRDHUP:
        c.readable = 1
        if not c.ended:
            c.ended = 1
    if events & (EPOLLERR | EPOLLHUP):
        c.broken = events & EPOLLERR != 0 or c.broken
        c.readable = 1
        c.ended = 1 if not c.ended else c.ended
    if side == CONN_CLIENT:
        client_event(w, c)
    else:
        upstream_event(w, c)


cdef void serve_rest(Reactor *r) noexcept nogil:
    """Connections with something left to do, queues that may move, timers that are due."""
    cdef Worker *w = &r.w
    cdef Upstream *u
    cdef Timer *t
    cdef Node *node
    cdef int runs = 0, expired = 0
    while not link_empty(&w.runnable) and runs < RUNS:
        node = <Node *>w.runnable.next
        link_drop(&node.link)
        client_event(w, <Conn *>slab_at(&w.clients, node.owner))
        runs += 1
    while not link_empty(&w.serve):
        u = <Upstream *>w.serve.next
        link_drop(&u.serve)
        queue_serve(w, u)
    wheel_advance(&w.wheel, w.now_ms)
    while expired < TIMERS:                  # a thousand time limits at once must not stand between requests and their answers
        t = wheel_pop(&w.wheel)
        if t == NULL:
            return
        expired += 1
        if t.kind == TIMER_CLIENT:
            client_timeout(w, <Conn *>slab_at(&w.clients, t.owner))
        elif t.kind == TIMER_UPSTREAM:
            upstream_timeout(w, <Conn *>slab_at(&w.upstreams, t.owner))
        elif t.kind == TIMER_PULSE:
            pressure_pulse(w)
        else:
            tick(r)


cdef void greetings(Worker *w) noexcept nogil:
    """Handshakes that wait their turn, as far as this batch's time for them goes."""
    cdef Node *node
    while not link_empty(&w.greeting) and w.greet_us < GREET_US:
        node = <Node *>w.greeting.next
        link_drop(&node.link)
        w.greeter = <Conn *>slab_at(&w.clients, node.owner)
        client_event(w, w.greeter)
    w.greeter = NULL
    w.greet_us = 0


cdef void tick(Reactor *r) noexcept nogil:
    """Only while something waits: requests for a place in a pool that other workers fill too, other workers for one of ours, endpoints for warm
    connections; accepting that was paused goes on when a twentieth of the descriptors is free again, or can be had from connections that idle;
    connections held back by a full log are looked at again."""
    cdef Worker *w = &r.w
    cdef Link *node
    while not link_empty(&w.held):
        node = w.held.next
        link_drop(node)
        link_append(&w.runnable, node)
    cdef uint32_t i, enough = w.fd_limit - w.fd_limit // 20
    cdef Upstream *u
    for i in range(w.plan.head.upstreams.n if w.plan != NULL else 0):
        u = <Upstream *>w.plan.upstreams[i]
        idle_give_way(w, u)
        warm_look(w, u)
        if u.queue.n:
            queue_ask(w, u)
            link_drop(&u.serve)
            link_append(&w.serve, &u.serve)
            worker_look(w, LOOK_WAIT_MS)
        elif idle_at_cap(u):
            worker_look(w, LOOK_IDLE_MS)
    if w.accept_paused:
        if link_empty(&w.lru):               # else who comes takes the place of one of those
            for i in range(w.plan.head.upstreams.n if w.plan != NULL else 0):
                while w.fds >= enough and idle_spare(w, <Upstream *>w.plan.upstreams[i]):
                    pass
        if w.fds < enough or not link_empty(&w.lru):
            listeners_pause(r, False)
        else:
            worker_look(w, LOOK_IDLE_MS)


cdef void clock_arm(Worker *w) noexcept nogil:
    """Have the timerfd wake us when the wheel has to be looked at; a call only when that is earlier than it stands."""
    cdef itimerspec at
    cdef uint64_t due = wheel_next_ms(&w.wheel)
    if not link_empty(&w.runnable) or not link_empty(&w.greeting):
        due = w.now_ms
    if due and (w.armed_ms == 0 or due < w.armed_ms):
        memset(&at, 0, sizeof(at))
        at.it_value.tv_sec = due // 1000
        at.it_value.tv_nsec = due % 1000 * 1000000 + 1
        timerfd_settime(w.timer_fd, TFD_TIMER_ABSTIME, &at, NULL)
        w.armed_ms = due


cdef void reactor_drain(Reactor *r) noexcept nogil:
    """Serve what is ready, for about a millisecond at the most. It does not wait for more: answering each event at once makes batches small,
    and cost 5 % (own answers) to 20 % (connection per request) where it was tried."""
    cdef Worker *w = &r.w
    cdef epoll_event events[EVENTS]
    cdef uint64_t start = 0
    cdef int n, i
    while True:
        n = epoll_wait(w.ep, events, EVENTS, 0)
        reactor_clock(w)
        w.lane.worker.loop_turns += 1
        if start == 0:
            start = w.now_us
        for i in range(n):
            serve_event(r, &events[i])
        serve_rest(r)
        greetings(w)
        if w.copies != NULL:
            copies_turn_end(w.copies)
        if (n < BUSY_EVENTS and link_empty(&w.runnable) and link_empty(&w.greeting)) or w.now_us - start >= BUDGET_US:
            break
    w.lane.worker.buffer_bytes = w.bufs.used_bytes
    w.lane.worker.tls_bytes = w.lane.tls.sessions * TLS_SESSION_BYTES
    w.lane.worker.held_bytes = w.bufs.held_bytes + slab_bytes(&w.clients) + slab_bytes(&w.upstreams) + slab_bytes(&w.exchanges)
    pressure_watch(w)
    clock_arm(w)


cdef uint32_t reactor_close_idle(Reactor *r, uint64_t idle_ms) noexcept nogil:
    """Close client connections that have been idle for idle_ms and of which no byte waits; returns how many connections are left."""
    cdef Worker *w = &r.w
    cdef Link *at = w.lru.prev
    cdef Link *before
    cdef Conn *c
    reactor_clock(w)
    while at != &w.lru:
        before = at.prev
        c = <Conn *>slab_at(&w.clients, (<Node *>at).owner)
        # a connection that had no request yet is idle since it was opened; its timer stands at another limit
        if not c.readable and (w.now_ms >= c.opened_ms + idle_ms if c.requests == 0
                               else w.now_ms + w.plan.head.keepalive_ms >= c.timer.due_ms + idle_ms):
            client_end(w, c, False)
        at = before
    return <uint32_t>w.lane.worker.connections
