"""The rules of retries. What may be sent again at all: anything of which nothing was sent; else what is idempotent by its method, or by an
Idempotency-Key, and is still there whole. Whether it is: retry.on, retry.attempts, the time that is left, other gateways, the tier. The budget
is asked last, by whoever has a RETRY_GO."""
from gwcore._speedups.reasons cimport RETRY_ANY, RETRY_IDEMPOTENT, R_DNS_FAILED, R_RESPONSE_TIMEOUT, R_UPSTREAM_WRITE_TIMEOUT, reason_row

VERDICTS = ("go", "unasked", "begun", "spent", "unsafe", "lost", "layer", "degraded", "late")
P95 = HEDGE_P95
ON = {"connect": ON_CONNECT, "stale": ON_STALE, "reset": ON_RESET, "timeout": ON_TIMEOUT,
      429: ON_429, 500: ON_500, 502: ON_502, 503: ON_503, 504: ON_504}


cdef uint32_t retry_bit(int reason, int status) noexcept nogil:
    """The bit of RetryOn under which a failure falls; 0 = it is never retried."""
    if reason == 0:
        return ON_503 if status == 503 else ON_502 if status == 502 else ON_504 if status == 504 else ON_500 if status == 500 \
            else ON_429 if status == 429 else 0
    if reason == R_DNS_FAILED:               # no attempt was made
        return 0
    if reason_row(reason).retry == RETRY_ANY:
        return ON_CONNECT
    if reason_row(reason).retry == RETRY_IDEMPOTENT:
        return ON_TIMEOUT if reason == R_RESPONSE_TIMEOUT or reason == R_UPSTREAM_WRITE_TIMEOUT else ON_RESET
    return 0


cdef uint32_t retry_kind(uint32_t bit) noexcept nogil:
    """Where a retry is counted: connect, stale, reset, timeout, status."""
    return 0 if bit == ON_CONNECT else 1 if bit == ON_STALE else 2 if bit == ON_RESET else 3 if bit == ON_TIMEOUT else 4


cdef int retry_verdict(const Failed *f) noexcept nogil:
    """RETRY_GO, or the first rule that forbids it."""
    if not retry_bit(f.reason, f.status) & f.on:
        return RETRY_UNASKED
    if f.begun:
        return RETRY_BEGUN
    if f.made >= f.extra:
        return RETRY_SPENT
    if f.sent and not f.idempotent:
        return RETRY_UNSAFE
    if f.lost:
        return RETRY_LOST
    if f.hop > 1 or (f.reason == 0 and f.inner):
        return RETRY_LAYER
    if f.tier == 2 and f.level:
        return RETRY_DEGRADED
    if f.left_ms < NEVER_SOON and (f.wait_ms + f.usual_ms >= f.left_ms or f.after_ms > f.left_ms):
        return RETRY_LATE
    return RETRY_GO


cdef uint32_t retry_wait_ms(uint32_t first_ms, uint32_t most_ms, uint32_t k, double chance) noexcept nogil:
    """Full jitter: evenly from 0 to first * 2^k, at most `most`. k = 0 before the first retry; chance is in [0, 1)."""
    cdef uint64_t top = <uint64_t>first_ms << (k if k < 31 else 31)
    return <uint32_t>(chance * (top if top < most_ms else most_ms))


def verdict(**given) -> str:
    """For tests: the word of the verdict on a failure whose other circumstances all allow a retry."""
    cdef Failed f
    f = {**dict(reason=0, status=0, on=511, extra=1, made=0, sent=True, idempotent=True, lost=False, begun=False, inner=False, hop=1, tier=1, level=0,
                left_ms=NEVER_SOON, wait_ms=0, usual_ms=0, after_ms=0), **given}
    return VERDICTS[retry_verdict(&f)]


def wait_ms(uint32_t first_ms, uint32_t most_ms, uint32_t k, double chance) -> int:
    """For tests."""
    return retry_wait_ms(first_ms, most_ms, k, chance)
