"""Copies of answers, kept by S3-FIFO (Yang and others 2023) in two logs. An answer is appended to the small ring. The oldest there goes to the main
ring if it was used twice, else it is forgotten but for a ghost of its name, and an answer that has a ghost goes to the main ring at once. The
oldest of the main ring is appended again with one use less, or forgotten when it has none left. What is larger than most needs three uses for
both, in whose room several others would fit. So there is no allocator, what is asked for once passes through a twentieth of the memory, and a
hit writes nothing but three bits.

Readers take no lock: a word of the index leads to the answer, whose whole key is compared. Writers take one, which is only ever tried, and
every step leaves the store whole: bytes are written, then the head moves past them, then one word of the index names them; to evict, the word
goes, then the tail moves. Whoever dies in between leaves at worst bytes that nobody names, which the tail passes by. The lock says who has
it, so `copies_retire` opens that of the dead.

Bytes behind the tail are written over only after every process was seen idle or in a later turn than when the tail moved; until then what it
found stays where it is. Nobody waits for that: an answer for which no such bytes are left is not kept.

Only the holder of the lock makes a word of the index; anybody may take one away, by compare-and-swap. Who does so to forget an answer for good
raises an epoch first, and a writer looks at it once more after it has published: one of the two sees the other."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from gwcore._speedups.sys cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE, mmap, munmap, pread,
)

cdef extern from * nogil:
    """
    #define copies_open(p) __atomic_store_n((p), 0, __ATOMIC_RELEASE)
    static int copies_claim(uint32_t *p, uint32_t who) {
        uint32_t nobody = 0;
        return __atomic_compare_exchange_n(p, &nobody, who, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
    }
    #if defined(__x86_64__) || defined(__i386__)
    #define copies_pause() __builtin_ia32_pause()
    #else
    #define copies_pause() ((void)0)
    #endif
    """
    void copies_open(uint32_t *p)
    bint copies_claim(uint32_t *p, uint32_t who)
    void copies_pause()

cdef enum:
    BUCKET_SHARE = 3072      # one bucket for so many bytes: a word for 384
    SMALL_SHARE = 20
    SPINS = 64
    LEASES = 1024
    PAGE = 4096

cdef uint32_t MAGIC = 0x70637767


cdef uint32_t layout() noexcept nogil:
    return <uint32_t>(sizeof(Copy) * 31 + sizeof(CopyStore_) * 7 + sizeof(CopyLane))


cdef inline uint64_t pages(uint64_t n) noexcept nogil:
    return (n + PAGE - 1) & ~<uint64_t>(PAGE - 1)


cdef size_t copies_bytes(uint64_t bytes, uint32_t workers) noexcept nogil:
    """What a store of so many bytes takes: that, in whole pages. 0 when too little would be left for answers."""
    cdef uint64_t all_ = pages(bytes), rest = copies_tables(all_, workers + 1)
    return all_ if all_ >= rest + 16 * PAGE else 0


cdef uint64_t copies_tables(uint64_t bytes, uint32_t processes) noexcept nogil:
    """The part before the rings."""
    cdef uint64_t buckets = bytes // BUCKET_SHARE
    return (pages(sizeof(CopyStore_)) + pages(processes * (sizeof(CopyLane) + 16)) + pages(buckets * 64) + pages((buckets // 2 + 1) * 64)
            + pages(LEASES * 8))


cdef bint copies_format(void *mem, uint64_t bytes, uint32_t workers, const uint64_t *key) noexcept nogil:
    """An empty store, in zeroed memory of which the part before the rings is mapped; bytes are of copies_bytes."""
    cdef CopyStore_ *m = <CopyStore_ *>mem
    cdef uint64_t at = pages(sizeof(CopyStore_)), small
    m.magic, m.layout, m.bytes, m.processes, m.leases = MAGIC, layout(), bytes, workers + 1, LEASES
    m.key[0], m.key[1] = key[0], key[1]
    m.buckets = bytes // BUCKET_SHARE
    m.lanes_off = at
    m.seen_off = at + m.processes * sizeof(CopyLane)
    at += pages(m.processes * (sizeof(CopyLane) + 16))
    m.index_off = at
    at += pages(m.buckets * 64)
    m.ghosts_off = at
    at += pages((m.buckets // 2 + 1) * 64)
    m.leases_off = at
    at += pages(LEASES * 8)
    small = pages((bytes - at) // SMALL_SHARE)
    m.rings[COPY_SMALL].off, m.rings[COPY_SMALL].size = at, small
    m.rings[COPY_MAIN].off, m.rings[COPY_MAIN].size = at + 2 * small, bytes - at - small
    m.ghost_unit = m.rings[COPY_MAIN].size // COPY_GHOSTS + 1
    return True


cdef bint copies_map(Copies *s, int fd, uint32_t process) noexcept nogil:
    """Map the store behind fd for a process. False: it is another build's, has no lane for it, or there is no memory."""
    cdef CopyStore_ head
    cdef char *base
    cdef uint64_t tables, all_, size, at
    cdef int i, k
    memset(s, 0, sizeof(Copies))
    if pread(fd, &head, sizeof(head), 0) != sizeof(head) or head.magic != MAGIC or head.layout != layout() or process >= head.processes:
        return False
    tables = head.rings[COPY_SMALL].off
    all_ = tables + 2 * (head.rings[COPY_SMALL].size + head.rings[COPY_MAIN].size)
    base = <char *>mmap(NULL, all_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if base == MAP_FAILED:
        return False
    if mmap(base, tables, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0) == MAP_FAILED:
        munmap(base, all_)
        return False
    at = tables
    for i in range(2):
        size = head.rings[i].size
        for k in range(2):
            if mmap(base + head.rings[i].off + k * size, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, at) == MAP_FAILED:
                munmap(base, all_)
                return False
        at += size
    s.mem, s.base, s.process = <CopyStore_ *>base, base, process
    s.lane = copies_lane(s, process)
    if s.lane.turn & 1:
        copies_set(&s.lane.turn, s.lane.turn + 1)
    return True


cdef void copies_unmap(Copies *s) noexcept nogil:
    if s.mem != NULL:
        copies_turn_end(s)
        munmap(s.base, s.mem.rings[COPY_SMALL].off + 2 * (s.mem.rings[COPY_SMALL].size + s.mem.rings[COPY_MAIN].size))
        s.mem = NULL


# ---- names --------------------------------------------------------------------------------------------------------

cdef inline uint64_t turned(uint64_t x, int by) noexcept nogil:
    return x << by | x >> (64 - by)


cdef inline void mixed(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[1] = turned(v[1], 13) ^ v[0]
    v[0] = turned(v[0], 32)
    v[2] += v[3]
    v[3] = turned(v[3], 16) ^ v[2]
    v[0] += v[3]
    v[3] = turned(v[3], 21) ^ v[0]
    v[2] += v[1]
    v[1] = turned(v[1], 17) ^ v[2]
    v[2] = turned(v[2], 32)


cdef void copy_key(const Copies *s, CopyKey *key, const char *text, uint32_t size) noexcept nogil:
    """The key of that text, which stays the caller's. Its hash is SipHash-1-3 under a secret of the store: nobody chooses who shares a bucket."""
    cdef uint64_t v[4]
    cdef uint64_t m = 0
    cdef uint32_t at = 0
    v[0], v[1] = s.mem.key[0] ^ 0x736f6d6570736575ULL, s.mem.key[1] ^ 0x646f72616e646f6dULL
    v[2], v[3] = s.mem.key[0] ^ 0x6c7967656e657261ULL, s.mem.key[1] ^ 0x7465646279746573ULL
    while at + 8 <= size:
        memcpy(&m, text + at, 8)
        v[3] ^= m
        mixed(v)
        v[0] ^= m
        at += 8
    m = 0
    memcpy(&m, text + at, size - at)
    m |= <uint64_t>size << 56
    v[3] ^= m
    mixed(v)
    v[0] ^= m
    v[2] ^= 0xff
    mixed(v)
    mixed(v)
    mixed(v)
    key.hash, key.text, key.len = v[0] ^ v[1] ^ v[2] ^ v[3], text, size


# ---- reading ------------------------------------------------------------------------------------------------------

cdef const Copy *copy_find(Copies *s, const CopyKey *key) noexcept nogil:
    """The answer with that key, which stays valid until the turn ends; NULL = none. Counts a use."""
    cdef uint64_t word
    cdef Copy *c
    cdef uint32_t uses
    copies_turn_begin(s)
    if copy_search(s, key, &word) == NULL:
        return NULL
    c = copy_named(s, word)
    uses = copies_peek(&c.uses)
    if uses < COPY_USES:
        copies_mark(&c.uses, uses + 1)
    return c


cdef uint64_t copy_epoch(const Copies *s, const CopyKey *base) noexcept nogil:
    """To be read before an answer is fetched, and given to copy_put: it is not kept if something was purged meanwhile that it may be. base: the key
    without variant."""
    return copies_epoch(s, base.hash & (COPY_EPOCHS - 1))


# ---- the lock -----------------------------------------------------------------------------------------------------

cdef bint copies_lock(Copies *s) noexcept nogil:
    """False: another process is writing."""
    cdef int _i
    for _i in range(SPINS):
        if copies_peek(&s.mem.lock) == 0 and copies_claim(&s.mem.lock, s.process + 1):
            return True
        copies_pause()
    return False


cdef void copies_unlock(Copies *s) noexcept nogil:
    copies_open(&s.mem.lock)


# ---- removing -----------------------------------------------------------------------------------------------------

cdef bint copy_drop(Copies *s, const CopyKey *key) noexcept nogil:
    """Forget the answer with that key (and its variants with it, for their keys have the salt of the marker); nothing that is being fetched under
    the key is kept either. True: there was one. Needs no lock."""
    cdef uint64_t word
    cdef uint64_t *slot
    cdef bint reading = s.reading, found = False
    cdef int _i
    copies_add(&s.mem.epochs[key.hash & (COPY_EPOCHS - 1)], 1)
    copies_turn_begin(s)
    for _i in range(COPY_USES + 2):      # it may be moved meanwhile
        slot = copy_search(s, key, &word)
        if slot == NULL:
            break
        if copies_swap(slot, word, 0):
            found = True
    s.lane.dropped += found
    if not reading:
        copies_turn_end(s)
    return found


cdef bint copy_indexed(const Copies *s, uint32_t ring, uint64_t position) noexcept nogil:
    """Is the answer at a position one that can be found? Under the lock."""
    cdef const Copy *c = copy_at(s, ring, position)
    return copy_locate(s, c.hash, copy_word(s, c.hash, ring, position)) != NULL


cdef bint copy_unindex(Copies *s, uint32_t ring, uint64_t position) noexcept nogil:
    """Forget the answer at a position. Under the lock. False: it was forgotten before."""
    cdef const Copy *c = copy_at(s, ring, position)
    cdef uint64_t word = copy_word(s, c.hash, ring, position)
    cdef uint64_t *slot = copy_locate(s, c.hash, word)
    cdef bint found = slot != NULL and copies_swap(slot, word, 0)
    s.lane.dropped += found
    return found


cdef void copies_retire(Copies *s, uint32_t process) noexcept nogil:
    """A process died: it reads nothing and writes nothing any more. Its leases go by lease_retire."""
    cdef CopyLane *lane = copies_lane(s, process)
    cdef uint64_t word
    cdef uint64_t *slot
    if lane.turn & 1:
        copies_set(&lane.turn, lane.turn + 1)
    if copies_peek(&s.mem.lock) == process + 1:
        word = s.mem.doing
        if word:                         # was something purged in that moment? Nobody can say
            slot = copy_locate(s, copy_named(s, word).hash, word)
            if slot != NULL:
                copies_swap(slot, word, 0)
            copies_set(&s.mem.doing, 0)
        copies_unlock(s)
