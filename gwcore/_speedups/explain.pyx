"""The `detail` of a problem document. Plain ASCII without quotes or backslashes, so that it can stand in JSON as it is. A reason that is not in
here has no detail. Written only when somebody is refused."""
from libc.string cimport memcpy, strlen

from gwcore._speedups.conn cimport LOAD_CONNECTIONS, LOAD_CPU, LOAD_DESCRIPTORS, LOAD_LAG, Pressure
from gwcore._speedups.limiter cimport limiter_share
from gwcore._speedups.reasons cimport R_CONCURRENCY_LIMIT, R_OVERLOAD, R_QUEUE_FULL, R_QUEUE_TIMEOUT
from gwcore._speedups.shm cimport gw_atomic_load
from gwcore._speedups.types cimport uint32_t, uint64_t
from gwcore._speedups.upstream cimport Upstream, upstream_limit

cdef struct Say:
    char *at
    size_t n
    size_t room


cdef size_t explain(Worker *w, const Exchange *x, int reason, char *out, size_t room) noexcept nogil:
    """Write the detail of a reason into out; returns its length, 0 = there is none."""
    cdef Say s
    s.at, s.n, s.room = out, 0, room
    if x == NULL:
        return 0
    if reason == R_OVERLOAD:
        overload(w, x, &s)
    elif x.upstream != NULL and (reason == R_QUEUE_FULL or reason == R_QUEUE_TIMEOUT or reason == R_CONCURRENCY_LIMIT):
        queued(w, x, reason, &s)
    return s.n


cdef void text(Say *s, const char *words) noexcept nogil:
    cdef size_t n = strlen(words)
    if s.n + n <= s.room:
        memcpy(s.at + s.n, words, n)
        s.n += n


cdef void name(Say *s, const char *at, size_t n) noexcept nogil:
    """A name of the configuration: letters, digits, dots, underscores and hyphens."""
    if s.n + n <= s.room:
        memcpy(s.at + s.n, at, n)
        s.n += n


cdef void number(Say *s, uint64_t n) noexcept nogil:
    cdef char digits[21]
    cdef int i = 20
    digits[20] = 0
    while True:
        i -= 1
        digits[i] = <char>(48 + n % 10)
        n //= 10
        if n == 0:
            break
    text(s, digits + i)


cdef void hundredths(Say *s, uint64_t n) noexcept nogil:
    """A ratio of which n hundredths are given: 0.94."""
    number(s, n // 100)
    text(s, b".0" if n % 100 < 10 else b".")
    number(s, n % 100)


cdef void tier(Say *s, uint32_t n) noexcept nogil:
    text(s, b"P")
    number(s, n)


cdef void of(Say *s, const char *what, double share, uint64_t most, const char *unit) noexcept nogil:
    """what 47 ms of 50 ms"""
    text(s, what)
    number(s, <uint64_t>(share * most + 0.5))
    text(s, unit)
    text(s, b" of ")
    number(s, most)
    text(s, unit)


cdef void overload(Worker *w, const Exchange *x, Say *s) noexcept nogil:
    cdef const Pressure *p = &w.pressure
    cdef double share = p.figures[p.highest]
    if p.highest == LOAD_LAG:
        of(s, b"loop lag ", share, w.plan.head.lag_ms, b" ms")
    elif p.highest == LOAD_CPU:
        of(s, b"events wait ", share, w.plan.head.wait_ms, b" ms")
    elif p.highest == LOAD_CONNECTIONS:
        of(s, b"busy connections ", share, w.connection_limit, b"")
    elif p.highest == LOAD_DESCRIPTORS:
        of(s, b"descriptors ", share, w.fd_limit, b"")
    else:
        of(s, b"memory ", share, 100, b" %")
    text(s, b": load ")
    hundredths(s, <uint64_t>(p.load * 100))
    text(s, b", ")
    tier(s, x.tier)
    text(s, b" is shed from ")
    hundredths(s, w.plan.head.shed_from[x.tier] // 10)


cdef void queued(Worker *w, const Exchange *x, int reason, Say *s) noexcept nogil:
    """upstream be: ..."""
    cdef const Upstream *u = x.upstream
    cdef uint32_t limit, busy = 0, open = 0, i
    text(s, b"upstream ")
    name(s, u.name, u.name_len)
    text(s, b": ")
    if reason == R_QUEUE_TIMEOUT:
        text(s, b"waited ")
        number(s, x.queue_us // 1000)
        text(s, b" ms")
        if x.drowned:
            text(s, b" (nobody waited less than ")
            number(s, u.queue.calm_ms)
            text(s, b" ms for ")
            number(s, u.queue.patience_ms)
            text(s, b" ms, so who waits longer than ")
            number(s, u.queue.drowned_ms)
            text(s, b" ms leaves)")
        text(s, b"; ")
    number(s, u.queue.n)
    text(s, b" of at most ")
    number(s, u.queue.size)
    text(s, b" wait")
    if u.limit_start:
        limit = upstream_limit(u)
        text(s, b"; ")
        number(s, gw_atomic_load(&u.limit.in_flight))
        text(s, b" in flight of a limit of ")
        number(s, limit)
        if x.tier:
            text(s, b", of which ")
            tier(s, x.tier)
            text(s, b" may fill ")
            number(s, limiter_share(limit, x.tier))
    if not x.limited:
        for i in range(u.n):
            busy += u.endpoints[i].pool.n_busy + u.endpoints[i].pool.n_opening
            open += u.endpoints[i].pool.max_connections
        text(s, b"; this worker has ")
        number(s, busy)
        text(s, b" connections in use, all workers together may have ")
        number(s, open)
