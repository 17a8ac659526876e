"""The shared segment: a memfd that the supervisor makes and every worker maps. Slots are given by identity (kind and name), so that a
reload keeps counting where it was. Pages that nobody touches cost nothing."""
import os
import time

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from gwcore._speedups.breaker_cell cimport SUPERVISOR, cell_retire
from gwcore._speedups.budget cimport budget_level
from gwcore._speedups.histogram cimport histogram_edge_us
from gwcore._speedups.reasons cimport R_COUNT, reason_row
from gwcore._speedups.retry cimport RETRY_KINDS
from gwcore._speedups.store cimport store_bytes, store_count, store_forget, store_init, store_retire
from gwcore._speedups.sys cimport MAP_FAILED, MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

LIMITS = {"route": ROUTE_CELLS, "upstream": UPSTREAM_CELLS, "endpoint": ENDPOINT_CELLS}
CACHE_WORDS = ("hit", "stale", "error", "miss", "vary", "expired", "bypass")    # story.CacheHow, from 1
CLOSE_WORDS = ("idle", "max_requests", "max_age", "peer", "error", "stale", "evicted", "drain", "timeout", "aborted", "tunnel", "stray")
HEALTH_WORDS = ("unknown", "up", "down", "back")         # EndpointHealth
RETRY_WORDS = ("connect", "stale", "reset", "timeout", "status", "hedge")
SHED_WORDS = ("overload", "concurrency_limit", "queue_full", "queue_timeout")
SWITCH_KINDS = ("route", "tier", "upstream")             # SwitchKind
SLA_WORDS = ("met", "late", "degraded", "failed")        # Outcome
LOAD_WORDS = ("memory", "connections", "descriptors", "lag", "cpu")
MAGIC = 0x73637767
TICKET_KEY_BYTES = sizeof(TicketKey)
GROUP_WORDS = ("X25519", "P-256", "P-384", "X25519MLKEM768", "none", "other")
CIPHER_WORDS = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256",
                "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
                "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305", "other")

cdef extern from * nogil:
    """
    #define gw_seq_add(p) __atomic_add_fetch((p), 1, __ATOMIC_SEQ_CST)
    """
    uint32_t gw_seq_add(uint32_t *p)

assert <int>BREAKERS == <int>UPSTREAM_CELLS + <int>ENDPOINT_CELLS
assert len(CLOSE_WORDS) == CLOSE_REASONS and sizeof((<UpstreamCell *>NULL).closed) == CLOSE_REASONS * sizeof(uint64_t)
assert <int>R_COUNT <= <int>REASON_CELLS and sizeof(Segment_) <= <size_t>SEGMENT_BYTES


cdef void segment_breaker(Segment_ *s, uint32_t process, uint32_t which, BreakerView *out) noexcept nogil:
    """Breaker number `which` as a process (number of the worker + 1, or SUPERVISOR) sees it; not in use yet."""
    cdef char *at = <char *>s + s.breakers_off
    out.events = <BreakerEvents *>at
    out.cell = <BreakerCell *>(at + sizeof(BreakerEvents)) + which
    out.first = <char *>&segment_lane(s, 0).breakers[which]
    out.stride = sizeof(Lane)
    out.workers = s.workers
    out.process = process
    out.which = which
    out.on = 0
    out.lane = NULL if process == SUPERVISOR else &segment_lane(s, process - 1).breakers[which]


cdef uint32_t layout() noexcept nogil:
    return <uint32_t>(sizeof(Lane) * 31 + sizeof(BreakerCell))


def reasons() -> list[str]:
    """Every reason word, in the order of reasons.h."""
    return [reason_row(i).word.decode() for i in range(R_COUNT)]


cdef seconds(const uint32_t *cells, uint64_t sum_us):
    """A histogram as Prometheus wants it: cumulative counts at the edges of occupied octaves."""
    total = 0
    buckets = []
    for i in range(HIST_CELLS):
        total += cells[i]
        if i % 8 == 7 and i < HIST_CELLS - 1:
            buckets.append([histogram_edge_us(i) / 1e6, total])
    return {"count": total, "sum": sum_us / 1e6, "buckets": buckets}


cdef class Segment:
    """One per gateway. `create` in the supervisor, `attach` in the workers."""

    def __init__(self):
        self.names = {kind: {} for kind in LIMITS}

    @staticmethod
    def create(workers: int, sessions: int = 20_000) -> Segment:
        """A new segment with room for `workers` (1 to 1024) lanes and a store of so many TLS sessions. OSError when memory is refused."""
        if not 1 <= workers <= 1024:
            raise ValueError("workers must be from 1 to 1024")
        fd = os.memfd_create("gwcore-segment", os.MFD_CLOEXEC)
        at = (SEGMENT_BYTES + sizeof(Lane) * workers + 4095) & ~4095
        store = at + ((sizeof(BreakerEvents) + sizeof(BreakerCell) * <int>BREAKERS + 4095) & ~4095)
        os.ftruncate(fd, store + store_bytes(sessions))
        s = Segment.attach(fd, fresh=True)
        (<Segment>s).mem.magic = MAGIC
        (<Segment>s).mem.layout = layout()
        (<Segment>s).mem.workers = workers
        (<Segment>s).mem.seed = int.from_bytes(os.urandom(8), "little")
        (<Segment>s).mem.breakers_off = at
        (<Segment>s).mem.store_off = store
        store_init(segment_store((<Segment>s).mem), sessions)
        s.set_tickets(0, {0: os.urandom(TICKET_KEY_BYTES)})
        return s

    @staticmethod
    def attach(fd: int, *, fresh: bool = False) -> Segment:
        """Map the segment behind fd (which stays the caller's). ValueError when it is another build's."""
        cdef Segment s = Segment()
        s.size = os.fstat(fd).st_size
        s.fd = fd
        s.mem = <Segment_ *>mmap(NULL, s.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0)
        if <void *>s.mem == MAP_FAILED:
            s.mem = NULL
            raise OSError("cannot map the shared segment")
        if not fresh and (s.mem.magic != MAGIC or s.mem.layout != layout()):
            raise ValueError("the shared segment was made by another build of gwcore")
        return s

    def __dealloc__(self):
        if self.mem != NULL:
            munmap(self.mem, self.size)

    @property
    def workers(self) -> int:
        return self.mem.workers

    def slot(self, kind: str, name: str) -> int:
        """The slot of an identity, made at first sight. When all are used the last one is shared under the name "other"."""
        known = self.names[kind]
        if name not in known:
            if len(known) >= LIMITS[kind] - 1:
                return LIMITS[kind] - 1
            known[name] = len(known)
        return known[name]

    def set_health(self, endpoint: int, state: str, since_ms: int = 0, drained: bool = False) -> bool:
        """What checks say of the endpoint of that slot: a word of HEALTH_WORDS, since when (CLOCK_MONOTONIC), and whether an operator has
        taken it out. False for the slot that several endpoints share, which stays unknown."""
        if not 0 <= endpoint < ENDPOINT_CELLS:
            raise IndexError(endpoint)
        if endpoint == ENDPOINT_CELLS - 1:
            return False
        gw_atomic_store64(&self.mem.health[endpoint], <uint64_t>since_ms << 3 | <uint64_t>bool(drained) << 2 | <uint64_t>HEALTH_WORDS.index(state))
        return True

    def set_down(self, upstream: int, n: int) -> None:
        """How many endpoints of the upstream of that slot are down: workers look at each one's word only where there are some."""
        if not 0 <= upstream < UPSTREAM_CELLS:
            raise IndexError(upstream)
        if upstream < UPSTREAM_CELLS - 1:
            gw_atomic_store(&self.mem.down[upstream], n)

    def health(self, endpoint: int) -> tuple[str, int, bool]:
        """State, since_ms and drained of an endpoint, as workers read them."""
        cdef uint64_t word
        if not 0 <= endpoint < ENDPOINT_CELLS:
            raise IndexError(endpoint)
        word = gw_atomic_load64(&self.mem.health[endpoint])
        return HEALTH_WORDS[word & 3], word >> 3, bool(word & 4)

    def set_tickets(self, current: int, keys: dict[int, bytes]) -> None:
        """The ring of session ticket keys: TICKET_KEY_BYTES (name, AES key, MAC key) each by place, of which `current` issues. Workers see all of it or nothing."""
        cdef TicketRing *r = &self.mem.tickets
        cdef bytes key
        if current not in keys or not all(0 <= place < 8 and len(k) == TICKET_KEY_BYTES for place, k in keys.items()):
            raise ValueError("ticket keys: places are 0 to 7, and one of them issues")
        gw_seq_add(&r.version)
        r.current, r.used = current, 0
        memset(r.keys, 0, sizeof(r.keys))
        for place, key in keys.items():
            r.used |= 1 << <uint32_t>place
            memcpy(&r.keys[<int>place], <const char *>key, sizeof(TicketKey))
        gw_seq_add(&r.version)

    def tls_figures(self) -> dict:
        """TLS, added up over the workers."""
        return tls_figures(self)

    def forget_sessions(self) -> None:
        """No session in the machine's store is resumed any more."""
        store_forget(segment_store(self.mem))

    def retire(self, worker: int) -> None:
        """A worker died: its gauges go to zero, its counters stay and its successor goes on from them."""
        cdef Lane *lane
        cdef BreakerView view
        cdef int i
        if not 0 <= worker < self.mem.workers:
            raise IndexError(worker)
        lane = segment_lane(self.mem, worker)
        lane.worker.tunnels = lane.worker.connections = lane.worker.exchanges = lane.worker.upstream_connections = lane.worker.buffer_bytes = 0
        lane.tls.sessions = 0
        lane.worker.tls_bytes = lane.worker.held_bytes = lane.worker.permits = lane.worker.load = 0
        for i in range(UPSTREAM_CELLS):
            lane.upstreams[i].waiting = lane.upstreams[i].in_use = lane.upstreams[i].idle = lane.upstreams[i].connecting = 0
            if lane.limits[i].held:
                gw_atomic_add(&self.mem.limits[i].in_flight, -<int>lane.limits[i].held)
                lane.limits[i].held = 0
            if self.mem.limits[i].wanted & 0xffff == <uint32_t>worker + 1:
                self.mem.limits[i].wanted = 0
        for i in range(ENDPOINT_CELLS):
            if self.mem.endpoints[i].wanted == <uint32_t>worker + 1:
                self.mem.endpoints[i].wanted = 0
            if lane.endpoint_open[i]:
                gw_atomic_add(&self.mem.endpoints[i].open, -<int>lane.endpoint_open[i])
                lane.endpoint_open[i] = 0
        for i in range(CLIENT_ROWS * CLIENT_CELLS):          # reading leaves untouched pages unmade
            if (&lane.clients[0][0])[i]:
                (&lane.clients[0][0])[i] = 0
        for i in list(self.names["upstream"].values()) + [UPSTREAM_CELLS + k for k in self.names["endpoint"].values()]:
            segment_breaker(self.mem, SUPERVISOR, i, &view)
            cell_retire(&view, &lane.breakers[i], worker + 1, time.monotonic_ns() // 1000)
        store_retire(segment_store(self.mem), worker)

    def worker_figures(self, worker: int) -> dict:
        """The figures of one worker."""
        if not 0 <= worker < self.mem.workers:
            raise IndexError(worker)
        return worker_figures(self, worker)

    def switch(self, kind: str, name: str, until_ms: int) -> bool:
        """Switch requests of a route, tier or upstream (kind) to their ladder until then (CLOCK_MONOTONIC, ms; 0 = back to live). False: no
        place is free."""
        cdef Switch *w
        cdef Switch *free = NULL
        cdef uint32_t what = SWITCH_KINDS.index(kind)
        cdef uint32_t slot = int(name[1]) if kind == "tier" else self.slot(kind, name)
        cdef uint64_t now_ms = time.monotonic_ns() // 1_000_000
        for i in range(SWITCHES):
            w = &self.mem.switches[<int>i]
            if w.until_ms > now_ms and w.kind == what and w.slot == slot:
                free = w
                break
            if free == NULL and w.until_ms <= now_ms:
                free = w
        if until_ms and free == NULL:
            return False
        if free != NULL and (until_ms or free.until_ms > now_ms):
            gw_atomic_store64(&free.until_ms, 0)
            free.kind, free.slot = what, slot
            gw_atomic_store64(&free.until_ms, until_ms)
        last = 0
        for i in range(SWITCHES):
            if self.mem.switches[<int>i].until_ms > now_ms:
                last = i + 1
        gw_atomic_store(&self.mem.switched, last)
        return True

    def switches(self) -> list[tuple[str, str, int]]:
        """Kind, name and until_ms of the places in use, be their time over or not."""
        out = []
        for i in range(SWITCHES):
            w = self.mem.switches[<int>i]
            if w.until_ms:
                kind = SWITCH_KINDS[w.kind]
                names = [f"P{w.slot}"] if kind == "tier" else [n for n, slot in self.names[kind].items() if slot == w.slot]
                out.append((kind, names[0] if names else "other", w.until_ms))
        return out

    def sla(self) -> dict[str, dict[str, dict[str, int]]]:
        """Outcomes so far, by route and tier, of those that have any; cheap enough to be asked every few seconds."""
        out = {}
        for name, slot in [*self.names["route"].items(), ("other", ROUTE_CELLS - 1)]:
            counts = [sum([segment_lane(self.mem, w).routes[slot].sla[i] for w in range(self.mem.workers)]) for i in range(12)]
            if any(counts):
                out[name] = {tier: row for tier, row in sla_words(counts).items() if any(row.values())}
        return out

    def owe(self, upstream: str, change: int) -> None:
        """So many more (fewer) requests to an upstream wait in the journals."""
        cdef uint32_t slot = self.slot("upstream", upstream)
        if change > 0 or <int>gw_atomic_load(&self.mem.owed[slot]) >= -change:
            gw_atomic_add(&self.mem.owed[slot], change)

    def upstream_opens(self) -> dict[str, int]:
        """Connections opened so far, by upstream; cheap enough to be asked every second."""
        return {name: sum([segment_lane(self.mem, w).upstreams[slot].opens for w in range(self.mem.workers)])
                for name, slot in self.names["upstream"].items()}

    def snapshot(self) -> dict:
        """All figures, added up over the workers."""
        cdef uint32_t w, i
        lanes = range(self.mem.workers)
        workers = [worker_figures(self, w) for w in lanes]
        words = {}
        for i in range(R_COUNT):
            n = sum([segment_lane(self.mem, w).reasons[i] for w in lanes])
            if n:
                words[reason_row(i).word.decode()] = n
        routes = {name: route_figures(self, slot) for name, slot in self.names["route"].items()}
        if len(self.names["route"]) >= ROUTE_CELLS - 1:
            routes["other"] = route_figures(self, ROUTE_CELLS - 1)
        return {"workers": workers, "reasons": words, "routes": routes, "tiers": {f"P{i}": tier_figures(self, i) for i in range(3)},
                "upstreams": {name: upstream_figures(self, slot) for name, slot in self.names["upstream"].items()}}


cdef dict worker_figures(Segment self, uint32_t w):
    cdef WorkerCell *c = &segment_lane(self.mem, w).worker
    return dict(dict(c[0]), load=c.load / 1000.0, load_of=LOAD_WORDS[c.load_of] if c.load else "")


cdef dict tier_figures(Segment self, uint32_t tier):
    cdef TierCell *c
    cdef uint32_t w, i
    cdef uint32_t cells[HIST_CELLS]
    cdef uint64_t sum_us = 0
    memset(cells, 0, sizeof(cells))
    admitted = queued = 0
    shed = dict.fromkeys(SHED_WORDS, 0)
    for w in range(self.mem.workers):
        c = &segment_lane(self.mem, w).tiers[tier]
        admitted += c.admitted
        queued += c.queued
        sum_us += c.sum_us
        for i, word in enumerate(SHED_WORDS):
            shed[word] += c.shed[i]
        for i in range(HIST_CELLS):
            cells[i] += c.seconds[i]
    return {"admitted": admitted, "queued": queued, "shed": shed, "seconds": seconds(cells, sum_us)}


cdef dict tls_figures(Segment self):
    cdef TlsCell *c
    cdef uint32_t w, i
    cdef uint32_t cells[HIST_CELLS]
    cdef uint32_t looks[HIST_CELLS]
    cdef uint64_t sum_us = 0, look_us = 0
    memset(cells, 0, sizeof(cells))
    memset(looks, 0, sizeof(looks))
    out = {"handshakes": {"TLSv1.2": 0, "TLSv1.3": 0}, "resumed": {"ticket": 0, "local": 0, "redis": 0}, "failed": 0,
           "groups": dict.fromkeys(GROUP_WORDS, 0), "ciphers": dict.fromkeys(CIPHER_WORDS, 0), "tickets_issued": 0, "tickets_unknown": 0,
           "store": {"entries": 0, "most": segment_store(self.mem).entries,
                     "hits": 0, "misses": 0, "kept": 0, "evicted": 0, "refused": 0},
           "redis": {"hits": 0, "misses": 0, "errors": 0, "skipped": 0, "written": 0, "dropped": 0},
           "ticket_uses": [0] * 8, "early_data": {"accepted": 0, "refused": 0}, "sessions": 0}
    for w in range(self.mem.workers):
        c = &segment_lane(self.mem, w).tls
        for key, n in (("failed", c.failed), ("tickets_issued", c.tickets_issued),
                       ("tickets_unknown", c.tickets_unknown), ("sessions", c.sessions)):
            out[key] += n
        for key, n in (("hits", c.store_hits), ("misses", c.store_misses), ("kept", c.sessions_kept), ("evicted", c.sessions_evicted), ("refused", c.sessions_refused)):
            out["store"][key] += n
        for key, n in (("hits", c.redis_hits), ("misses", c.redis_misses), ("errors", c.redis_errors), ("skipped", c.redis_skipped),
                       ("written", c.redis_written), ("dropped", c.redis_dropped)):
            out["redis"][key] += n
        for i, word in enumerate(out["handshakes"]):
            out["handshakes"][word] += c.full[i]
        for i, word in enumerate(out["resumed"]):
            out["resumed"][word] += c.resumed[i]
        for i, word in enumerate(GROUP_WORDS):
            out["groups"][word] += c.groups[i]
        for i, word in enumerate(CIPHER_WORDS):
            out["ciphers"][word] += c.ciphers[i]
        for i in range(8):
            out["ticket_uses"][i] += c.ticket_uses[i]
        out["early_data"]["accepted"] += c.early_accepted
        out["early_data"]["refused"] += c.early_refused
        for i in range(HIST_CELLS):
            cells[i] += c.seconds[i]
            looks[i] += c.redis_seconds[i]
        sum_us += c.sum_us
        look_us += c.redis_us
    if out["store"]["kept"]:             # or looking would make its pages
        out["store"]["entries"] = store_count(segment_store(self.mem), time.time_ns() // 1_000_000)
    out["redis"]["seconds"] = seconds(looks, look_us)
    return dict(out, seconds=seconds(cells, sum_us))


cdef dict route_figures(Segment self, uint32_t slot):
    cdef RouteCell *c
    cdef uint32_t w, i
    cdef uint32_t cells[HIST_CELLS]
    cdef uint64_t sum_us = 0
    memset(cells, 0, sizeof(cells))
    requests, cached, sla = [0] * 6, [0] * 8, [0] * 12
    n_in = n_out = 0
    for w in range(self.mem.workers):
        c = &segment_lane(self.mem, w).routes[slot]
        for i in range(6):
            requests[i] += c.requests[i]
        for i in range(3 * SLA_OUTCOMES):
            sla[i] += c.sla[i]
        for i in range(8):
            cached[i] += c.cached[i]
        for i in range(HIST_CELLS):
            cells[i] += c.seconds[i]
        n_in += c.bytes_in
        n_out += c.bytes_out
        sum_us += c.sum_us
    return {"requests": dict(zip(("none", "1xx", "2xx", "3xx", "4xx", "5xx"), requests)), "bytes_in": n_in, "bytes_out": n_out,
            "cache": dict(zip(CACHE_WORDS, cached[1:])), "sla": sla_words(sla), "seconds": seconds(cells, sum_us)}


cdef dict sla_words(list counts):
    """By tier, {outcome: requests}."""
    return {f"P{t}": dict(zip(SLA_WORDS, counts[t * SLA_OUTCOMES:(t + 1) * SLA_OUTCOMES])) for t in range(3)}


cdef dict upstream_figures(Segment self, uint32_t slot):
    cdef UpstreamCell *c
    cdef uint32_t w, i
    cdef uint32_t cells[HIST_CELLS]
    cdef uint32_t waits[HIST_CELLS]
    cdef uint64_t sum_us = 0, wait_us = 0
    memset(cells, 0, sizeof(cells))
    memset(waits, 0, sizeof(waits))
    out = dict.fromkeys(("opens", "warmed", "raced", "reuses", "queue_full", "queue_timeout", "retries", "retry_denied", "hedges_won", "tls_full", "tls_resumed", "waiting", "in_use", "idle", "connecting"), 0)
    rtt = {"count": 0, "sum": 0.0, "squares": 0.0, "variation": 0.0}
    closed = dict.fromkeys(CLOSE_WORDS, 0)
    retried = dict.fromkeys(RETRY_WORDS, 0)
    for w in range(self.mem.workers):
        c = &segment_lane(self.mem, w).upstreams[slot]
        for key, n in (("opens", c.opens), ("reuses", c.reuses), ("queue_full", c.queue_full), ("queue_timeout", c.queue_timeout),
                       ("retry_denied", c.retry_denied), ("hedges_won", c.hedges_won), ("tls_full", c.tls_full), ("tls_resumed", c.tls_resumed), ("waiting", c.waiting), ("in_use", c.in_use), ("idle", c.idle), ("connecting", c.connecting),
                       ("warmed", c.warmed), ("raced", c.raced)):
            out[key] += n
        for key, value in (("count", c.rtt_n), ("sum", c.rtt_us / 1e6), ("squares", c.rtt_square_us / 1e12), ("variation", c.rtt_var_us / 1e6)):
            rtt[key] += value
        for i in range(RETRY_KINDS):
            retried[RETRY_WORDS[i]] += c.retried[i]
        for i in range(CLOSE_REASONS):
            closed[CLOSE_WORDS[i]] += c.closed[i]
        for i in range(HIST_CELLS):
            cells[i] += c.seconds[i]
            waits[i] += c.waits[i]
        sum_us += c.sum_us
        wait_us += c.wait_us
    out["limit"], out["limit_in_flight"] = self.mem.limits[slot].limit, self.mem.limits[slot].in_flight
    out["retries"] = sum(retried.values())
    budget = budget_level(&self.mem.budgets[slot], segment_firsts(self.mem, slot), time.monotonic_ns() // 1_000_000)
    return dict(out, closed=closed, retried=retried, retry_budget=budget / 1000, seconds=seconds(cells, sum_us), queue_seconds=seconds(waits, wait_us), rtt=rtt)
