"""The router. Hosts: exact, then the longest wildcard, then routes without a host. Within a host: exact path, longest prefix of whole
segments, regexes in file order; among routes of one key the file's order. Hash tables compiled into the plan; no allocation."""
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp

from gwcore._speedups.plan cimport (
    COND_HEADER, HASH_SEED, MATCH_EXACT, MATCH_PREFIX, Cond, HostInfo, Key, PlanHead, Route, hash_bytes, key_mix, name_id, plan_route, plan_text,
)
from gwcore._speedups.regex cimport Regex, regex_search

cdef enum:
    DEPTH_MAX = 64           # segments looked at; check refuses deeper prefixes


cdef bint query_has(const RouteQuery *q, const char *name, size_t n, const char *value, size_t m, bint any_value) noexcept nogil:
    """Is name[=value] among the parameters, compared as raw bytes?"""
    cdef size_t i = 0, end
    while i <= q.query_len and q.query_len:
        end = i
        while end < q.query_len and q.query[end] != c'&':
            end += 1
        if end - i >= n and memcmp(q.query + i, name, n) == 0:
            if end - i == n:
                if any_value or m == 0:
                    return True
            elif q.query[i + n] == c'=' and (any_value or (end - i - n - 1 == m and memcmp(q.query + i + n + 1, value, m) == 0)):
                return True
        i = end + 1
    return False


cdef bint conds_hold(const PlanHead *p, const Route *r, const RouteQuery *q) noexcept nogil:
    cdef const Cond *c = <const Cond *>(<const char *>p + r.conds.off)
    cdef uint32_t i
    for i in range(r.conds.n):
        if c[i].kind == COND_HEADER:
            if not q.has_field(q.head, plan_text(p, c[i].name), c[i].name.len, plan_text(p, c[i].value), c[i].value.len, c[i].any_value):
                return False
        elif not query_has(q, plan_text(p, c[i].name), c[i].name.len, plan_text(p, c[i].value), c[i].value.len, c[i].any_value):
            return False
    return True


cdef const Route *accept(const PlanHead *p, uint32_t first, const RouteQuery *q, uint64_t *allowed) noexcept nogil:
    """The first route of a chain whose conditions and methods hold; methods that would have done are added to allowed."""
    cdef const Route *r
    while first:
        r = plan_route(p, first - 1)
        if conds_hold(p, r, q):
            if r.methods == 0 or r.methods >> q.method & 1:
                return r
            allowed[0] |= r.methods
        first = r.next
    return NULL


cdef uint32_t key_find(const PlanHead *p, uint64_t h, uint32_t host, uint32_t kind, const char *path, size_t n) noexcept nogil:
    cdef const Key *keys = <const Key *>(<const char *>p + p.keys.off)
    cdef uint32_t mask = p.keys.n - 1, i
    h = key_mix(h, host, kind)
    i = <uint32_t>(h >> 32) & mask
    while keys[i].hash:
        if keys[i].hash == h and keys[i].host == host and keys[i].kind == kind and keys[i].path.len == n \
                and memcmp(plan_text(p, keys[i].path), path, n) == 0:
            return keys[i].route
        i = (i + 1) & mask
    return 0


cdef const Route *host_find(const PlanHead *p, const Regex *regexes, uint32_t host, const RouteQuery *q, uint64_t *allowed) noexcept nogil:
    cdef const HostInfo *info = <const HostInfo *>(<const char *>p + p.host_infos.off) + host
    cdef const uint32_t *list
    cdef const Route *r
    cdef uint64_t[DEPTH_MAX + 1] hashes
    cdef size_t[DEPTH_MAX + 1] ends
    cdef uint64_t h = HASH_SEED
    cdef size_t i, from_ = 0
    cdef uint32_t n = 0, first, k
    if info.has_exact:
        first = key_find(p, hash_bytes(HASH_SEED, q.path, q.path_len), host, MATCH_EXACT, q.path, q.path_len)
        if first:
            r = accept(p, first, q, allowed)
            if r != NULL:
                return r
    if info.has_prefix:
        hashes[0], ends[0], n = HASH_SEED, 0, 1               # the prefix "/", stored as an empty text
        i = 1
        while n <= info.depth and i <= q.path_len:
            if i == q.path_len or q.path[i] == c'/':
                h = hash_bytes(h, q.path + from_, i - from_)
                from_ = i
                hashes[n], ends[n] = h, i
                n += 1
            i += 1
        while n:
            n -= 1
            first = key_find(p, hashes[n], host, MATCH_PREFIX, q.path, ends[n])
            if first:
                r = accept(p, first, q, allowed)
                if r != NULL:
                    return r
    list = <const uint32_t *>(<const char *>p + info.regexes.off)
    for k in range(info.regexes.n):
        r = plan_route(p, list[k] - 1)
        if regex_search(&regexes[r.regex - 1], q.path, q.path_len) == 1:
            if conds_hold(p, r, q):
                if r.methods == 0 or r.methods >> q.method & 1:
                    return r
                allowed[0] |= r.methods
    return NULL


cdef const Route *router_find(const PlanHead *p, const Regex *regexes, const RouteQuery *q, uint64_t *allowed) noexcept nogil:
    """The route of a request, or NULL; then allowed tells the methods (bits) that the path would have taken, 0 = no such path."""
    cdef const Route *r
    cdef uint32_t id
    cdef size_t i
    allowed[0] = 0
    if p.hosts.n and q.host_len:
        id = name_id(p, p.hosts, q.host, q.host_len, 0)
        if id:
            r = host_find(p, regexes, id, q, allowed)
            if r != NULL:
                return r
        if p.has_wildcards:
            for i in range(1, q.host_len):
                if q.host[i] == c'.':                    # "*.example.com" is stored as ".example.com"
                    id = name_id(p, p.hosts, q.host + i, q.host_len - i, 1)
                    if id:
                        r = host_find(p, regexes, id, q, allowed)
                        if r != NULL:
                            return r
    return host_find(p, regexes, 0, q, allowed)


cdef bint no_field(const void *head, const char *name, size_t name_len, const char *value, size_t value_len, bint any_value) noexcept nogil:
    cdef const char *text = <const char *>head       # tests: "name:value\n" lines
    cdef size_t i = 0
    while text[i]:
        if memcmp_safe(text + i, name, name_len) and text[i + name_len] == c':' and (
                any_value or (memcmp_safe(text + i + name_len + 1, value, value_len) and text[i + name_len + 1 + value_len] == c'\n')):
            return True
        while text[i] and text[i] != c'\n':
            i += 1
        if text[i]:
            i += 1
    return False


cdef bint memcmp_safe(const char *text, const char *wanted, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if text[i] != wanted[i]:
            return False
    return True


cdef class RouterProbe:
    """The router on a plan blob, for tests and the micro benchmark. Regex routes are not compiled here."""
    cdef bytes plan

    def __init__(self, bytes plan):
        self.plan = plan

    def find(self, bytes host, bytes path, int method=1, bytes query=b"", bytes fields=b""):
        """(route name or None, allowed method bits); fields is b'name:value\\n...' in lower case names."""
        cdef RouteQuery q
        cdef uint64_t allowed = 0
        cdef const Route *r
        cdef const PlanHead *p = <const PlanHead *><const char *>self.plan
        q.host, q.host_len = host, len(host)
        q.path, q.path_len = path, len(path)
        q.query, q.query_len = query, len(query)
        q.method = method
        q.head = <const char *>fields
        q.has_field = no_field
        r = router_find(p, NULL, &q, &allowed)
        return (None if r == NULL else plan_text(p, r.name)[:r.name.len].decode(), allowed)

    def repeat(self, bytes host, bytes path, int n):
        """Find n times without Python in between; for the micro benchmark."""
        cdef RouteQuery q
        cdef uint64_t allowed = 0
        cdef int _i
        cdef const PlanHead *p = <const PlanHead *><const char *>self.plan
        q.host, q.host_len = host, len(host)
        q.path, q.path_len = path, len(path)
        q.query, q.query_len = NULL, 0
        q.method = 1
        q.head = <const char *>b""
        q.has_field = no_field
        with nogil:
            for _i in range(n):
                router_find(p, NULL, &q, &allowed)
