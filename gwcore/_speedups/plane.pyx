"""The door of the data plane: the only class that Python drives. Everything in here is cold but `drain`."""
import os
import resource

from gwcore._speedups import crypto

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from gwcore._speedups.buffer cimport bufs_close, bufs_init
from gwcore._speedups.conn cimport C_POOLED, LISTENERS_MAX, Conn, LocalPlan, Worker, worker_look
from gwcore._speedups.connect cimport upstream_close
from gwcore._speedups.copenssl cimport SSL_CTX, SSL_CTX_free
from gwcore._speedups.detached cimport detached_leave
from gwcore._speedups.ends cimport client_end, exchange_fail
from gwcore._speedups.errands cimport Errands
from gwcore._speedups.handshakes cimport Crew, crew_start, crew_stop
from gwcore._speedups.plan cimport ListenerSpec, PlanHead, Route, Str, UpstreamSpec, plan_refused, plan_route, plan_text, plan_upstream
from gwcore._speedups.reactor cimport (
    Listener, clock_arm, listener_add, listener_drop, reactor_clock, reactor_close, reactor_close_idle, reactor_crew, reactor_drain,
    reactor_open,
)
from gwcore._speedups.reasons cimport R_DEADLINE
from gwcore._speedups.regex cimport Regex, regex_compile, regex_free
from gwcore._speedups.ring cimport ring_close, ring_open, ring_swap_fd
from gwcore._speedups.sessions cimport mail_init
from gwcore._speedups.shm cimport Segment, segment_lane, segment_store
from gwcore._speedups.slab cimport Slab, slab_at, slab_close, slab_init
from gwcore._speedups.splice cimport pipes_close
from gwcore._speedups.story cimport X_TUNNEL, Exchange
from gwcore._speedups.sys cimport MAP_FAILED, MAP_SHARED, PROT_READ, mmap, munmap
from gwcore._speedups.tls cimport tls_io_close
from gwcore._speedups.tlsclient cimport client_build
from gwcore._speedups.tlsjobs cimport jobs_close, jobs_waiting
from gwcore._speedups.tlsserver cimport TlsServer, server_build, server_free
from gwcore._speedups.types cimport link_drop, size_t
from gwcore._speedups.upstream cimport Endpoint, Upstream, endpoint_free, upstream_free, upstream_new, upstream_update
from gwcore.pool cimport CLOSE_DRAIN, pool_open

cdef enum:
    FD_RESERVE = 64          # for logs, control channels, Python


cdef class Plane(Errands):
    """One worker's data plane.

    Plane(worker, segment_fd): worker is the lane number (0 to workers - 1), segment_fd a descriptor of the shared segment, which stays
    the caller's. Register `fileno()` with the loop and call `drain()` when it is readable. Plans go through prepare, commit (or
    discard). Not thread-safe, but for `prepare`, which touches nothing that `drain` uses.
    """
    cdef Segment segment
    cdef dict prepared       # version -> address of a LocalPlan
    cdef Crew *crew          # threads of a prepared plan, until it is committed
    cdef LocalPlan *plans    # every plan that is still in use, the current one first
    cdef Upstream **known
    cdef uint32_t n_known
    cdef Endpoint *gone
    cdef LocalPlan *serving[64]          # by listener: the plan that Worker.servers points into, held
    cdef bint closed

    def __cinit__(self, int worker, int segment_fd):
        cdef Worker *w = &self.r.w
        memset(&self.r, 0, sizeof(self.r))
        w.ep = w.timer_fd = -1
        self.segment = Segment.attach(segment_fd)
        if not 0 <= worker < self.segment.workers:
            raise ValueError(f"worker {worker} has no lane: the segment has {self.segment.workers}")
        w.number = worker
        w.lane = segment_lane(self.segment.mem, worker)
        w.segment = self.segment.mem
        w.random = int.from_bytes(os.urandom(8), "little") | 1
        w.id_prefix = int.from_bytes(os.urandom(8), "little")
        slab_init(&w.clients, sizeof(Conn))
        slab_init(&w.upstreams, sizeof(Conn))
        slab_init(&w.exchanges, sizeof(Exchange))
        bufs_init(&w.bufs, 0)
        w.out.bufs = &w.bufs
        mail_init(&w.mail)
        w.pipes_max = max(1, min(16, 32 // self.segment.workers))        # 32 MiB of pipes over all workers
        if not reactor_open(&self.r):
            raise OSError("cannot create the epoll and timer descriptors; raise the descriptor limit")
        self.prepared = {}
        self._limits()

    cdef _limits(self):
        cdef Worker *w = &self.r.w
        cdef uint32_t soft, pools = 0, i
        soft = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 24)
        w.fd_limit = max(soft, FD_RESERVE + 16) - FD_RESERVE
        if w.plan == NULL:
            return
        for i in range(w.plan.head.upstreams.n):
            pools += plan_upstream(w.plan.head, i).max_connections * plan_upstream(w.plan.head, i).endpoints.n
        w.connection_limit = w.plan.head.connections or w.fd_limit - min(pools, w.fd_limit // 2)
        w.bufs.max_bytes = w.plan.head.buffers_total

    def fileno(self) -> int:
        """The nested epoll descriptor; itself pollable."""
        return self.r.w.ep

    def drain(self) -> None:
        """Serve what is ready, about a millisecond at the most."""
        with nogil:
            reactor_drain(&self.r)
        self._letters()

    # ---- plans ----

    def prepare(self, version: int, fd: int) -> None:
        """Map the plan behind fd and make what is local to this process. ValueError says why a plan is refused; then nothing changed."""
        cdef size_t size = os.fstat(fd).st_size
        cdef LocalPlan *p
        cdef const char *why
        cdef void *at = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0)
        cdef char error[256]
        cdef const Route *r
        cdef const uint32_t *list
        cdef uint32_t i
        cdef int where
        if at == MAP_FAILED:
            raise ValueError("the plan cannot be mapped")
        why = plan_refused(<const PlanHead *>at, size)
        if why != NULL:
            munmap(at, size)
            raise ValueError(why.decode())
        p = <LocalPlan *>calloc(1, sizeof(LocalPlan))
        if p == NULL:
            munmap(at, size)
            raise MemoryError
        p.head, p.bytes = <const PlanHead *>at, size
        p.regexes = <Regex *>calloc(p.head.regexes.n + 1, sizeof(Regex))
        p.upstreams = <void **>calloc(p.head.upstreams.n + 1, sizeof(void *))
        p.servers = <TlsServer *>calloc(p.head.tls.n + 1, sizeof(TlsServer))
        p.clients = <SSL_CTX **>calloc(p.head.clients.n + 1, sizeof(SSL_CTX *))
        if p.regexes == NULL or p.upstreams == NULL or p.servers == NULL or p.clients == NULL:
            plan_free(p)
            raise MemoryError
        list = <const uint32_t *>(<const char *>p.head + p.head.regexes.off)
        for i in range(p.head.regexes.n):
            r = plan_route(p.head, list[i])
            where = regex_compile(&p.regexes[i], plan_text(p.head, r.path), r.path.len, error, sizeof(error))
            if where:
                name = plan_text(p.head, r.name)[:r.name.len].decode()
                plan_free(p)
                raise ValueError(f"route {name}: regex: {error.decode()} at character {where}")
        try:
            use_crypto(p.head)
        except ValueError:
            plan_free(p)
            raise
        for i in range(p.head.tls.n):
            p.servers[i].shared.ring, p.servers[i].shared.cell = &self.r.w.segment.tickets, &self.r.w.lane.tls
            p.servers[i].sessions.store, p.servers[i].sessions.cell = segment_store(self.r.w.segment), &self.r.w.lane.tls
            p.servers[i].sessions.mail, p.servers[i].sessions.wall_ms = &self.r.w.mail, &self.r.w.wall_ms
            p.servers[i].sessions.worker = self.r.w.number
            if not server_build(&p.servers[i], p.head, i, error, sizeof(error)):
                plan_free(p)
                raise ValueError(f"listeners: tls: {error.decode(errors='replace')}")
        for i in range(p.head.clients.n):
            p.clients[i] = client_build(p.head, i, error, sizeof(error))
            if p.clients[i] == NULL:
                plan_free(p)
                raise ValueError(f"upstreams: tls: {error.decode(errors='replace')}")
        self.discard(version)
        if p.head.handshake_threads and p.head.tls.n and self.r.w.crew == NULL and self.crew == NULL:
            self.crew = crew_start(p.head.handshake_threads, p.head.handshake_queue)
            if self.crew == NULL:
                plan_free(p)
                raise ValueError("tls.handshake_threads: the system starts no thread; raise the limit on processes, or set it to 0")
        self.prepared[version] = <uint64_t>p

    def discard(self, version: int) -> None:
        """Forget a prepared plan; unknown versions are ignored."""
        address = self.prepared.pop(version, None)
        if address is not None:
            plan_free(<LocalPlan *><uint64_t>address)

    def commit(self, version: int) -> None:
        """Use a prepared plan for every request from now on. Requests under way keep theirs; pools of endpoints that stay are not touched."""
        cdef LocalPlan *p = <LocalPlan *><uint64_t>self.prepared[version]
        cdef const UpstreamSpec *spec
        cdef Upstream *u
        cdef Upstream **known
        cdef uint32_t i, k
        for i in range(self.n_known):
            self.known[i].gone = True
        for i in range(p.head.upstreams.n):
            spec = plan_upstream(p.head, i)
            u = NULL
            for k in range(self.n_known):
                if self.known[k].name_len == min(spec.name.len, 128) and memcmp(self.known[k].name, plan_text(p.head, spec.name), self.known[k].name_len) == 0:
                    u = self.known[k]
            if u == NULL:
                u = upstream_new(&self.r.w, p.head, spec)
                known = <Upstream **>calloc(self.n_known + 1, sizeof(Upstream *))
                if u == NULL or known == NULL:
                    raise MemoryError
                if self.n_known:
                    memcpy(known, self.known, self.n_known * sizeof(Upstream *))
                free(self.known)
                self.known = known
                known[self.n_known] = u
                self.n_known += 1
            if not upstream_update(&self.r.w, u, p.head, spec, p.clients[spec.tls - 1] if spec.tls else NULL, &self.gone):
                raise MemoryError
            p.upstreams[i] = u
        del self.prepared[version]
        p.older = self.plans
        self.plans = p
        self.r.w.plan = p
        for i in range(self.n_known):
            if self.known[i].gone:
                for k in range(self.known[i].n):
                    self.known[i].endpoints[k].pool.draining = 1
        self._limits()
        if self.crew != NULL and p.head.handshake_threads and p.head.tls.n and reactor_crew(&self.r, self.crew):
            self.crew = NULL
        for i in range(self.r.n_listeners):
            self._listener(i)
        self._close_pooled(False)
        self.collect()
        with nogil:                      # the tick opens what pool.min_idle wants
            reactor_clock(&self.r.w)
            worker_look(&self.r.w, 1)
            clock_arm(&self.r.w)

    def collect(self) -> int:
        """Free plans, endpoints and upstreams that nothing uses any more; returns how many old plans are still in use."""
        cdef LocalPlan **at
        cdef LocalPlan *p
        cdef Endpoint **e
        cdef Endpoint *dead
        cdef Upstream *u
        cdef uint32_t i, k, kept = 0
        cdef bint empty
        left = 0
        if self.plans == NULL:
            return 0
        at = &self.plans.older
        while at[0] != NULL:
            p = at[0]
            if p.refs == 0:
                at[0] = p.older
                plan_free(p)
            else:
                left += 1
                at = &p.older
        if left:
            return left                  # an exchange of an old plan may still name a gone endpoint
        e = &self.gone
        while e[0] != NULL:
            dead = e[0]
            if pool_open(&dead.pool) == 0:
                e[0] = dead.next_gone
                endpoint_free(dead)
            else:
                e = &dead.next_gone
        for i in range(self.n_known):
            u = self.known[i]
            empty = u.gone and u.queue.n == 0
            dead = self.gone
            while dead != NULL:              # a tunnel may still use an endpoint of it that left before
                empty = empty and dead.upstream != u
                dead = dead.next_gone
            for k in range(u.n):
                empty = empty and pool_open(&u.endpoints[k].pool) == 0
            if empty:
                link_drop(&u.serve)
                upstream_free(u)
            else:
                self.known[kept] = u
                kept += 1
        self.n_known = kept
        return 0

    cdef _close_pooled(self, bint everything):
        """Close upstream connections that no request holds, of draining pools (or all)."""
        cdef Slab *s = &self.r.w.upstreams
        cdef uint32_t i
        cdef Conn *c
        for i in range(s.made):
            c = <Conn *>slab_at(s, i)
            if c.item.live and c.exchange == NULL and (everything or c.pooled.pool.draining):
                upstream_close(&self.r.w, c, CLOSE_DRAIN)

    # ---- sockets and log ----

    def listen(self, address: str, fd: int) -> None:
        """Accept on a duplicate of fd, a listening non-blocking socket. Needs a committed plan. Listening twice is harmless."""
        cdef bytes name = address.encode()
        cdef int own, i
        if self.r.w.plan == NULL:
            raise ValueError("commit a plan before listening")
        for i in range(self.r.n_listeners):
            if self._is(i, name):
                return
        os.set_blocking(fd, False)
        own = os.dup(fd)
        if not listener_add(&self.r, name, len(name), own):
            os.close(own)
            raise ValueError(f"cannot listen on {address}: at most {LISTENERS_MAX} listeners of 128 characters")
        for i in range(self.r.n_listeners):
            self._listener(i)

    cdef bint _is(self, int i, bytes name):
        cdef Listener *l = &self.r.listeners[i]
        return l.fd >= 0 and l.address[:l.address_len] == name

    cdef _listener(self, int n):
        """What the present plan says of a listener. One that it does not know serves by its last plan until `unlisten`."""
        cdef const PlanHead *p = self.r.w.plan.head
        cdef const ListenerSpec *spec = <const ListenerSpec *>(<const char *>p + p.listeners.off)
        cdef Listener *l = &self.r.listeners[n]
        cdef uint32_t i
        if l.fd < 0:
            self._serve(n, NULL, 0)
            return
        for i in range(p.listeners.n):
            if spec[i].address.len == l.address_len and memcmp(plan_text(p, spec[i].address), l.address, l.address_len) == 0:
                l.proxy_protocol = spec[i].proxy_protocol
                self._serve(n, self.r.w.plan if spec[i].tls else NULL, spec[i].tls)

    cdef _serve(self, int n, LocalPlan *p, uint32_t tls):
        """Have a listener speak the TLS that is index + 1 in a plan (NULL: none), and hold that plan."""
        if p != NULL:
            p.refs += 1
        if self.serving[n] != NULL:
            self.serving[n].refs -= 1
        self.serving[n] = p
        self.r.w.servers[n] = &p.servers[tls - 1] if p != NULL else NULL

    def unlisten(self, address: str) -> None:
        """Take in what waits in the queue of that address, then stop accepting there."""
        cdef bytes name = address.encode()
        cdef int i
        for i in range(self.r.n_listeners):
            if self._is(i, name):
                with nogil:
                    reactor_clock(&self.r.w)
                    listener_drop(&self.r, i, True)
                self._serve(i, NULL, 0)

    def set_log(self, fd: int) -> None:
        """Write the access log to (a duplicate of) fd from now on; -1 ends it. Starts the log's thread at first use."""
        cdef Worker *w = &self.r.w
        if fd < 0:
            ring = w.ring
            w.ring = NULL
            with nogil:
                ring_close(ring)
        elif w.ring != NULL:
            ring_swap_fd(w.ring, fd)
        else:
            w.ring = ring_open(fd, w.plan.head.log_buffer if w.plan != NULL else 65536, w.plan.head.log_flush_ms if w.plan != NULL else 1000)
            if w.ring == NULL:
                raise OSError("cannot start the access log's thread")

    # ---- the end ----

    def begin_drain(self) -> None:
        """Stop accepting (what the kernel has accepted is taken in), and close every connection after its present answer."""
        cdef int i
        with nogil:
            reactor_clock(&self.r.w)
            for i in range(self.r.n_listeners):
                listener_drop(&self.r, i, True)
            self.r.w.draining = True

    def busy(self) -> int:
        """Exchanges under way, and connections in the middle of a request head."""
        cdef Slab *s = &self.r.w.clients
        cdef uint32_t i, n = 0
        cdef Conn *c
        for i in range(s.made):
            c = <Conn *>slab_at(s, i)
            if c.item.live and c.state > 1:          # beyond idle
                n += 1
        return n

    def close_idle(self, idle_ms: int = 0) -> int:
        """Close client connections idle for at least idle_ms; returns how many connections are left."""
        return reactor_close_idle(&self.r, idle_ms)

    def close_requests(self) -> None:
        """Close every client connection that is not a tunnel, whatever it is doing."""
        cdef Slab *s = &self.r.w.clients
        cdef uint32_t i
        cdef Conn *c
        for i in range(s.made):
            c = <Conn *>slab_at(s, i)
            if c.item.live and not (c.exchange != NULL and (<Exchange *>c.exchange).phase == X_TUNNEL):
                client_end(&self.r.w, c, c.exchange != NULL)

    def leave_waiting(self) -> int:
        """For tests: answer every client that waits for an upstream, whose requests go on without them. How many."""
        cdef Slab *s = &self.r.w.clients
        cdef uint32_t i, n = 0
        cdef Conn *c
        cdef Exchange *y
        for i in range(s.made):
            c = <Conn *>slab_at(s, i)
            if c.item.live and c.exchange != NULL:
                y = detached_leave(&self.r.w, <Exchange *>c.exchange)
                if y != NULL:
                    exchange_fail(&self.r.w, y, R_DEADLINE, False)
                    n += 1
        return n

    def counts(self) -> dict:
        """Live objects, for tests that count them back to zero."""
        cdef Worker *w = &self.r.w
        cdef uint32_t i, pooled = 0
        cdef Conn *c
        for i in range(w.upstreams.made):
            c = <Conn *>slab_at(&w.upstreams, i)
            pooled += c.item.live and c.state == C_POOLED
        return {"connections": w.clients.used, "upstream_connections": w.upstreams.used, "pooled": pooled, "exchanges": w.exchanges.used,
                "buffers": w.bufs.used, "buffer_bytes": w.bufs.used_bytes, "timers": w.wheel.armed, "fds": w.fds, "jobs": jobs_waiting(&w.jobs),
                "permits": w.lane.worker.permits,
                "waiting": sum([self.known[i].queue.n for i in range(self.n_known)]), "illegal_moves": w.lane.worker.illegal_moves}

    def close(self) -> None:
        """Close every connection and free everything. The plane cannot be used afterwards."""
        cdef Worker *w = &self.r.w
        cdef Slab *s = &w.clients
        cdef LocalPlan *p
        cdef uint32_t i
        cdef Conn *c
        if self.closed:
            return
        self.closed = True
        for i in range(s.made):
            c = <Conn *>slab_at(s, i)
            if c.item.live:
                client_end(w, c, False)
        self._close_pooled(True)
        self.set_log(-1)
        reactor_close(&self.r)
        crew_stop(self.crew)
        self.crew = NULL
        for version in list(self.prepared):
            self.discard(version)
        while self.plans != NULL:
            p = self.plans
            self.plans = p.older
            plan_free(p)
        for i in range(self.n_known):
            upstream_free(self.known[i])
        free(self.known)
        self.n_known = 0
        while self.gone != NULL:
            gone = self.gone
            self.gone = gone.next_gone
            endpoint_free(gone)
        w.copies = NULL
        pipes_close(w)
        jobs_close(&w.jobs)
        tls_io_close(&w.tls)
        slab_close(&w.clients)
        slab_close(&w.upstreams)
        slab_close(&w.exchanges)
        bufs_close(&w.bufs)

    def __dealloc__(self):
        if not self.closed and self.r.w.ep >= 0:
            self.close()


cdef use_crypto(const PlanHead *p):
    """Load the plan's providers, before anything is made with them."""
    cdef const Str *names = <const Str *>(<const char *>p + p.providers.off)
    cdef uint32_t i
    crypto.use([plan_text(p, names[i]).decode() for i in range(p.providers.n)], plan_text(p, p.provider_path).decode(),
               plan_text(p, p.provider_properties).decode(), plan_text(p, p.engine).decode())


cdef void plan_free(LocalPlan *p) noexcept:
    cdef uint32_t i
    if p.regexes != NULL:
        for i in range(p.head.regexes.n):
            regex_free(&p.regexes[i])
    if p.servers != NULL:
        for i in range(p.head.tls.n):
            server_free(&p.servers[i])
    free(p.regexes)
    if p.clients != NULL:
        for i in range(p.head.clients.n):
            SSL_CTX_free(p.clients[i])
    free(p.servers)
    free(p.clients)
    free(p.upstreams)
    munmap(<void *>p.head, p.bytes)
    free(p)


def sizes() -> dict:
    """sizeof of the objects of which there is one per connection or request."""
    return {"conn": sizeof(Conn), "exchange": sizeof(Exchange), "route": sizeof(Route)}
