# Level 9. What is known of one request and its answer. Owned by exchange.pyx; forward, answer and accesslog read it.
from gwcore._speedups.breaker_core cimport PermitRef
from gwcore._speedups.buffer cimport Buf, ByteQueue
from gwcore._speedups.chunked cimport Chunked
from gwcore._speedups.conn cimport Conn, LocalPlan, Worker
from gwcore._speedups.origin cimport Origin
from gwcore._speedups.plan cimport Ladder, Route
from gwcore._speedups.slab cimport SlabItem
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t
from gwcore._speedups.upstream cimport Endpoint, Upstream
from gwcore._speedups.waiting cimport Waiter
from libc.stdint cimport int64_t, uint8_t, uint16_t

cdef enum Phase:
    X_FREE
    X_QUEUED                 # waits for a place in a pool
    X_BACKOFF                # an attempt failed; waits to make another
    X_CONNECTING
    X_SENT                   # the head is on its way to the upstream, nothing of an answer came
    X_ANSWERING              # the answer's head went to the client
    X_FLUSHING               # the answer is complete, the client has not taken all of it
    X_DISCARDING             # answered; the rest of the request body is read and dropped
    X_TUNNEL                 # another protocol by now; plan and route are NULL

cdef enum Degraded: DEGRADED_NO, DEGRADED_CACHE, DEGRADED_STATIC
cdef enum CacheHow:          # what the cache had to do with it; words: shm.CACHE_WORDS
    CACHE_NONE, CACHE_HIT, CACHE_STALE, CACHE_ERROR, CACHE_MISS, CACHE_VARY, CACHE_EXPIRED, CACHE_BYPASS
    CACHE_HOWS

cdef enum BodyState: REQ_DONE, REQ_STREAM, REQ_DISCARD

cdef enum Asked:             # does it wait for a copy from Redis?
    ASKED_NOBODY
    ASKED_WAITS
    ASKED_DONE               # what there is is in the machine's store

cdef struct Exchange:
    SlabItem item            # first member
    Waiter waiter            # while queued
    uint32_t waiter_owner    # must follow the waiter: see waiter_exchange
    Conn *client
    Conn *up                 # NULL while none is held
    Conn *rival              # being made beside `up`, to another address of the same name; NULL = none
    Exchange *twin           # the same request, tried at another endpoint meanwhile (see hedge.pyx); NULL = none
    LocalPlan *plan
    const Route *route
    const Ladder *ladder     # what else it may get; NULL = no route yet, or one that answers by itself
    Buf *kept                # what the static step needs of the head; later its body
    Upstream *upstream
    Endpoint *endpoint
    PermitRef permit         # of the upstream's breaker, for this attempt; permit.pyx takes and ends both
    PermitRef endpoint_permit    # of the breaker in endpoint_slot
    uint32_t endpoint_slot
    uint32_t retry_after_s   # what a refusal tells its client; 0 = a second
    uint16_t first_reason    # why the attempt before this one failed: what the client is told when no other may be made
    uint8_t refusal          # BreakerRefusal
    ByteQueue replay         # the request as it is sent upstream, as long as it may have to be sent again
    Buf *note                # what log and answers need of the head: path, then request id
    Buf *copying             # Keep: of an answer that may be kept, or changes what is; NULL = neither
    uint32_t note_path_len
    uint32_t note_id_len
    uint32_t note_route_len  # of a tunnel, which has no plan
    uint32_t route_slot      # the same
    uint32_t tunnel_idle_ms  # the same
    Buf *request_trailers    # what came of them, while they are wanted
    Buf *response_trailers
    Chunked request_chunks
    Chunked response_chunks
    Origin origin            # the client, which a trusted proxy may have named
    uint64_t pool_key        # which idle connections may be reused, for pool.granularity: template
    uint64_t hash            # for balance: hash
    uint32_t hash_target     # index of the upstream in the plan
    uint64_t start_us
    uint64_t queued_us
    uint64_t queue_deadline_ms   # set when it first waited
    uint64_t deadline_ms     # the head of an answer must be there by then, whatever is tried meanwhile; 0 = no such limit
    uint64_t try_due_ms      # the same of the present attempt
    uint64_t hedge_due_ms    # when it is tried elsewhere, too, should no answer have come; 0 = never
    uint64_t connect_us      # start of the present connect
    uint64_t connected_us
    uint64_t sent_us         # the present attempt has all of the request
    uint64_t first_byte_us
    uint64_t body_since_ms
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t body_limit      # bytes; 0 = none
    uint64_t body_seen       # bytes of the request body, framing not counted
    uint64_t request_left    # of a body with a length
    uint64_t response_left   # not taken from the upstream yet
    size_t piped             # bytes of the answer that stand in the pipe
    uint32_t pipe            # number + 1; 0 = the answer is copied
    uint64_t discarded
    uint64_t allowed         # methods that the path would have taken
    uint64_t body_mark       # body_seen when the timer looked last
    uint64_t body_mark_ms
    uint64_t body_look_ms    # when the timer looks next: bytes that come do not put it off
    uint64_t body_base       # body_seen at body_since_ms, from where the rate is measured
    uint32_t drill_serial    # of the drill that drew it
    uint32_t head_at         # of replay: bytes of the head before the lines that each attempt has of its own
    uint32_t head_skip       # bytes of those lines as they were kept
    uint32_t queue_us
    uint32_t connecting_us
    uint16_t status
    uint16_t reason
    uint16_t retried         # status of an answer after which the request was tried again; 0 = the last retry had another cause
    uint8_t phase            # Phase; exchange_move alone writes it
    uint8_t method
    uint8_t http10
    uint8_t keep_alive       # what the client asked for
    uint8_t request_body     # BodyState
    uint8_t request_kind     # BodyKind
    uint8_t response_kind    # BodyKind
    uint8_t chunk_out        # answer is sent in chunks
    uint8_t expects_continue # 100 is still due
    uint8_t idempotent
    uint8_t replay_lost      # the replay copy is not whole
    uint8_t reused           # the connection was idle before
    uint8_t bytes_sent       # something of the request was taken by the kernel
    uint8_t interims         # 1xx passed on
    uint8_t attempts
    uint8_t stale_used
    uint8_t raced            # this attempt has tried another address of the name
    uint8_t upstream_keep    # the upstream lets its connection live
    uint8_t got_bytes        # something of the answer came
    uint8_t te_trailers
    uint8_t upgrade          # number + 1 of the route's token that the client asked for
    uint8_t tier
    uint8_t degraded         # Degraded: what the client got instead of a live answer
    uint8_t cached           # CacheHow
    uint8_t collecting       # the answer is copied on its way, to be kept
    uint8_t early            # it may be a copy of an old one: it came in early data here, or says that it did before
    uint8_t hop              # number that a trusted gateway before us gave its attempt; 1 = the first, or nobody said
    uint8_t budget_empty     # the budget would not pay for another
    uint8_t retries          # attempts after the first that were charged to the budget
    uint8_t placed           # it holds a place of the concurrency limit; admission.pyx takes and gives both
    uint8_t limited          # the limit, not the pool, had no place for it
    uint8_t turn             # it comes out of the queue
    uint8_t drowned          # it left the queue by controlled delay
    uint8_t asked            # Asked
    uint8_t fault            # Fault: a drill makes it fail so
    uint8_t drill            # the drill's place in the segment
    uint8_t compensates      # it is answered statically only when it stands in the journal

cdef inline uint64_t by_deadline(const Exchange *x, uint64_t due_ms) noexcept nogil:
    """A time limit, or the deadline if that is sooner."""
    return x.deadline_ms if x.deadline_ms and x.deadline_ms < due_ms else due_ms

cdef inline bint has_failed(const Exchange *x) noexcept nogil:
    """Is it no answer as its client wanted it? Of one that is over, and was not degraded."""
    return x.reason != 0 or x.status >= 500 or x.status < 200

cdef inline uint64_t answer_us(const Exchange *x, uint64_t us) noexcept nogil:
    """When the answer came: its head, where it is the upstream's; us, when the exchange ended, where it is the gateway's own."""
    return x.first_byte_us - x.start_us if x.first_byte_us and not x.degraded and not x.reason else us

cdef inline bint deadline_over(const Worker *w, const Exchange *x) noexcept nogil:
    return x.deadline_ms != 0 and w.now_ms >= x.deadline_ms
