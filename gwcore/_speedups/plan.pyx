"""Building the plan blob. `PlanBuilder` writes the C structs, so their layout is stated once, in plan.pxd; workers map the result."""
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset

from gwcore._speedups.types cimport size_t, uint32_t, uint64_t
from libc.stdint cimport uint8_t


cdef uint64_t hash_bytes(uint64_t seed, const char *at, size_t size) noexcept nogil:
    """FNV-1a, 64 bits; never 0. Feeding a text in pieces gives the hash of the whole."""
    cdef uint64_t h = seed
    cdef size_t i
    for i in range(size):
        h = (h ^ <uint8_t>at[i]) * <uint64_t>0x100000001b3
    return h if h else 1


cdef uint32_t plan_layout() noexcept nogil:
    return <uint32_t>(sizeof(PlanHead) | sizeof(Route) << 10 | sizeof(UpstreamSpec) << 20) ^ <uint32_t>(sizeof(Key) * 131 + sizeof(EndpointSpec) + sizeof(TlsSpec) * 17 + sizeof(Ladder) * 57)


cdef const char *plan_refused(const PlanHead *p, size_t size) noexcept nogil:
    """NULL when the blob is one of this build, else what is wrong with it."""
    if size < sizeof(PlanHead) or p.magic != PLAN_MAGIC:
        return b"not a plan"
    if p.layout != plan_layout():
        return b"the plan was made by another build of gwcore"
    if p.size != size:
        return b"the plan is not whole"
    return NULL


cdef uint32_t name_id(const PlanHead *p, Array names, const char *name, size_t n, uint32_t wildcard) noexcept nogil:
    """The id of a host name (lower case; a wildcard without its "*") in a table of HostKey; 0 = it is not there."""
    cdef const HostKey *rows = <const HostKey *>(<const char *>p + names.off)
    cdef uint32_t mask = names.n - 1, i
    cdef uint64_t h
    if names.n == 0:
        return 0
    h = hash_bytes(HASH_SEED + wildcard, name, n)
    i = <uint32_t>(h >> 32) & mask
    while rows[i].hash:
        if rows[i].hash == h and rows[i].wildcard == wildcard and rows[i].name.len == n and memcmp(plan_text(p, rows[i].name), name, n) == 0:
            return rows[i].id
        i = (i + 1) & mask
    return 0


cdef bint plan_trusts(const PlanHead *p, const uint8_t *peer) noexcept nogil:
    """Is this address (16 bytes) in one of trusted_proxies?"""
    cdef const Cidr *c = <const Cidr *>(<const char *>p + p.trusted.off)
    cdef uint32_t i, k, bits
    for i in range(p.trusted.n):
        bits = c[i].bits
        k = 0
        while bits >= 8 and c[i].net[k] == peer[k]:
            bits -= 8
            k += 1
        if bits == 0 or (bits < 8 and (c[i].net[k] ^ peer[k]) >> (8 - bits) == 0):
            return True
    return False


SIZES = {"route": sizeof(Route), "upstream": sizeof(UpstreamSpec), "endpoint": sizeof(EndpointSpec), "key": sizeof(Key),
         "host": sizeof(HostKey), "host_info": sizeof(HostInfo), "cond": sizeof(Cond), "target": sizeof(Target), "edit": sizeof(HeaderEdit),
         "cidr": sizeof(Cidr), "u32": 4, "str": sizeof(Str), "listener": sizeof(ListenerSpec), "cert": sizeof(CertSpec), "policy": sizeof(TlsPolicy),
         "tls": sizeof(TlsSpec), "client": sizeof(TlsClientSpec), "ladder": sizeof(Ladder), "step": sizeof(Step),
         "part": sizeof(Part), "head": sizeof(PlanHead)}


STEPS = ("live", "local", "redis", "static")             # StepKind
PARTS = ("text", "path", "method", "id", "host", "tier", "route", "reason", "query", "header")       # PartKind


def host_hash(name: bytes, wildcard: bool) -> int:
    """The hash under which the router looks for a host."""
    return hash_bytes(HASH_SEED + wildcard, name, len(name))


def key_hash(path: bytes, host: int, kind: int) -> int:
    """The hash under which the router looks for a path of a host id; kind is 0 exact, 1 prefix."""
    return key_mix(hash_bytes(HASH_SEED, path, len(path)), host, kind)


cdef class PlanBuilder:
    """An arena that grows. `array(kind, rows)` writes structs given as dictionaries of their fields and returns the Array to refer to them;
    `text(bytes)` returns a Str. `finish(head)` returns the blob."""
    cdef char *mem
    cdef size_t used, room
    cdef dict texts

    def __cinit__(self):
        self.texts = {}
        self._reserve(sizeof(PlanHead))

    def __dealloc__(self):
        free(self.mem)

    cdef size_t _reserve(self, size_t n) except? 0:
        cdef size_t at = (self.used + 15) & ~<size_t>15
        cdef size_t room = self.room
        while at + n > room:
            room = room * 2 if room else 65536
        if room > 0xfffffff0:
            raise ValueError("the configuration is larger than a plan can hold (4 GiB)")
        if room != self.room:
            self.mem = <char *>realloc(self.mem, room)
            if self.mem == NULL:
                raise MemoryError
            self.room = room
        memset(self.mem + self.used, 0, at + n - self.used)
        self.used = at + n
        return at

    def text(self, bytes value):
        cdef size_t at
        if not value:
            return {"off": 0, "len": 0}
        if value not in self.texts:
            at = self._reserve(len(value))
            memcpy(self.mem + at, <const char *>value, len(value))
            self.texts[value] = {"off": at, "len": len(value)}
        return self.texts[value]

    def array(self, str kind, list rows):
        cdef size_t size = SIZES[kind], at
        if not rows:
            return {"off": 0, "n": 0}
        at = self._reserve(size * len(rows))
        for i, row in enumerate(rows):
            self._write(kind, at + i * size, row)
        return {"off": at, "n": len(rows)}

    cdef _write(self, str kind, size_t at, row):
        cdef Route route
        cdef UpstreamSpec upstream
        cdef EndpointSpec endpoint
        cdef TlsPolicy policy
        cdef bytes raw, other
        if kind == "u32":
            (<uint32_t *>(self.mem + at))[0] = row
        elif kind == "route":
            route = row
            (<Route *>(self.mem + at))[0] = route
        elif kind == "upstream":
            upstream = row
            (<UpstreamSpec *>(self.mem + at))[0] = upstream
        elif kind == "endpoint":
            raw, other = row.pop("sockaddr_bytes"), row.pop("other_bytes")
            memset(&endpoint, 0, sizeof(endpoint))
            row["sockaddr"] = row["other"] = [0] * 28
            endpoint = row
            memcpy(endpoint.sockaddr, <const char *>raw, min(len(raw), 28))
            memcpy(endpoint.other, <const char *>other, min(len(other), 28))
            (<EndpointSpec *>(self.mem + at))[0] = endpoint
        elif kind == "key":
            (<Key *>(self.mem + at))[0] = <Key>row
        elif kind == "host":
            (<HostKey *>(self.mem + at))[0] = <HostKey>row
        elif kind == "host_info":
            (<HostInfo *>(self.mem + at))[0] = <HostInfo>row
        elif kind == "cond":
            (<Cond *>(self.mem + at))[0] = <Cond>row
        elif kind == "target":
            (<Target *>(self.mem + at))[0] = <Target>row
        elif kind == "edit":
            (<HeaderEdit *>(self.mem + at))[0] = <HeaderEdit>row
        elif kind == "listener":
            (<ListenerSpec *>(self.mem + at))[0] = <ListenerSpec>row
        elif kind == "cert":
            (<CertSpec *>(self.mem + at))[0] = <CertSpec>row
        elif kind == "policy":
            policy = row
            (<TlsPolicy *>(self.mem + at))[0] = policy
        elif kind == "client":
            (<TlsClientSpec *>(self.mem + at))[0] = <TlsClientSpec>row
        elif kind == "tls":
            (<TlsSpec *>(self.mem + at))[0] = <TlsSpec>row
        elif kind == "str":
            (<Str *>(self.mem + at))[0] = <Str>row
        elif kind == "ladder":
            (<Ladder *>(self.mem + at))[0] = <Ladder>row
        elif kind == "step":
            (<Step *>(self.mem + at))[0] = <Step>row
        elif kind == "part":
            (<Part *>(self.mem + at))[0] = <Part>row
        elif kind == "cidr":
            (<Cidr *>(self.mem + at))[0] = <Cidr>row

    def finish(self, dict head) -> bytes:
        cdef PlanHead h
        h = dict(head, magic=PLAN_MAGIC, layout=plan_layout(), size=self.used)
        memcpy(self.mem, &h, sizeof(h))
        return self.mem[:self.used]
