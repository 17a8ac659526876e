# Level 5. Upstream connections as places in a pool. The pool does no I/O and reads no clock: it says what to do.
#   pool_acquire -> POOL_REUSE (an item) | POOL_CONNECT (open one) | POOL_FULL (wait in the WaitQueue)
from gwcore._speedups.types cimport Link, uint32_t, uint64_t

cdef enum PoolVerdict:
    POOL_REUSE = 1
    POOL_CONNECT = 2
    POOL_FULL = 3
    POOL_EVICT = 4

cdef enum ItemState: ITEM_FREE, ITEM_OPENING, ITEM_BUSY, ITEM_IDLE

cdef enum CloseReason:       # words: shm.CLOSE_WORDS
    CLOSE_IDLE, CLOSE_MAX_REQUESTS, CLOSE_MAX_AGE, CLOSE_PEER, CLOSE_ERROR, CLOSE_STALE, CLOSE_EVICTED, CLOSE_DRAIN, CLOSE_TIMEOUT, CLOSE_ABORTED, CLOSE_TUNNEL, CLOSE_STRAY
    CLOSE_COUNT

cdef enum:
    POOL_BUCKETS = 512

cdef struct PoolItem:        # embedded in a connection
    Link link                # first member; linked while idle, most recently used first
    Link same                # second member; while idle in the bucket of its key, when the pool has templates
    uint64_t key             # template: only requests with this key may reuse it
    uint64_t used_ms         # released last
    uint64_t retire_ms       # not reused after this
    uint32_t requests
    uint32_t state           # ItemState; pool_move alone writes it
    uint32_t owner           # slab place of the connection
    uint32_t hint_ms         # how long the peer said it may idle; 0 = it said nothing
    PoolCore *pool

cdef struct PoolCore:
    Link idle
    Link *buckets            # POOL_BUCKETS of idle items by key; NULL = any request may reuse any item
    uint32_t n_idle
    uint32_t n_busy
    uint32_t n_opening
    uint32_t max_connections
    uint32_t max_idle
    uint32_t max_requests
    uint32_t min_idle        # kept warm by this worker
    uint32_t granted_ms      # learned: the peer closes connections that idle longer; 0 = it never did
    uint64_t granted_at_ms   # learned then
    uint64_t idle_ms
    uint64_t max_age_ms
    uint32_t *shared_open    # connections of all workers (atomic); NULL = this pool alone
    uint32_t *own_open       # the same of this worker: given back by the supervisor when the worker dies
    uint32_t *wanted         # number + 1 of a worker that waits for a place; 0 = none
    uint32_t worker          # number + 1 of this one
    uint32_t fair            # its share of max_connections: with no more it gives way to nobody
    uint64_t opens
    uint64_t reuses
    uint64_t closed[12]
    uint32_t illegal
    uint32_t draining        # keep nothing idle

cdef void pool_init(PoolCore *p) noexcept nogil
cdef void item_init(PoolItem *item, PoolCore *p, uint32_t owner) noexcept nogil
cdef bint pool_templates(PoolCore *p) noexcept nogil
cdef void pool_free(PoolCore *p) noexcept nogil
cdef bint pool_at_cap(const PoolCore *p) noexcept nogil
cdef bint pool_pressed(const PoolCore *p) noexcept nogil
cdef void pool_ask(PoolCore *p) noexcept nogil
cdef void pool_unask(PoolCore *p) noexcept nogil
cdef bint pool_has_place(const PoolCore *p) noexcept nogil
cdef int pool_acquire(PoolCore *p, PoolItem **out, uint64_t key, uint64_t now_ms) noexcept nogil
cdef void pool_opening(PoolCore *p, PoolItem *item, uint32_t owner, uint64_t key, uint64_t now_ms, uint32_t jitter) noexcept nogil
cdef void pool_opened(PoolItem *item) noexcept nogil
cdef int pool_release(PoolItem *item, uint64_t now_ms) noexcept nogil
cdef void pool_closed(PoolItem *item, int why) noexcept nogil
cdef PoolItem *pool_oldest(PoolCore *p, uint64_t now_ms) noexcept nogil

cdef inline uint32_t pool_open(const PoolCore *p) noexcept nogil:
    return p.n_idle + p.n_busy + p.n_opening
