# Level 1. Copies of answers in memory that all workers of a machine share: two byte rings and an index, whose readers never wait.
from gwcore._speedups.sys cimport iovec
from gwcore._speedups.types cimport Str, size_t, uint32_t, uint64_t
from libc.stdint cimport uint16_t
from libc.string cimport memcmp

cdef enum:
    COPY_USES = 7            # more uses than this are not counted
    COPY_EPOCHS = 1024
    COPY_GHOSTS = 1024       # units of the ghosts' clock: they live for so long
    COPY_WAYS = 8            # words in a bucket of the index
    COPY_SMALL = 0           # rings
    COPY_MAIN = 1

cdef enum CopyResult:        # what became of an answer that was to be kept; words: copystore.RESULT_WORDS
    COPY_STORED              # = RC_OK
    COPY_LARGE               # more than a quarter of the store
    COPY_BUSY                # another process was writing
    COPY_WAIT                # readers still hold the bytes that it would take
    COPY_OUTDATED            # something was purged since its fetch began
    COPY_RESULTS

cdef struct CopyKey:         # made by copy_key
    uint64_t hash
    const char *text
    uint32_t len

cdef struct CopyMeta:        # times are of CLOCK_MONOTONIC, in ms
    uint64_t stored_ms
    uint64_t fresh_ms        # fresh until then
    uint64_t revalidate_ms   # may be served while it is revalidated, until
    uint64_t error_ms        # may be served in place of an error, until
    uint64_t usable_ms       # may be served by a ladder, until
    uint64_t keep_ms         # of no use at all after that: the store drops it first; 0 = it never ends
    uint64_t salt            # of a marker: part of the keys of its variants
    uint32_t age_s           # its Age when it was stored
    uint32_t flags           # the store does not read them
    uint16_t status
    uint16_t variants        # of a marker
    uint32_t unused
    Str url                  # in the key's text; what purges look at
    Str etag                 # these in the head's text
    Str last_modified
    Str vary

cdef struct CopyText:        # bytes to be stored, in pieces
    const iovec *iov
    int n
    size_t bytes             # of all of them

cdef struct Copy:            # a stored answer; its texts follow: key, head, tags (names with a space between), body
    uint64_t hash
    uint32_t size            # of all of it in its ring
    uint32_t uses            # 0 to COPY_USES, since it came where it is
    uint32_t key_len
    uint32_t head_len
    uint32_t tags_len
    uint32_t body_len
    CopyMeta meta

cdef struct CopyRing:        # positions only grow; the byte of a position is position % size
    uint64_t off             # of its bytes from the Store's base: they are mapped twice in a row, so nothing is ever cut at the end
    uint64_t size
    uint64_t head            # the next answer is appended here
    uint64_t tail            # the oldest answer
    uint64_t freed           # bytes before it may be written over
    uint64_t pending         # bytes before it may be, when every process is past `seen`
    uint64_t unused[2]

cdef struct CopyLane:        # of one process; it alone writes it
    uint64_t turn            # odd = it may hold pointers into the rings
    uint64_t unused[7]
    uint64_t results[8]      # by CopyResult
    uint64_t stored_bytes
    uint64_t replaced        # of stored: in the place of one with the same key
    uint64_t ghosts          # of stored: known from before, so they went to the main ring at once
    uint64_t promoted        # from the small ring to the main one
    uint64_t kept            # used since they came, so they went round the main ring again
    uint64_t evicted[2]      # by ring: not used enough
    uint64_t expired         # dropped after their time
    uint64_t crowded         # dropped because the index had no place
    uint64_t dropped         # by key or by purge
    uint64_t leases
    uint64_t copied_bytes    # by promoted and kept
    uint64_t redis[8]        # copystore.REDIS_WORDS
    uint64_t unused_too[4]

cdef struct CopyStore_:      # what all processes share; at the beginning of the memory
    uint32_t magic
    uint32_t layout
    uint64_t bytes           # of the memory
    uint32_t processes       # workers, and the supervisor as the last
    uint32_t leases          # places for them
    uint64_t buckets         # of the index, with 8 words each
    uint64_t lanes_off
    uint64_t seen_off        # turns of all processes, for each ring: what `pending` waits for
    uint64_t index_off
    uint64_t ghosts_off
    uint64_t leases_off
    uint64_t key[2]          # of the hash; secret
    uint64_t ghost_unit      # bytes that small answers lost by eviction while the ghosts' clock moves on by one
    uint64_t unused[3]
    uint32_t lock            # atomic: 1 + the process that writes, 0 = nobody
    uint32_t unused_too
    uint64_t doing           # the index word that the writer is about to publish: taken back if it dies
    uint64_t ghost_bytes     # lost by eviction so far
    uint64_t mean            # bytes of an answer, over the last thousand or so, times 1024
    uint64_t unused_three[4]
    CopyRing rings[2]        # small, main
    uint64_t epoch           # atomic: purges by url, prefix and tag
    uint64_t epochs[1024]    # atomic, by hash: drops by key

cdef struct Copies:          # one process's view of it
    CopyStore_ *mem
    char *base               # of its mapping: the rings' offsets count from here
    CopyLane *lane
    uint32_t process
    bint reading             # this turn holds pointers
    uint32_t dies_in         # tests: the process is killed at so manieth step of writing from here; 0 = never

cdef size_t copies_bytes(uint64_t bytes, uint32_t workers) noexcept nogil
cdef uint64_t copies_tables(uint64_t bytes, uint32_t processes) noexcept nogil
cdef bint copies_format(void *mem, uint64_t bytes, uint32_t workers, const uint64_t *key) noexcept nogil
cdef bint copies_map(Copies *s, int fd, uint32_t process) noexcept nogil
cdef void copies_unmap(Copies *s) noexcept nogil

cdef void copy_key(const Copies *s, CopyKey *key, const char *text, uint32_t size) noexcept nogil
cdef const Copy *copy_find(Copies *s, const CopyKey *key) noexcept nogil
cdef uint64_t copy_epoch(const Copies *s, const CopyKey *base) noexcept nogil
cdef bint copy_drop(Copies *s, const CopyKey *key) noexcept nogil

cdef void copies_retire(Copies *s, uint32_t process) noexcept nogil

# for who walks over the rings
cdef bint copies_lock(Copies *s) noexcept nogil
cdef void copies_unlock(Copies *s) noexcept nogil
cdef bint copy_indexed(const Copies *s, uint32_t ring, uint64_t position) noexcept nogil
cdef bint copy_unindex(Copies *s, uint32_t ring, uint64_t position) noexcept nogil

cdef extern from * nogil:
    """
    #define copies_set(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define copies_add(p, v) __atomic_add_fetch((p), (v), __ATOMIC_SEQ_CST)
    #define copies_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define copies_peek(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define copies_mark(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    static inline int copies_swap(unsigned long *p, unsigned long was, unsigned long to) {
        return __atomic_compare_exchange_n(p, &was, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    }
    """
    void copies_set(uint64_t *p, uint64_t v)
    uint64_t copies_add(uint64_t *p, uint64_t v)
    uint64_t copies_load(const uint64_t *p)
    uint32_t copies_peek(const uint32_t *p)
    void copies_mark(uint32_t *p, uint32_t v)
    bint copies_swap(uint64_t *p, uint64_t was, uint64_t to)

cdef inline void copies_turn_begin(Copies *s) noexcept nogil:
    """From here to the end of the turn what copy_find finds stays where it is. copy_find does this itself."""
    if not s.reading:
        s.reading = True
        copies_add(&s.lane.turn, 1)      # with a full fence: no look-up may come before it

cdef inline void copies_turn_end(Copies *s) noexcept nogil:
    """No pointer to a Copy is held any more. One store, and only in a turn with a look-up."""
    if s.reading:
        s.reading = False
        copies_set(&s.lane.turn, s.lane.turn + 1)

cdef inline const char *copy_text(const Copy *c) noexcept nogil:
    """The key; head, tags and body follow it."""
    return <const char *>(c + 1)

cdef inline const char *copy_head(const Copy *c) noexcept nogil:
    return <const char *>(c + 1) + c.key_len

cdef inline const char *copy_tags(const Copy *c) noexcept nogil:
    return <const char *>(c + 1) + c.key_len + c.head_len

cdef inline const char *copy_body(const Copy *c) noexcept nogil:
    return <const char *>(c + 1) + c.key_len + c.head_len + c.tags_len

# ---- within the store: copies, copyput, leases

cdef inline CopyLane *copies_lane(const Copies *s, uint32_t process) noexcept nogil:
    return <CopyLane *>(s.base + s.mem.lanes_off) + process

cdef inline uint64_t *copies_seen(const Copies *s, uint32_t ring) noexcept nogil:
    return <uint64_t *>(s.base + s.mem.seen_off) + ring * s.mem.processes

cdef inline uint64_t copies_part(uint64_t bits, uint64_t n) noexcept nogil:
    """0 to n - 1, by the lower half of bits."""
    return <uint64_t><uint32_t>bits * n >> 32

cdef inline uint64_t *copy_bucket(const Copies *s, uint64_t hash_, int which) noexcept nogil:
    """The words of one of the two buckets of a hash."""
    if which:
        hash_ = (hash_ ^ hash_ >> 29) * 0x9e3779b97f4a7c15ULL >> 32
    return <uint64_t *>(s.base + s.mem.index_off) + copies_part(hash_, s.mem.buckets) * COPY_WAYS

cdef inline uint64_t copy_word(const Copies *s, uint64_t hash_, uint32_t ring, uint64_t position) noexcept nogil:
    """31 bits of the hash, of which one is set so that no word is 0; the ring; and where in it, by 16 bytes."""
    return (hash_ >> 33 | 1) << 33 | <uint64_t>ring << 32 | position % s.mem.rings[ring].size >> 4

cdef inline Copy *copy_named(const Copies *s, uint64_t word) noexcept nogil:
    return <Copy *>(s.base + s.mem.rings[word >> 32 & 1].off + (<uint64_t><uint32_t>word << 4))

cdef inline Copy *copy_at(const Copies *s, uint32_t ring, uint64_t position) noexcept nogil:
    """The answer at a position between tail and head."""
    return <Copy *>(s.base + s.mem.rings[ring].off + position % s.mem.rings[ring].size)

cdef inline uint64_t *copy_locate(const Copies *s, uint64_t hash_, uint64_t word) noexcept nogil:
    """Where the index has that word; NULL = nowhere."""
    cdef uint64_t *at
    cdef int i, k
    for k in range(2):
        at = copy_bucket(s, hash_, k)
        for i in range(COPY_WAYS):
            if copies_load(&at[i]) == word:
                return &at[i]
    return NULL

cdef inline uint64_t *copy_search(const Copies *s, const CopyKey *key, uint64_t *word) noexcept nogil:
    """Where the index has the answer with that key; NULL = nowhere. In a turn, or under the lock."""
    cdef uint64_t print_ = key.hash >> 33 | 1, w
    cdef uint64_t *at
    cdef const Copy *c
    cdef int i, k
    for k in range(2):
        at = copy_bucket(s, key.hash, k)
        for i in range(COPY_WAYS):
            w = copies_load(&at[i])
            if w >> 33 == print_:
                c = copy_named(s, w)
                if c.hash == key.hash and c.key_len == key.len and memcmp(c + 1, key.text, key.len) == 0:
                    word[0] = w
                    return &at[i]
    return NULL

cdef inline uint64_t copies_epoch(const Copies *s, uint64_t place) noexcept nogil:
    return place << 54 | (copies_load(&s.mem.epoch) + copies_load(&s.mem.epochs[place])) & 0x3fffffffffffffULL
