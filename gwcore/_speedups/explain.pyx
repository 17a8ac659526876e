"""Why a request was refused, for the `detail` of a problem document and the log. Plain ASCII without quotes or backslashes, so that it can stand
in JSON as it is: names are the configuration's, of letters, digits, dots, underscores and hyphens. A reason that is not in here has no detail.
Written only when somebody is refused."""
from libc.stdint cimport uint32_t

from gwcore._speedups.breaker_cell cimport BreakerCell
from gwcore._speedups.breaker_core cimport (
    BRK_REFUSED_PROBES, BRK_REFUSED_RAMP, BRK_REFUSED_SHED, BreakerCore, FORCE_OPEN, WHY_FAILURES, WHY_FORCED, WHY_PROBE_FAILED, WHY_SCORE,
    WHY_STALL, breaker_probes_out, breaker_ratio, breaker_retry_after_us,
)
from gwcore._speedups.conn cimport LOAD_CONNECTIONS, LOAD_CPU, LOAD_DESCRIPTORS, LOAD_LAG, Pressure
from gwcore._speedups.limiter cimport limiter_share
from gwcore._speedups.reasons cimport R_CONCURRENCY_LIMIT, R_OVERLOAD, R_QUEUE_FULL, R_QUEUE_TIMEOUT
from gwcore._speedups.shm cimport gw_atomic_load
from gwcore._speedups.upstream cimport Upstream, upstream_limit

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *out, size_t size, const char *format, ...)


cdef size_t explain(Worker *w, const Exchange *x, int reason, char *out, size_t room) noexcept nogil:
    """Write the detail of a reason into out; returns its length, 0 = there is none."""
    if x == NULL:
        return 0
    if x.refusal:
        return explain_breaker(x, out, room)
    if reason == R_OVERLOAD:
        return overload(w, x, out, room)
    if x.upstream != NULL and (reason == R_QUEUE_FULL or reason == R_QUEUE_TIMEOUT or reason == R_CONCURRENCY_LIMIT):
        return queued(x, reason, out, room)
    return 0


cdef const char *why_word(int why) noexcept nogil:
    if why == WHY_FAILURES: return b"failures"
    if why == WHY_STALL: return b"stall"
    if why == WHY_SCORE: return b"score"
    if why == WHY_PROBE_FAILED: return b"probe_failed"
    return b"forced" if why == WHY_FORCED else b"-"


cdef size_t explain_breaker(const Exchange *x, char *out, size_t room) noexcept nogil:
    """The rule and the figures by which a breaker refused x; 0 when none did."""
    cdef const BreakerCell *c
    cdef const BreakerCore *b
    cdef const char *name
    cdef int n = 0, name_len
    cdef double wait_s
    if not x.refusal or x.upstream == NULL:
        return 0
    c = x.upstream.breaker.cell
    b = &c.core
    name, name_len = x.upstream.name, <int>x.upstream.name_len
    wait_s = breaker_retry_after_us(b) / 1e6
    if x.refusal == BRK_REFUSED_SHED:
        n = snprintf(out, room, b"upstream %.*s: closed, sheds %.0f%% (P%d: as tiers have it); pressure ratio %.3f over the threshold %.3f",
                     name_len, name, 100 * c.shed, <int>x.tier, breaker_ratio(b.p, b.n), b.threshold)
    elif x.refusal == BRK_REFUSED_RAMP:
        n = snprintf(out, room, b"upstream %.*s: closed again, admits %.0f%% so far", name_len, name, 100 * c.ramp)
    elif b.forced == FORCE_OPEN:
        n = snprintf(out, room, b"upstream %.*s: forced open by an operator", name_len, name)
    elif x.refusal == BRK_REFUSED_PROBES:
        n = snprintf(out, room, b"upstream %.*s: half_open, %u of %u probes out, %u succeeded, %u failed", name_len, name,
                     <unsigned int>breaker_probes_out(b), <unsigned int>b.rules.probes, <unsigned int>b.probes_ok, <unsigned int>b.probes_bad)
    else:
        n = snprintf(out, room, b"upstream %.*s: open by %s; failure ratio %.3f, evidence %.1f of %.1f, a probe in %.1f s", name_len, name,
                     why_word(b.why), b.moved_on.failure_ratio, b.moved_on.evidence, b.moved_on.bar, wait_s)
    return <size_t>n if 0 < n < <int>room else 0


cdef size_t length(size_t at, int n, size_t room) noexcept nogil:
    """Of what stands in a buffer after snprintf said n of what it was to add at `at`: what does not fit is cut."""
    return at + <size_t>n if <size_t>n < room - at else room - 1


cdef size_t overload(Worker *w, const Exchange *x, char *out, size_t room) noexcept nogil:
    """loop lag 47 ms of 50 ms: load 0.94, P1 is shed from 0.90"""
    cdef const Pressure *p = &w.pressure
    cdef const char *what = b"memory"
    cdef const char *unit = b" %"
    cdef unsigned int most = 100, load = <unsigned int>(p.load * 100), mark = w.plan.head.shed_from[x.tier] // 10
    if p.highest == LOAD_LAG:
        what, unit, most = b"loop lag", b" ms", w.plan.head.lag_ms
    elif p.highest == LOAD_CPU:
        what, unit, most = b"events wait", b" ms", w.plan.head.wait_ms
    elif p.highest == LOAD_CONNECTIONS:
        what, unit, most = b"busy connections", b"", w.connection_limit
    elif p.highest == LOAD_DESCRIPTORS:
        what, unit, most = b"descriptors", b"", w.fd_limit
    return length(0, snprintf(
        out, room, b"%s %u%s of %u%s: load %u.%02u, P%u is shed from %u.%02u", what, <unsigned int>(p.figures[p.highest] * most + 0.5), unit,
        most, unit, load // 100, load % 100, <unsigned int>x.tier, mark // 100, mark % 100), room)


cdef size_t queued(const Exchange *x, int reason, char *out, size_t room) noexcept nogil:
    """upstream be: waited 21 ms; 3 of at most 512 wait; ..."""
    cdef const Upstream *u = x.upstream
    cdef unsigned int limit, busy = 0, open = 0
    cdef uint32_t i
    cdef size_t n = length(0, snprintf(out, room, b"upstream %.*s: ", <int>u.name_len, u.name), room)
    if reason == R_QUEUE_TIMEOUT:
        n = length(n, snprintf(out + n, room - n, b"waited %u ms", <unsigned int>(x.queue_us // 1000)), room)
        if x.drowned:
            n = length(n, snprintf(
                out + n, room - n, b" (nobody waited less than %u ms for %u ms, so who waits longer than %u ms leaves)",
                <unsigned int>u.queue.calm_ms, <unsigned int>u.queue.patience_ms, <unsigned int>u.queue.drowned_ms), room)
        n = length(n, snprintf(out + n, room - n, b"; "), room)
    n = length(n, snprintf(out + n, room - n, b"%u of at most %u wait", <unsigned int>u.queue.n, <unsigned int>u.queue.size), room)
    if u.limit_start:
        limit = upstream_limit(u)
        n = length(n, snprintf(out + n, room - n, b"; %u in flight of a limit of %u", <unsigned int>gw_atomic_load(&u.limit.in_flight), limit), room)
        if x.tier:
            n = length(n, snprintf(
                out + n, room - n, b", of which P%u may fill %u", <unsigned int>x.tier, <unsigned int>limiter_share(limit, x.tier)), room)
    if not x.limited:
        for i in range(u.n):
            busy += u.endpoints[i].pool.n_busy + u.endpoints[i].pool.n_opening
            open += u.endpoints[i].pool.max_connections
        n = length(n, snprintf(
            out + n, room - n, b"; this worker has %u connections in use, all workers together may have %u", busy, open), room)
    return n
