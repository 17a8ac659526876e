"""Upstreams of a worker and the choice among their endpoints.

round_robin: smooth weighted (as known from nginx). least_request: power of two choices (Mitzenmacher) on in-flight / weight. ewma: the
same on in-flight x latency. hash: weighted rendezvous hashing with bounded load (Mirrokni, Thorup, Zadimoghaddam). Candidates have a
free place in their pool; nobody waits holding one."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from gwcore._speedups.breaker_cell cimport cell_state, cell_use, cell_would_admit
from gwcore._speedups.breaker_core cimport BRK_CLOSED
from gwcore._speedups.budget cimport budget_set
from gwcore._speedups.conn cimport Worker, random_next
from gwcore._speedups.plan cimport (
    BALANCE_EWMA, BALANCE_HASH, BALANCE_RANDOM, BALANCE_ROUND_ROBIN, EndpointSpec, PlanHead, UpstreamSpec, Str, hash_bytes, plan_endpoint, plan_text,
)
from gwcore._speedups.shm cimport (
    ENDPOINT_CELLS, HEALTH_BACK, UPSTREAM_CELLS, gw_atomic_load, gw_atomic_load64, gw_atomic_store, segment_breaker, segment_firsts,
)
from gwcore._speedups.sys cimport AF_UNIX
from gwcore._speedups.tlsclient cimport sessions_drop
from gwcore._speedups.types cimport link_init, size_t
from gwcore._speedups.waiting cimport waiters_init, waiters_pace
from gwcore.pool cimport pool_free, pool_has_place, pool_init, pool_templates


cdef bint endpoint_sound(Worker *w, const Upstream *u, const Endpoint *e) noexcept nogil:
    """Is nothing held against it?"""
    return not endpoint_down(e) and (not e.breaker.on or cell_would_admit(e.breaker.cell, <int64_t>w.now_us))


cdef bint endpoint_usable(Worker *w, const Upstream *u, const Endpoint *e) noexcept nogil:
    """The one place where it is decided whether an endpoint may be chosen. In panic what is held against them counts no more."""
    return u.panic or (gw_atomic_load(u.down) == 0 and u.breaker.cell.out == 0) or endpoint_sound(w, u, e)


cdef void upstream_survey(Worker *w, Upstream *u) noexcept nogil:
    """Panic: fewer than health.panic of the endpoints are sound, or none. Then all are asked, for the few that are left would drown. Probes
    of the upstream are few: those that are left can take them."""
    cdef const Endpoint *e
    cdef uint32_t i, all = 0, sound = 0
    u.panic = False
    if gw_atomic_load(u.down) == 0 and u.breaker.cell.out == 0:
        return
    for i in range(u.n):
        e = u.endpoints[i]
        if e.weight and e.sockaddr_len and not endpoint_drained(e):
            all += 1
            sound += endpoint_sound(w, u, e)
    u.panic = sound == 0 or (sound * 100 < all * u.panic_pct and cell_state(u.breaker.cell) == BRK_CLOSED)


cdef bint endpoint_takes(Worker *w, const Upstream *u, const Endpoint *e) noexcept nogil:
    """May it take one more request now: usable, with an idle connection or a place for a new one?"""
    if e.weight == 0 or e.sockaddr_len == 0 or endpoint_drained(e) or not endpoint_usable(w, u, e):
        return False
    return e.pool.n_idle or pool_has_place(&e.pool)


cdef uint32_t weight_of(const Upstream *u, const Endpoint *e, uint64_t now_ms) noexcept nogil:
    """In thousandths. An endpoint that came while others served, or is up again, begins with a tenth of its weight and has all of it after
    slow_start."""
    cdef uint64_t word = gw_atomic_load64(e.health), since = e.since_ms, age
    if word & 3 == HEALTH_BACK and word >> 3 > since:
        since = word >> 3
    age = now_ms - since if now_ms > since else 0            # the supervisor's clock may have been read later
    if since == 0 or age >= u.slow_start_ms:
        return e.weight * 1000
    return e.weight * <uint32_t>(100 + 900 * age // u.slow_start_ms)


cdef Endpoint *pick_round_robin(Worker *w, Upstream *u, const Endpoint *avoid, uint64_t now_ms) noexcept nogil:
    cdef Endpoint *best = NULL
    cdef Endpoint *e
    cdef uint32_t i, weight, total = 0
    for i in range(u.n):
        e = u.endpoints[i]
        if e == avoid or not endpoint_takes(w, u, e):
            continue
        weight = weight_of(u, e, now_ms)
        e.spread += weight
        total += weight
        if best == NULL or e.spread > best.spread:
            best = e
    if best != NULL:
        best.spread -= total
    return best


cdef Endpoint *pick_weighted(Worker *w, Upstream *u, const Endpoint *avoid, const Endpoint *other) noexcept nogil:
    """One with room, drawn by weight."""
    cdef Endpoint *e
    cdef uint64_t total = 0, at
    cdef uint32_t i, weight
    for i in range(u.n):
        e = u.endpoints[i]
        if e != avoid and e != other and endpoint_takes(w, u, e):
            total += weight_of(u, e, w.now_ms)
    if total == 0:
        return NULL
    at = (random_next(w) >> 11) % total
    for i in range(u.n):
        e = u.endpoints[i]
        if e == avoid or e == other or not endpoint_takes(w, u, e):
            continue
        weight = weight_of(u, e, w.now_ms)
        if at < weight:
            return e
        at -= weight
    return NULL


cdef double load_of(const Upstream *u, const Endpoint *e, uint64_t now_ms) noexcept nogil:
    cdef double load = <double>(e.in_flight + 1) / weight_of(u, e, now_ms)
    return load * (e.ewma_ms + 0.1) if u.balance == BALANCE_EWMA else load


cdef Endpoint *pick_hash(Worker *w, Upstream *u, uint64_t hash, const Endpoint *avoid) noexcept nogil:
    """Highest weighted score of hash and name, among those under the bound; the bound is lifted when all are over it."""
    cdef Endpoint *best = NULL
    cdef Endpoint *e
    cdef uint64_t h, total = 0
    cdef double score, best_score = 0, bound
    cdef uint32_t i, k
    for i in range(u.n):
        total += u.endpoints[i].in_flight
    for k in range(2):
        for i in range(u.n):
            e = u.endpoints[i]
            if e == avoid or not endpoint_takes(w, u, e):
                continue
            bound = <double>(total + 1) * e.weight / u.weight_sum * u.hash_bound_pct / 100
            if k == 0 and e.in_flight >= bound and e.in_flight:
                continue
            h = hash_bytes(hash, e.name, e.name_len)
            h ^= h >> 33
            h *= <uint64_t>0x4cf5ad432745937f
            h ^= h >> 33
            score = <double>e.weight / -log((<double>(h >> 11) + 1) / 9007199254740994.0)
            if best == NULL or score > best_score:
                best, best_score = e, score
        if best != NULL:
            return best
    return NULL

cdef extern from "<math.h>" nogil:
    double log(double x)


cdef Endpoint *balance_pick(Worker *w, Upstream *u, uint64_t hash, const Endpoint *avoid, uint64_t now_ms) noexcept nogil:
    """An endpoint with room, other than avoid unless it is the only one; NULL when none has room."""
    cdef Endpoint *a
    cdef Endpoint *b
    upstream_survey(w, u)
    if u.n == 1:
        return u.endpoints[0] if endpoint_takes(w, u, u.endpoints[0]) else NULL
    if u.balance == BALANCE_ROUND_ROBIN:
        a = pick_round_robin(w, u, avoid, now_ms)
    elif u.balance == BALANCE_HASH:
        a = pick_hash(w, u, hash, avoid)
    elif u.balance == BALANCE_RANDOM:
        a = pick_weighted(w, u, avoid, NULL)
    else:
        a = pick_weighted(w, u, avoid, NULL)
        b = pick_weighted(w, u, avoid, a) if a != NULL else NULL
        if b != NULL and load_of(u, b, now_ms) < load_of(u, a, now_ms):
            a = b
    if a == NULL and avoid != NULL:
        return balance_pick(w, u, hash, NULL, now_ms)
    return a


# ---- from plan to plan --------------------------------------------------------------------------------------------

cdef uint32_t share_of(uint32_t whole, uint32_t place, uint32_t workers) noexcept nogil:
    """Of a number that all workers keep together. Who has one more differs from endpoint to endpoint."""
    return whole // workers + (place % workers < whole % workers)


cdef void endpoint_update(Worker *w, Endpoint *e, const PlanHead *p, const UpstreamSpec *u, const EndpointSpec *spec) noexcept nogil:
    memset(e.sockaddr, 0, sizeof(e.sockaddr))
    if spec.path.len:
        (<uint16_t_ *>e.sockaddr)[0] = AF_UNIX
        memcpy(e.sockaddr + 2, plan_text(p, spec.path), spec.path.len)
        e.sockaddr_len = 2 + spec.path.len + 1        # the path's NUL counts
    else:
        memcpy(e.sockaddr, spec.sockaddr, 28)
        e.sockaddr_len = spec.sockaddr_len
    if e.other_len != spec.other_len or memcmp(e.other, spec.other, sizeof(e.other)) != 0:
        e.other_first = False
    e.other_len = spec.other_len
    memcpy(e.other, spec.other, sizeof(e.other))
    e.group = spec.group
    text_copy(e.tls_name, sizeof(e.tls_name), p, spec.tls_name)
    text_copy(e.tls_sni, sizeof(e.tls_sni), p, spec.tls_sni)
    e.tls_ip = spec.tls_ip
    e.weight = spec.weight
    segment_breaker(w.segment, w.number + 1, UPSTREAM_CELLS + spec.slot, &e.breaker)
    # the last slot is everybody's who came too late; an endpoint without siblings has nobody who could stand in for it
    cell_use(&e.breaker, &u.outlier if u.outlier_on and u.endpoints.n > 1 and spec.slot < <uint32_t>ENDPOINT_CELLS - 1 else NULL,
             hash_bytes(spec.identity | 1, e.name, e.name_len), <int64_t>w.now_us)
    e.pool.max_connections = u.max_connections
    e.pool.max_idle = u.max_idle
    e.pool.min_idle = share_of(u.min_idle, w.number + spec.slot, w.segment.workers)
    e.pool.max_requests = u.max_requests
    e.pool.idle_ms = u.idle_ms
    e.pool.max_age_ms = u.max_age_ms
    e.pool.draining = 0
    if u.template_ and not pool_templates(&e.pool):
        e.pool.max_idle = 0                           # no memory for templates: then no reuse
    e.health = &w.segment.health[spec.slot]
    e.pool.shared_open = &w.segment.endpoints[spec.slot].open
    e.pool.own_open = &w.lane.endpoint_open[spec.slot]
    e.pool.worker = w.number + 1
    e.pool.fair = u.max_connections // w.segment.workers
    e.pool.wanted = &w.segment.endpoints[spec.slot].wanted
    e.gone = False

ctypedef unsigned short uint16_t_


cdef void text_copy(char *out, size_t room, const PlanHead *p, Str text) noexcept nogil:
    """A text with its NUL; compile sees that it fits."""
    cdef size_t n = text.len if text.len < room else room - 1
    memcpy(out, plan_text(p, text), n)
    out[n] = 0


cdef Upstream *upstream_new(Worker *w, const PlanHead *p, const UpstreamSpec *spec) noexcept nogil:
    """An upstream without endpoints yet; upstream_update gives it those. NULL when memory is out."""
    cdef Upstream *u = <Upstream *>calloc(1, sizeof(Upstream))
    if u == NULL:
        return NULL
    u.name_len = spec.name.len if spec.name.len < sizeof(u.name) else sizeof(u.name)
    memcpy(u.name, plan_text(p, spec.name), u.name_len)
    link_init(&u.serve)
    waiters_init(&u.queue, spec.queue_size)
    return u


cdef bint upstream_update(Worker *w, Upstream *u, const PlanHead *p, const UpstreamSpec *spec, SSL_CTX *client, Endpoint **gone) noexcept nogil:
    """Take over a plan's values. Endpoints are matched by name: pools of those that stay are not touched, those that left are marked
    and chained to gone[0]. False when memory is out (nothing changed)."""
    cdef Endpoint **fresh = <Endpoint **>calloc(spec.endpoints.n if spec.endpoints.n else 1, sizeof(Endpoint *))
    cdef const EndpointSpec *s
    cdef Endpoint *e
    cdef uint32_t i, k, n
    if fresh == NULL:
        return False
    for i in range(spec.endpoints.n):
        s = plan_endpoint(p, spec, i)
        n = s.name.len if s.name.len < 128 else 128
        for k in range(u.n):
            e = u.endpoints[k]
            if e.name_len == n and e.identity == s.identity and memcmp(e.name, plan_text(p, s.name), n) == 0:
                fresh[i] = e
        if fresh[i] == NULL:
            e = fresh[i] = <Endpoint *>calloc(1, sizeof(Endpoint))
            if e == NULL:
                free(fresh)
                return False
            pool_init(&e.pool)
            e.upstream = u
            e.identity = s.identity
            e.since_ms = w.now_ms if u.n else 0       # an upstream that is all new has nobody to spare the newcomer
            e.name_len = n
            memcpy(e.name, plan_text(p, s.name), n)
    for k in range(u.n):
        e = u.endpoints[k]
        e.gone = True
        for i in range(spec.endpoints.n):
            if fresh[i] == e:
                e.gone = False
        if e.gone:
            e.pool.draining = 1
            e.next_gone = gone[0]
            gone[0] = e
    free(u.endpoints)
    u.endpoints = fresh
    u.n = spec.endpoints.n
    u.weight_sum = 0
    for i in range(u.n):
        endpoint_update(w, u.endpoints[i], p, spec, plan_endpoint(p, spec, i))
        u.weight_sum += u.endpoints[i].weight
    if u.weight_sum == 0:
        u.weight_sum = 1
    segment_breaker(w.segment, w.number + 1, spec.slot, &u.breaker)
    cell_use(&u.breaker, &spec.breaker if spec.breaker_on and spec.slot < <uint32_t>UPSTREAM_CELLS - 1 else NULL, 1, <int64_t>w.now_us)
    u.watched = u.breaker.on
    for i in range(u.n):
        u.watched = u.watched or u.endpoints[i].breaker.on
    u.count_429 = spec.count_429
    u.eject_most_pct = spec.eject_most_pct
    u.eject_above = spec.eject_above_pct / 100.0
    u.slot = spec.slot
    u.cell = &w.lane.upstreams[spec.slot]
    u.down = &w.segment.down[spec.slot]
    u.panic_pct = spec.panic_pct
    u.balance = spec.balance
    u.hash_by = spec.hash_by
    u.hash_bound_pct = spec.hash_bound_pct
    u.queue.size = spec.queue_size
    u.queue.plain = spec.queue_plain
    u.queue_ms = spec.queue_ms
    waiters_pace(&u.queue, spec.queue_ms)
    u.limit_start, u.limit_min, u.limit_max = spec.limit_start, spec.limit_min, spec.limit_max
    u.limit = &w.segment.limits[spec.slot]
    u.limited = &w.lane.limits[spec.slot]
    if u.limit_min == u.limit_max or gw_atomic_load(&u.limit.limit) == 0:
        gw_atomic_store(&u.limit.limit, u.limit_start)       # fixed, off, or not measured yet
    u.connect_ms = spec.connect_ms
    u.tls_ms = spec.tls_ms
    u.client = client
    u.write_ms = spec.write_ms
    u.proxy_protocol = spec.proxy_protocol
    u.slow_start_ms = spec.slow_start_ms
    u.budget = &w.segment.budgets[spec.slot]
    budget_set(u.budget, spec.budget_milli, spec.budget_per_s, segment_firsts(w.segment, spec.slot), w.now_ms)
    u.retry_methods = spec.retry_methods
    u.retry_on = spec.retry_on
    u.retry_extra = spec.retry_extra
    u.hedge_ms = spec.hedge_ms
    u.per_try_ms = spec.per_try_ms
    u.backoff_ms = spec.backoff_ms
    u.backoff_most_ms = spec.backoff_most_ms
    u.gone = False
    return True


cdef void endpoint_free(Endpoint *e) noexcept nogil:
    pool_free(&e.pool)
    sessions_drop(&e.sessions)
    free(e)


cdef void upstream_free(Upstream *u) noexcept nogil:
    """Free an upstream whose endpoints hold no connection any more."""
    cdef uint32_t i
    for i in range(u.n):
        endpoint_free(u.endpoints[i])
    free(u.endpoints)
    free(u)
