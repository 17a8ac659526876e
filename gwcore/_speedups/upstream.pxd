# Level 8. What a worker keeps of an upstream between plans: endpoints with their pools, the queue, the balancer's state.
from gwcore._speedups.breaker_cell cimport BreakerView
from gwcore._speedups.budget cimport Budget
from gwcore._speedups.plan cimport EndpointSpec, PlanHead, UpstreamSpec
from gwcore._speedups.shm cimport HEALTH_DOWN, LimitCell, LimitLane, UpstreamCell, gw_atomic_load, gw_atomic_load64
from gwcore._speedups.conn cimport Conn, Worker
from gwcore._speedups.copenssl cimport SSL_CTX
from gwcore._speedups.tlsclient cimport Sessions
from gwcore._speedups.types cimport Link, size_t, uint32_t, uint64_t
from gwcore._speedups.waiting cimport WaitQueue
from gwcore.pool cimport PoolCore, PoolItem
from libc.stdint cimport uint8_t

cdef struct Endpoint:
    PoolCore pool
    Upstream *upstream
    BreakerView breaker
    uint64_t identity        # of its TLS; another one is another endpoint
    char tls_name[256]       # empty = not verified by name
    char tls_sni[256]
    bint tls_ip              # tls_name is an address
    Sessions sessions
    char name[128]           # identity, "address" of the configuration
    uint32_t name_len
    uint8_t sockaddr[128]
    uint32_t sockaddr_len    # 0 = does not resolve
    uint8_t other[28]        # the same host by an address of the other family
    uint32_t other_len       # 0 = none
    uint32_t group           # siblings, the addresses of one name, have the same number; 0 = no name
    bint other_first         # by that way it was reached last
    uint32_t warming         # connections being made ahead of need
    uint32_t warm_failures   # in a row
    uint64_t warm_failed_ms  # last time
    uint64_t warm_due_ms     # not before
    uint32_t weight
    uint32_t in_flight       # exchanges of this worker
    double spread            # smooth weighted round robin: current weight
    double ewma_ms
    uint64_t since_ms        # when it joined others; 0 = it was there from the beginning
    const uint64_t *health   # of the segment: what active checks say, whether it is drained
    bint gone                # not in the current plan any more; freed when its pool is empty
    Endpoint *next_gone

cdef struct Upstream:
    Link serve               # first member; in the worker's list of queues to be served
    char name[128]           # identity
    uint32_t name_len
    uint32_t slot            # in the segment
    uint32_t n
    BreakerView breaker
    Endpoint **endpoints
    bint panic               # so few endpoints are usable that health and ejection are ignored; balance_pick looks
    WaitQueue queue
    UpstreamCell *cell
    LimitCell *limit         # of all workers
    LimitLane *limited       # this worker's part in it
    # of the current plan
    uint32_t balance
    uint32_t hash_by
    uint32_t hash_bound_pct
    uint32_t queue_ms
    uint32_t limit_start     # of the concurrency limit; 0 = there is none
    uint32_t limit_min
    uint32_t limit_max       # equal to limit_min: it is fixed
    uint32_t connect_ms
    uint32_t tls_ms
    SSL_CTX *client          # of the current plan; NULL = plain
    uint32_t write_ms
    uint32_t proxy_protocol
    uint32_t slow_start_ms
    Budget *budget           # of retries, shared
    uint64_t retry_methods   # bit per method
    uint32_t retry_on        # retry.RetryOn
    uint32_t retry_extra
    uint32_t per_try_ms      # 0 = no limit of its own
    uint32_t hedge_ms        # a second try after so long; 0 = never; HEDGE_P95
    uint32_t hedge_p95_ms    # that P95 as it was measured last; 0 = not yet
    uint64_t hedge_look_ms   # when it is measured anew
    uint32_t hedge_seen[161] # cell.seconds then
    uint32_t panic_pct
    const uint32_t *down     # of the segment: how many of its endpoints active checks hold down
    uint32_t count_429
    uint32_t eject_most_pct
    double eject_above
    bint watched             # by a breaker, or several
    uint32_t backoff_ms
    uint32_t backoff_most_ms
    uint32_t weight_sum
    uint32_t next_robin
    bint gone

cdef Endpoint *balance_pick(Worker *w, Upstream *u, uint64_t hash, const Endpoint *avoid, uint64_t now_ms) noexcept nogil
cdef Upstream *upstream_new(Worker *w, const PlanHead *p, const UpstreamSpec *spec) noexcept nogil
cdef bint upstream_update(Worker *w, Upstream *u, const PlanHead *p, const UpstreamSpec *spec, SSL_CTX *client, Endpoint **gone) noexcept nogil
cdef void endpoint_free(Endpoint *e) noexcept nogil
cdef void upstream_free(Upstream *u) noexcept nogil
cdef bint endpoint_takes(Worker *w, const Upstream *u, const Endpoint *e) noexcept nogil
cdef void upstream_survey(Worker *w, Upstream *u) noexcept nogil
cdef bint endpoint_usable(Worker *w, const Upstream *u, const Endpoint *e) noexcept nogil

cdef inline bint endpoint_down(const Endpoint *e) noexcept nogil:
    """Do active checks say that it is down?"""
    return gw_atomic_load64(e.health) & 3 == HEALTH_DOWN

cdef inline bint endpoint_drained(const Endpoint *e) noexcept nogil:
    """Has an operator taken it out?"""
    return gw_atomic_load64(e.health) & 4 != 0

cdef inline bint endpoint_short(const Endpoint *e) noexcept nogil:
    """Are fewer connections warm than pool.min_idle wants?"""
    return e.pool.n_idle + e.warming < e.pool.min_idle and not e.pool.draining

cdef inline uint32_t upstream_limit(const Upstream *u) noexcept nogil:
    """The present concurrency limit of an upstream that has one."""
    cdef uint32_t limit = gw_atomic_load(&u.limit.limit)
    if limit == 0:
        limit = u.limit_start
    if limit < u.limit_min:
        return u.limit_min
    return limit if limit < u.limit_max else u.limit_max
