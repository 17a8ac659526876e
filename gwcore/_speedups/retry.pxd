# Level 2. May an attempt that failed be followed by another? Pure: no I/O, no clock.
from gwcore._speedups.types cimport uint32_t, uint64_t

cdef enum RetryOn:           # what is retried: bits of the plan's retry_on
    ON_CONNECT = 1
    ON_STALE = 2
    ON_RESET = 4
    ON_TIMEOUT = 8
    ON_429 = 16
    ON_500 = 32
    ON_502 = 64
    ON_503 = 128
    ON_504 = 256

cdef enum:
    ON_SENT = ON_RESET | ON_TIMEOUT | ON_429 | ON_500 | ON_502 | ON_503 | ON_504     # for these a request is kept after it was sent
    RETRY_KINDS = 6
    KIND_HEDGE = 5
    HEDGE_P95 = 0xfffffff    # as a delay: what 95 of 100 answers take
    NEVER_SOON = 0x7fffffff  # milliseconds left when there is no deadline

cdef enum RetryVerdict:      # words: retry.VERDICTS
    RETRY_GO
    RETRY_UNASKED            # not a failure that retry.on names
    RETRY_BEGUN              # the client has seen something of an answer
    RETRY_SPENT              # as many attempts as retry.attempts allows
    RETRY_UNSAFE             # something was sent, and the request is not idempotent
    RETRY_LOST               # not all of the request is there any more
    RETRY_LAYER              # another gateway retries already, or has
    RETRY_DEGRADED           # P2, from level 1 on
    RETRY_LATE               # the answer would come after the deadline

cdef struct Failed:          # one attempt, and all that the verdict hangs on
    int reason               # Reason; 0: the upstream's answer has `status`
    int status
    uint32_t on              # RetryOn of the upstream
    uint32_t extra           # retry.attempts
    uint32_t made            # retries so far
    bint sent                # the kernel took something of the request, in any attempt
    bint idempotent
    bint lost                # the kept copy is not whole
    bint begun               # something of an answer went to the client
    bint inner               # the answer says that it is another gateway's own
    uint32_t hop             # 1, or what a trusted gateway before us says of its attempt
    uint32_t tier
    uint32_t level           # of degradation
    uint32_t left_ms         # to the deadline
    uint32_t wait_ms         # back-off
    uint32_t usual_ms        # half of the upstream's answers take no longer
    uint32_t after_ms        # Retry-After

cdef uint32_t retry_bit(int reason, int status) noexcept nogil
cdef uint32_t retry_kind(uint32_t bit) noexcept nogil
cdef int retry_verdict(const Failed *f) noexcept nogil
cdef uint32_t retry_wait_ms(uint32_t first_ms, uint32_t most_ms, uint32_t k, double chance) noexcept nogil
