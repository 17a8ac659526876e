# Level 4. The shared segment: one lane of counters per worker slot, one writer each; cells by slot number. Readers add up.
from gwcore._speedups.breaker_cell cimport BreakerCell, BreakerEvents, BreakerLane, BreakerView
from gwcore._speedups.budget cimport Budget
from gwcore._speedups.limiter cimport Limiter
from gwcore._speedups.store cimport Store
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t
from libc.stdint cimport uint8_t

cdef enum:
    SEGMENT_BYTES = 131072   # of Segment_, before the lanes
    ROUTE_CELLS = 2048       # of them the first are given out by identity, the last is "other"
    UPSTREAM_CELLS = 256
    ENDPOINT_CELLS = 2048
    BREAKERS = 2304          # of upstreams, then of endpoints
    HIST_CELLS = 161
    CLOSE_REASONS = 12
    REASON_CELLS = 96
    SWITCHES = 32
    DRILLS = 4
    CLIENT_ROWS = 4
    CLIENT_CELLS = 32768

cdef enum EndpointHealth:    # what active checks say
    HEALTH_UNKNOWN           # not checked, or no verdict yet
    HEALTH_UP
    HEALTH_DOWN
    HEALTH_BACK              # up again after it was down: begins with a part of its weight

cdef enum Outcome: SLA_MET, SLA_LATE, SLA_DEGRADED, SLA_FAILED, SLA_OUTCOMES

cdef struct RouteCell:
    uint64_t requests[6]     # by class: none (nobody answered), 1xx .. 5xx
    uint64_t cached[8]       # story.CacheHow
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t sum_us
    uint64_t sla[12]         # tier * 4 + Outcome
    uint32_t seconds[161]    # histogram of whole requests
    uint32_t unused

cdef struct UpstreamCell:
    uint64_t opens
    uint64_t reuses
    uint64_t queue_full
    uint64_t queue_timeout
    uint64_t firsts          # first attempts; what they deposit in the budget of retries is worked out by whoever retries
    uint64_t retried[6]      # attempts after them: RETRY_WORDS
    uint64_t hedges_won      # of those: the second try was answered first
    uint64_t retry_denied    # retries that the budget did not pay for
    uint64_t tls_full        # handshakes with it
    uint64_t tls_resumed
    uint64_t warmed          # of opens: ahead of need, for pool.min_idle
    uint64_t raced           # of opens: beside another to the same name
    uint64_t rtt_n           # round trips as the kernel measured them, taken when a connection came up and when it closed
    uint64_t rtt_us          # sum
    uint64_t rtt_square_us   # sum of squares
    uint64_t rtt_var_us      # sum of the kernel's mean deviations
    uint64_t closed[12]
    uint64_t sum_us
    uint64_t wait_us         # sum of the waits in the queue
    uint32_t waits[161]      # histogram of them, one for each request that waited
    uint32_t waiting         # gauges
    uint32_t in_use
    uint32_t idle
    uint32_t connecting
    uint32_t seconds[161]    # histogram to the response head

cdef struct TierCell:        # P0, P1, P2
    uint64_t admitted        # requests that were tried at an upstream
    uint64_t queued          # requests that had to wait first
    uint64_t shed[4]         # refused by the gateway: SHED_WORDS
    uint64_t sum_us
    uint32_t seconds[161]    # histogram of whole requests, of those admitted
    uint32_t unused

cdef struct LimitCell:       # concurrency limit of an upstream, shared by all workers; touched only while there is one
    uint32_t limit           # atomic; 0 = nothing was measured yet
    uint32_t in_flight       # atomic
    uint32_t wanted          # atomic: 1 + worker + (tier << 16) of one that waits for a place with less than its share; 0 = none
    uint32_t window          # atomic: number of the window that is being measured
    uint64_t due_ms          # atomic: when it ends; who moves it on folds the lanes
    Limiter state            # his alone meanwhile
    uint64_t unused[2]

cdef struct LimitLane:       # what one worker knows of it
    uint32_t window          # what stands below is of this window
    uint32_t peak            # most requests of all workers in flight
    uint32_t samples
    uint32_t held            # places that this worker holds: given back by the supervisor when it dies
    uint32_t seconds[161]    # histogram of the answers' latencies

cdef struct WorkerCell:
    uint64_t accepted
    uint64_t requests
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t log_dropped
    uint64_t log_records
    uint64_t accept_paused
    uint64_t shed_idle
    uint64_t loop_turns
    uint64_t illegal_moves
    uint64_t tunnels_opened
    uint64_t detached        # exchanges without a client that ended
    uint64_t compensations   # requests written to the journal
    uint64_t compensations_overflow  # not, because as many as may wait do
    uint64_t compensations_lost      # not, because they were not whole, or the disk refused
    uint64_t connections     # gauges from here
    uint64_t exchanges
    uint64_t upstream_connections
    uint64_t buffer_bytes
    uint64_t tunnels
    uint64_t permits         # of breakers, taken and not ended
    uint64_t tls_bytes       # of TLS sessions
    uint64_t held_bytes      # what slabs and buffers have from the system, used or not
    uint64_t load            # thousandths
    uint64_t load_of         # the figure that is highest: LOAD_WORDS

cdef struct TlsCell:
    uint64_t full[2]         # handshakes: TLS 1.2, 1.3
    uint64_t resumed[3]      # by ticket, from the machine's cache, from Redis
    uint64_t failed
    uint64_t groups[6]       # GROUP_WORDS
    uint64_t ciphers[10]     # CIPHER_WORDS
    uint64_t tickets_issued
    uint64_t tickets_unknown # of a key that is gone, or not ours
    uint64_t ticket_uses[8]  # by place in the ring
    uint64_t sessions_kept   # in the machine's store
    uint64_t sessions_evicted        # before their time, for others
    uint64_t sessions_refused        # too large to be kept, or others wrote to all of their places
    uint64_t store_hits
    uint64_t store_misses
    uint64_t redis_hits
    uint64_t redis_misses
    uint64_t redis_errors    # no answer, none in time, or one that could not be used
    uint64_t redis_skipped   # not asked: too many wait, or it did not answer before
    uint64_t redis_written
    uint64_t redis_dropped   # not written: too many wait, or it does not answer
    uint64_t redis_us        # sum of the time for look-ups
    uint64_t early_accepted
    uint64_t early_refused
    uint64_t sum_us
    uint64_t sessions        # gauge: TLS connections open
    uint32_t seconds[161]    # histogram of whole handshakes
    uint32_t redis_seconds[161]      # of look-ups

cdef struct Lane:
    WorkerCell worker
    TlsCell tls
    uint64_t reasons[96]
    RouteCell routes[2048]
    UpstreamCell upstreams[256]
    TierCell tiers[3]
    LimitLane limits[256]
    uint32_t endpoint_open[2048]     # this worker's share of the shared counts
    uint32_t clients[4][32768]       # connections by address: see clients.pyx
    BreakerLane breakers[2304]

cdef struct EndpointCell:    # shared by all workers, touched at open and close only
    uint32_t open            # atomic
    uint32_t wanted          # atomic: a worker waits for a place

cdef struct TicketKey:       # of session tickets
    uint8_t name[16]         # stands in the ticket
    uint8_t aes[32]
    uint8_t mac[32]

cdef struct TicketRing:      # written by the supervisor, read by every worker
    uint32_t version         # odd while it is written
    uint32_t current         # place of the key that issues; 8 = none
    uint32_t used            # bit per place
    uint32_t unused
    TicketKey keys[8]

cdef enum SwitchKind: SWITCH_ROUTE, SWITCH_TIER, SWITCH_UPSTREAM

cdef struct Switch:          # an operator wants the ladder, not live
    uint64_t until_ms        # of CLOCK_MONOTONIC; 0 = free. Written last, by the supervisor
    uint32_t kind            # SwitchKind
    uint32_t slot            # of the route or upstream; number of the tier

cdef enum Fault:             # how a drill makes requests fail
    FAULT_NONE
    FAULT_503                # as if the upstream had answered 503
    FAULT_TIMEOUT            # as if it did not answer
    FAULT_SLOW               # it is asked after a delay

cdef enum DrillEnd: DRILL_LIVE, DRILL_COPY, DRILL_STATIC, DRILL_REFUSED, DRILL_LEFT, DRILL_ENDS

cdef struct Drill:           # and what became of the requests that it drew. The supervisor begins it, every worker counts
    uint64_t until_ms        # of CLOCK_MONOTONIC; 0 = stopped. Written last
    uint32_t serial          # 0 = the place was never used
    uint32_t slot            # of the route
    uint32_t fault           # Fault
    uint32_t share           # of 65536
    uint32_t delay_ms        # of FAULT_SLOW
    uint32_t drawn           # atomic, as all that follow
    uint32_t ends[5]         # by DrillEnd
    uint32_t late            # beyond the latency that their tier promises
    uint32_t lost            # refused, though their ladder has a step besides live
    uint32_t unkept          # late, lost, or both
    uint64_t max_us
    uint32_t refused[96]     # by reason
    uint32_t seconds[161]    # histogram of them, those of clients that left apart
    uint32_t unused

cdef struct Segment_:
    uint32_t magic
    uint32_t layout
    uint32_t workers
    uint32_t unused
    uint64_t seed            # of hashes that strangers must not foresee
    EndpointCell endpoints[2048]
    uint32_t down[256]       # by upstream: how many of its endpoints have HEALTH_DOWN
    uint64_t health[2048]    # by endpoint, written by the supervisor: since when (ms of CLOCK_MONOTONIC) << 3 | drained << 2 | EndpointHealth
    Budget budgets[256]      # of retries, by upstream
    LimitCell limits[256]
    TicketRing tickets
    uint32_t switched        # places of `switches` that may be in use; 0: nobody looks
    uint32_t drilled         # the same of `drills`
    Switch switches[32]
    Drill drills[4]
    uint32_t owed[256]       # by upstream: requests in the journals that are not replayed; atomic
    uint64_t store_off       # of the store of sessions
    uint64_t breakers_off    # of the ring of their transitions; behind it the cells

cdef inline Lane *segment_lane(Segment_ *s, uint32_t worker) noexcept nogil:
    return <Lane *>(<char *>s + SEGMENT_BYTES) + worker

cdef inline uint64_t segment_firsts(Segment_ *s, uint32_t slot) noexcept nogil:
    """First attempts at an upstream, of all workers so far."""
    cdef uint64_t n = 0
    cdef uint32_t i
    for i in range(s.workers):
        n += gw_atomic_load64(&segment_lane(s, i).upstreams[slot].firsts)
    return n

cdef inline Store *segment_store(Segment_ *s) noexcept nogil:
    return <Store *>(<char *>s + s.store_off)

cdef void segment_breaker(Segment_ *s, uint32_t process, uint32_t which, BreakerView *out) noexcept nogil

cdef class Segment:
    cdef Segment_ *mem
    cdef size_t size
    cdef readonly int fd
    cdef dict names          # kind -> {name: slot}; known to the supervisor only

cdef extern from * nogil:
    """
    #define gw_atomic_add(p, v) __atomic_add_fetch((p), (v), __ATOMIC_RELAXED)
    #define gw_atomic_load(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define gw_atomic_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    #define gw_atomic_load64(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define gw_atomic_store64(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    static inline int gw_atomic_win(unsigned long *p, unsigned long was, unsigned long to) {
        return __atomic_compare_exchange_n(p, &was, to, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    }
    """
    uint32_t gw_atomic_add(uint32_t *p, int v)
    uint32_t gw_atomic_load(const uint32_t *p)
    void gw_atomic_store(uint32_t *p, uint32_t v)
    uint64_t gw_atomic_load64(const uint64_t *p)
    void gw_atomic_store64(uint64_t *p, uint64_t v)
    bint gw_atomic_win(uint64_t *p, uint64_t was, uint64_t to)
