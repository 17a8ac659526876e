"""A request of a route with `cache`, before anything is sent anywhere: a copy answers it, or it goes on and what it brings may be kept."""
from libc.stdint cimport int64_t, uint32_t

from gwcore._speedups.collect cimport Keep, keep_asked, keep_of, keep_open
from gwcore._speedups.conn cimport conn_rest, conn_send
from gwcore._speedups.copies cimport Copy, CopyKey, copy_key
from gwcore._speedups.copyanswer cimport COPY_CHECK, COPY_STRICT, copy_age_s, copy_lookup, copy_stands, copy_usable, copy_write, key_write
from gwcore._speedups.detached cimport detached_begin, detached_leave
from gwcore._speedups.ends cimport answered
from gwcore._speedups.fields cimport F_AUTHORIZATION, F_COOKIE, F_HOP_LAST, F_OTHER, M_DELETE, M_GET, M_HEAD, M_PATCH, M_POST, M_PUT, same_word
from gwcore._speedups.freshness cimport Said, request_said
from gwcore._speedups.head cimport Head
from gwcore._speedups.ladder cimport LEVEL_SWITCHED, ladder_level
from gwcore._speedups.leases cimport LEASE_TAKEN, lease_give, lease_take
from gwcore._speedups.outlist cimport out_reset
from gwcore._speedups.plan cimport CACHE_IGNORE, Route
from gwcore._speedups.proxy cimport begin_refuse
from gwcore._speedups.reasons cimport R_DEADLINE, R_NOT_CACHED
from gwcore._speedups.story cimport CACHE_BYPASS, CACHE_ERROR, CACHE_EXPIRED, CACHE_HIT, CACHE_MISS, CACHE_STALE, CACHE_VARY, DEGRADED_CACHE, REQ_STREAM

cdef enum:
    REFRESH_MS = 10000       # nobody else refreshes meanwhile


cdef bint writes(int method) noexcept nogil:
    return method == M_POST or method == M_PUT or method == M_DELETE or method == M_PATCH


cdef bint named_away(const Head *h) noexcept nogil:
    """Does Connection name a field that is none of the connection's? The upstream does not see it, so its answer must not be kept for those
    of whom it does."""
    cdef uint32_t i
    for i in range(h.n):
        if h.f[i].drop and (h.f[i].id == F_OTHER or h.f[i].id > F_HOP_LAST):
            return True
    return False


cdef bint credentials(const Exchange *x, const Head *h) noexcept nogil:
    """Does the request say who asks?"""
    cdef uint32_t i
    if x.client.tls.who != NULL:
        return True
    for i in range(h.n):
        if h.f[i].id == F_AUTHORIZATION or h.f[i].id == F_COOKIE:
            return True
    return False


cdef bint satisfies(Worker *w, const Copy *c, const Said *said, bint ignore) noexcept nogil:
    """May this copy be used as it is?"""
    cdef int64_t age = <int64_t>copy_age_s(w, c), left = <int64_t>(c.meta.fresh_ms - w.now_ms) // 1000
    if c.meta.flags & COPY_CHECK:
        return False
    if ignore:
        return c.meta.fresh_ms > w.now_ms
    if said.no_cache or said.max_age >= 0 and age > said.max_age or said.min_fresh >= 0 and left < said.min_fresh:
        return False
    if c.meta.fresh_ms > w.now_ms:
        return True
    return said.max_stale >= 0 and not c.meta.flags & COPY_STRICT and -left <= said.max_stale


cdef bint cached_begin(Worker *w, Exchange *x, const char *at, size_t size, const char *path, size_t path_len) noexcept nogil:
    """True: the request was answered. The head is in w.request."""
    cdef Head *h = &w.request
    cdef const Route *r = x.route
    cdef const char *asked = h.base + h.f[0].name if h.n else h.base + h.size
    cdef uint32_t asked_len = h.size - 2 - h.f[0].name if h.n else 0, key_len, url_at = 0
    cdef const Copy *c
    cdef Said said
    cdef Keep *k
    cdef int level
    cdef bint varies = False, ignore = r.cache_flags & CACHE_IGNORE != 0
    if x.method != M_GET and x.method != M_HEAD:
        if writes(x.method):
            key_len = key_write(w, x, h, path, path_len, &url_at)
            k = keep_open(w, x, key_len, url_at, asked, 0) if key_len else NULL
            if k != NULL:
                k.unsafe = 1
        return False
    if not r.cache_on:
        return False
    key_len = key_write(w, x, h, path, path_len, &url_at)
    if x.request_body == REQ_STREAM or h.wants_upgrade or key_len == 0 or named_away(h):
        x.cached = CACHE_BYPASS
        return False
    request_said(h, &said)
    c = copy_lookup(w, key_len, asked, asked_len, &varies)
    if c != NULL and satisfies(w, c, &said, ignore):
        x.cached = CACHE_HIT if c.meta.fresh_ms > w.now_ms else CACHE_STALE
        cached_answer(w, x, c, at, size, asked, asked_len)
        return True
    level = ladder_level(w, x) if c != NULL and x.ladder != NULL and x.ladder.copies == 2 else 0
    if level and (ignore or not said.no_cache) and copy_usable(x, c, w.now_ms):            # the steps of the ladder as they are written: copies come before live
        x.cached, x.degraded = CACHE_STALE, DEGRADED_CACHE
        if level != LEVEL_SWITCHED and c.meta.stored_ms + x.ladder.fresh_ms <= w.now_ms:
            refresh(w, x, path, path_len, key_len, url_at, asked, asked_len)
        cached_answer(w, x, c, at, size, asked, asked_len)
        return True
    if c != NULL and c.meta.revalidate_ms > w.now_ms and (ignore or not said.no_cache and said.max_age < 0 and said.min_fresh < 0):
        x.cached = CACHE_STALE
        refresh(w, x, path, path_len, key_len, url_at, asked, asked_len)
        cached_answer(w, x, c, at, size, asked, asked_len)
        return True
    if said.only_if_cached and not ignore:
        begin_refuse(w, x, at, size, R_NOT_CACHED)
        return True
    x.cached = CACHE_EXPIRED if c != NULL else CACHE_VARY if varies else CACHE_MISS
    if said.no_store and not ignore:
        x.cached = CACHE_BYPASS
        return False
    k = keep_open(w, x, key_len, url_at, asked, asked_len)
    if k != NULL:
        k.fallback = c != NULL and not said.no_cache
        k.secret = credentials(x, h)
        if k.fallback and x.ladder != NULL and copy_usable(x, c, w.now_ms + x.ladder.budget_ms):
            x.deadline_ms = w.now_ms + x.ladder.budget_ms            # then the copy is sent: see cached_late
    return False


cdef bint cached_late(Worker *w, Exchange *x) noexcept nogil:
    """The live try is late: its client gets a copy, and it goes on without one, to be kept. False: there is no copy for that, or a part of the request is
    still to come."""
    cdef const Copy *c = copy_stands(w, x)
    cdef Exchange *y
    if c == NULL:
        return False
    y = detached_leave(w, x)
    if y == NULL:
        return False
    y.cached, y.degraded, y.reason = CACHE_ERROR, DEGRADED_CACHE, R_DEADLINE
    x.deadline_ms = 0
    out_reset(&w.out)
    y.status = <unsigned short>copy_write(w, y, c, &w.out, keep_asked(keep_of(x)), keep_of(x).asked_len)
    y.bytes_out = w.out.bytes
    y.client.final = not y.keep_alive
    answered(w, y, conn_send(w, y.client, &w.out))
    return True


cdef void cached_answer(Worker *w, Exchange *x, const Copy *c, const char *at, size_t size, const char *asked, uint32_t asked_len) noexcept nogil:
    out_reset(&w.out)
    x.status = <unsigned short>copy_write(w, x, c, &w.out, asked, asked_len)
    x.bytes_out = w.out.bytes
    conn_rest(w, x.client, at + w.request.size, size - w.request.size)
    x.client.final = not x.keep_alive
    answered(w, x, conn_send(w, x.client, &w.out))


cdef void whole(Head *h) noexcept nogil:
    """Drop the client's conditions and ranges: what is asked for is to be kept."""
    cdef uint32_t i, n
    cdef const char *name
    for i in range(h.n):
        name, n = h.base + h.f[i].name, h.f[i].name_len
        if same_word(name, n, b"range", 5) or n > 3 and same_word(name, 3, b"if-", 3):
            h.f[i].drop = 1


cdef void refresh(Worker *w, Exchange *x, const char *path, size_t path_len, uint32_t key_len, uint32_t url_at, const char *asked, uint32_t asked_len) noexcept nogil:
    """Fetch the answer anew for those who ask later, unless somebody is at it. The lease goes with the exchange that does it. The base key still
    stands in w.key: a look-up writes behind it only."""
    cdef Exchange *d
    cdef Keep *k = NULL
    cdef CopyKey key
    copy_key(w.copies, &key, w.key, key_len)
    if x.method != M_GET or lease_take(w.copies, &key, w.now_ms + REFRESH_MS, w.now_ms) != LEASE_TAKEN:
        return
    whole(&w.request)
    d = detached_begin(w, x, path, path_len)
    if d != NULL:
        k = keep_open(w, d, key_len, url_at, asked, asked_len)
    if k != NULL:
        k.secret = credentials(x, &w.request)
        k.lease = 1
        return
    lease_give(w.copies, &key)
