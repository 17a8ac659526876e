# Level 7. One TCP connection of either side, and the worker context that everything above works in.
from gwcore._speedups.buffer cimport Buf, BufPool, ByteQueue
from gwcore._speedups.copenssl cimport SSL_CTX
from gwcore._speedups.copies cimport Copies
from gwcore._speedups.copymail cimport CopyMail
from gwcore._speedups.handshakes cimport Crew
from gwcore._speedups.head cimport Head
from gwcore._speedups.outlist cimport OutList
from gwcore._speedups.plan cimport PlanHead
from gwcore._speedups.regex cimport Regex
from gwcore._speedups.ring cimport Ring
from gwcore._speedups.sessions cimport Mail
from gwcore._speedups.shm cimport Lane, Segment_
from gwcore._speedups.slab cimport Slab, SlabItem
from gwcore._speedups.sys cimport sockaddr_storage
from gwcore._speedups.timer cimport Timer, Wheel
from gwcore._speedups.tls cimport Tls, TlsIo, tls_is_early
from gwcore._speedups.tlsjobs cimport Jobs
from gwcore._speedups.tlsserver cimport TlsServer
from gwcore._speedups.types cimport Link, Node, size_t, uint32_t, uint64_t
from gwcore.pool cimport PoolItem
from libc.stdint cimport uint8_t, uint16_t

cdef enum:
    LISTENERS_MAX = 64
    SCRATCH_BYTES = 131072   # one read takes up to this
    LOOK_WAIT_MS = 10        # how soon the tick looks: for a place in a pool that other workers fill too
    LOOK_LOG_MS = 20         # for room in the log's ring
    LOOK_WARM_MS = 50        # at endpoints with fewer idle connections than pool.min_idle, and as much again at random
    LOOK_IDLE_MS = 50        # at idle connections of a full pool, and at paused listeners
    NEVER_MS = 86400000      # a deadline that nobody waits for
    OUT_FLAT = 2048          # up to here one write of a copy costs less than one of several slices (0.2 us a message)

cdef enum TimerKind: TIMER_CLIENT, TIMER_UPSTREAM, TIMER_WORKER, TIMER_PULSE
cdef enum Side: CONN_CLIENT, CONN_UPSTREAM, CONN_LISTENER, CONN_CLOCK, CONN_CREW, CONN_JOB, CONN_ORPHAN

cdef enum Sink:              # a client connection without a socket: what it is for (see detached.pyx)
    SINK_NONE
    SINK_REFRESH             # an answer is fetched anew for those who ask later
    SINK_LEFT                # its client was answered otherwise meanwhile
    SINK_HEDGE               # it is the second try of an exchange that still waits (see hedge.pyx)

cdef enum ConnState:
    C_FREE
    # client side
    C_IDLE                   # between requests; holds no buffer
    C_HEAD                   # part of a request head has come
    C_BUSY                   # an exchange runs
    C_LINGER                 # answered and shut down; reading what still comes, then closing
    # upstream side
    C_CONNECTING
    C_READY                  # in use by an exchange
    C_POOLED                 # idle in its pool

cdef struct LocalPlan:       # a plan as this worker holds it; owned by the plane, freed when refs is 0 and it is not the current one
    const PlanHead *head
    size_t bytes
    Regex *regexes
    void **upstreams         # Upstream * by index of the plan
    TlsServer *servers       # by index of the plan's tls
    SSL_CTX **clients        # by index of the plan's clients
    uint32_t refs
    LocalPlan *older

cdef struct Conn:
    SlabItem item            # first member
    Timer timer
    PoolItem pooled          # upstream side: its place in the pool
    void *exchange           # Exchange * while one holds this connection
    void *owner              # upstream side: Endpoint *
    Buf *input               # bytes read and not consumed; NULL = none
    ByteQueue output         # bytes that the socket did not take (sealed, on a TLS connection)
    Tls tls
    LocalPlan *plan          # held while a TLS handshake runs, whose certificates are in it
    Node run                 # in the worker's list of those to look at again in this turn
    Node idle                # client side: in the worker's list of idle ones, longest idle last
    uint64_t opened_ms
    int fd
    uint32_t requests
    uint8_t side
    uint8_t state            # ConnState; conn_move alone writes it
    uint8_t readable         # the kernel said so and we have not read it dry
    uint8_t writable         # the last write was not short
    uint8_t ended            # 1: the kernel announced FIN, bytes may wait before it; 2: read up to it
    uint8_t broken           # reset, or a write failed
    uint8_t cut              # an error was seen: an end that follows is not clean
    uint8_t family           # 4, 6 or 0 (unix)
    uint8_t shut             # our side of a tunnel is closed
    uint8_t proxy_due        # its PROXY header has not come yet
    uint8_t trusted          # the peer is one of trusted_proxies
    uint8_t listener         # client side: place in Worker.servers
    uint8_t other            # upstream side: it goes to the endpoint's address of the other family
    uint8_t counted          # client side: limits.connections_per_client counts it
    uint8_t watched          # the kernel was told of it: its events come
    uint8_t final            # client side: what is sent now is the end, and a FIN follows in this moment: they leave as one segment
    uint8_t sink             # Sink
    uint8_t sealed           # of a sink: its client came by TLS
    uint16_t port
    uint8_t peer[16]
    uint32_t linger_left

cdef struct Pipe:
    int out
    int into
    size_t bytes             # 0 = not open
    bint busy

cdef enum Figure:            # what a load is made of; words: shm.LOAD_WORDS
    LOAD_MEMORY, LOAD_CONNECTIONS, LOAD_DESCRIPTORS, LOAD_LAG, LOAD_CPU
    LOAD_FIGURES

cdef struct Pressure:        # see pressure.pyx
    bint shedding            # somebody is refused: the one branch of a request
    uint32_t chance[3]       # by tier, that a request is refused: of 65536
    double figures[5]        # each a share of what there is, over a second
    double load              # the highest
    uint32_t highest         # Figure
    uint64_t due_ms          # when the pulse should come
    uint64_t seen_ms         # when it came last
    uint64_t requests        # so many had ended then
    uint64_t wait_us         # most time since then that an event waited to be served
    uint64_t resident_bytes
    uint32_t pulses
    int statm_fd             # of /proc/self/statm, + 1; 0 = not open

cdef struct Worker:          # one per process; the context of everything
    int ep
    int timer_fd
    uint32_t number
    uint64_t now_ms          # of CLOCK_MONOTONIC, read once per return of epoll_wait
    uint64_t now_us
    uint64_t wall_ms
    uint64_t wall_offset_ms
    uint64_t date_s
    char date[40]            # "Date: Tue, 15 Nov 1994 08:12:31 GMT\r\n\r\n": 37 bytes, 39 with the empty line
    uint64_t armed_ms        # what the timerfd stands at; 0 = off
    uint64_t random
    Slab clients
    Slab upstreams
    Slab exchanges
    BufPool bufs
    uint32_t lingering       # client connections that are refused or answered, and about to close
    Wheel wheel
    Timer tick
    Timer pulse
    Pressure pressure
    Link lru                 # idle client connections, longest idle last
    Link runnable            # Node: client connections to be looked at again before the turn ends
    Lane *lane
    Segment_ *segment
    Copies *copies           # of answers; NULL = none are kept
    CopyMail copymail        # what Python is to do about them
    int journal              # where requests are kept that are compensated, + 1; 0 = not open
    uint64_t journal_bytes
    bint journal_sync
    Link held                # Node: client connections not read while the log's ring is full
    Link serve               # upstreams whose queue may move on
    LocalPlan *plan          # the current one
    Ring *ring               # access log; NULL = off
    bint draining
    bint accept_paused
    uint32_t fds             # descriptors that the data plane holds
    uint32_t fd_limit        # stop accepting at so many
    uint32_t connection_limit
    uint64_t alarm_ms        # last alarm line
    uint64_t id_prefix
    uint64_t id_next
    uint32_t turn_events
    Head request             # the heads being parsed in this moment; a partial one moves into its exchange
    Head response
    OutList out
    char *scratch
    char flat[2048]
    TlsIo tls
    Jobs jobs                # sessions that outlive their connections until a provider is done
    Mail mail                # what Python is to do about TLS sessions
    Crew *crew               # threads for handshakes; NULL = this one does them
    Link greeting            # Node: connections whose handshake goes on when it is their turn
    Conn *greeter            # whose turn it is
    uint32_t greet_us        # spent on handshakes in this batch
    TlsServer *servers[64]   # by listener, of the current plan; NULL = plain
    Pipe pipes[16]           # see splice.pyx
    int pipes_max
    char key[12288]          # of a copy of an answer
    char path[8448]          # a normalised or rewritten path
    char host[272]           # a normalised host

cdef inline uint64_t conn_limit(const Worker *w, const Conn *c, uint64_t due_ms) noexcept nogil:
    """due_ms, but no later than the handshake's own limit while that is not over."""
    return min(due_ms, c.opened_ms + w.plan.head.tls_handshake_ms) if tls_is_early(&c.tls) else due_ms

cdef bint conn_move(Worker *w, Conn *c, int to) noexcept nogil
cdef Conn *conn_open(Worker *w, int side, int fd) noexcept nogil
cdef void conn_close(Worker *w, Conn *c) noexcept nogil
cdef void conn_arm(Worker *w, Conn *c, uint64_t due_ms) noexcept nogil
cdef int conn_read(Worker *w, Conn *c, size_t most, const char **at, size_t *size) noexcept nogil
cdef int conn_send(Worker *w, Conn *c, OutList *o) noexcept nogil
cdef int conn_flush(Worker *w, Conn *c) noexcept nogil
cdef int window_fill(Worker *w, Conn *c, size_t most) noexcept nogil
cdef int window_keep(Worker *w, Conn *c) noexcept nogil
cdef int sealed_push(Worker *w, Conn *c) noexcept nogil
cdef void plan_release(Conn *c) noexcept nogil
cdef void conn_shut(Worker *w, Conn *c) noexcept nogil
cdef int conn_rest(Worker *w, Conn *c, const char *at, size_t size) noexcept nogil
cdef bint conn_register(Worker *w, Conn *c) noexcept nogil
cdef bint conn_watch(Worker *w, Conn *c) noexcept nogil
cdef void conn_again(Worker *w, Conn *c) noexcept nogil
cdef void worker_look(Worker *w, uint64_t within_ms) noexcept nogil
cdef uint64_t random_next(Worker *w) noexcept nogil
cdef double chance_next(Worker *w) noexcept nogil
