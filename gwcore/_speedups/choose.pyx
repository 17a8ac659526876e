"""What a request chooses besides its route: upstream, hash, connections, protocol, path."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from gwcore._speedups.conn cimport random_next
from gwcore._speedups.fields cimport F_COOKIE, M_GET, same_word
from gwcore._speedups.head cimport Field
from gwcore._speedups.path cimport path_normalise
from gwcore._speedups.plan cimport HASH_COOKIE, HASH_CLIENT, Str, hash_bytes, plan_text, plan_upgrade
from gwcore._speedups.reasons cimport R_BAD_PATH, R_URI_TOO_LONG
from gwcore._speedups.story cimport REQ_DONE

cdef uint64_t HASH_START = 0x4bf29ce484222325


cdef bint head_has(const void *head, const char *name, size_t name_len, const char *value, size_t value_len, bint any_value) noexcept nogil:
    """For the router: does a field of that lower-case name (with that value) exist?"""
    cdef const Head *h = <const Head *>head
    cdef uint32_t i
    cdef const Field *f
    for i in range(h.n):
        f = &h.f[i]
        if same_word(h.base + f.name, f.name_len, name, name_len) \
                and (any_value or (f.value_len == value_len and memcmp(h.base + f.value, value, value_len) == 0)):
            return True
    return False


cdef uint64_t hash_of(Worker *w, const Exchange *x, const Head *h, const UpstreamSpec *spec) noexcept nogil:
    """What balance: hash hashes; a missing header or cookie falls back to the client's address."""
    cdef const char *name = plan_text(x.plan.head, spec.hash_name)
    cdef const char *item
    cdef uint32_t i
    cdef size_t n, pos, k
    if spec.hash_by != HASH_CLIENT:
        for i in range(h.n):
            if spec.hash_by == HASH_COOKIE:
                if h.f[i].id != F_COOKIE:
                    continue
                pos = 0
                while pos < h.f[i].value_len:        # name=value; name=value
                    item = h.base + h.f[i].value + pos
                    n = 0
                    while pos + n < h.f[i].value_len and item[n] != c';':
                        n += 1
                    k = 0
                    while k < spec.hash_name.len and k < n and item[k] == name[k]:
                        k += 1
                    if k == spec.hash_name.len and k < n and item[k] == c'=':
                        return hash_bytes(7, item + k + 1, n - k - 1)
                    pos += n + 1
                    while pos < h.f[i].value_len and h.base[h.f[i].value + pos] == c' ':
                        pos += 1
            elif same_word(h.base + h.f[i].name, h.f[i].name_len, name, spec.hash_name.len):
                return hash_bytes(7, h.base + h.f[i].value, h.f[i].value_len)
    return hash_bytes(7, <const char *>x.origin.address, 16)


cdef uint64_t template_key(Worker *w, const Exchange *x, const Head *h, const UpstreamSpec *spec) noexcept nogil:
    """Whose connections this request may travel on: the PROXY header's source, and all lines of the principal header."""
    cdef const char *name = plan_text(x.plan.head, spec.principal)
    cdef uint64_t key = HASH_START ^ w.segment.seed      # secret: nobody must find a value with another's key
    cdef uint32_t i
    if spec.proxy_protocol:
        key = hash_bytes(key, <const char *>x.client.peer, 16)
        key = hash_bytes(key, <const char *>&x.client.port, 2)
    if spec.principal.len:
        for i in range(h.n):
            if same_word(h.base + h.f[i].name, h.f[i].name_len, name, spec.principal.len):
                key = hash_bytes(key, h.base + h.f[i].value, h.f[i].value_len)
                key = hash_bytes(key, b"\n", 1)
    return key ^ key >> 32


cdef const Target *target_pick(Worker *w, const PlanHead *p, const Route *r) noexcept nogil:
    """By weight (canary)."""
    cdef const Target *t = <const Target *>(<const char *>p + r.targets.off)
    cdef uint64_t at
    cdef uint32_t i
    if r.targets.n == 1:
        return t
    at = (random_next(w) >> 11) % r.weight_sum
    for i in range(r.targets.n):
        if at < t[i].weight:
            return &t[i]
        at -= t[i].weight
    return t


cdef uint8_t upgrade_asked(const Exchange *x, const Head *h) noexcept nogil:
    """Number + 1 of the protocol among those that the route lets through; 0: the request goes as plain HTTP, without the two fields."""
    cdef const Field *f
    cdef const Str *token
    cdef uint32_t i
    if h.upgrade_field < 0 or h.method != M_GET or h.http10 or x.request_body != REQ_DONE:
        return 0
    f = &h.f[h.upgrade_field]
    for i in range(x.route.upgrades.n):
        token = plan_upgrade(x.plan.head, x.route, i)
        if same_word(h.base + f.value, f.value_len, plan_text(x.plan.head, token[0]), token.len):
            return <uint8_t>(i + 1)
    return 0


cdef int rewrite(Worker *w, const Route *r, const PlanHead *p, const char **path, size_t *path_len) noexcept nogil:
    """Strip and replace the prefix; the result is normal again, or refused (RFC 3986 6.2.2 applies to what is sent)."""
    cdef char out[8448]
    cdef size_t n = r.replace.len, strip = r.strip if r.strip < path_len[0] else path_len[0]
    cdef long size
    if n + path_len[0] - strip + 1 > 8192:
        return R_URI_TOO_LONG
    memcpy(out, plan_text(p, r.replace), n)
    if path_len[0] == strip or path[0][strip] != c'/':
        if n == 0 or (out[n - 1] != c'/' and path_len[0] > strip):
            out[n] = c'/'
            n += 1
    elif n and out[n - 1] == c'/':
        n -= 1
    memcpy(out + n, path[0] + strip, path_len[0] - strip)
    n += path_len[0] - strip
    size = path_normalise(out, n, w.path)
    if size < 0:
        return R_BAD_PATH
    path[0], path_len[0] = w.path, size
    return 0
