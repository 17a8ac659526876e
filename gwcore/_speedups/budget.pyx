"""The budget of retries. Every first attempt deposits a share of a retry, and so does every second; a retry takes a whole one. There are never
more than the deposits of ten seconds.

A first attempt costs a request nothing here: each worker counts its own, in its lane. Whoever wants to retry adds the lanes up, at most once
in FOLD_MS over all workers, and takes a token. A worker that dies leaves its count behind; one that dies within a fold loses what that fold
would have deposited, and no more."""

cdef enum:
    FOLD_MS = 50
    SPAN_S = 10              # so many seconds' deposits are kept
    MILLI_MOST = 1000000000

cdef extern from "<math.h>" nogil:
    double exp(double x)

cdef extern from * nogil:
    """
    #define gw_budget_load(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define gw_budget_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    static inline int gw_budget_swap64(uint64_t *p, uint64_t was, uint64_t to) {
        return __atomic_compare_exchange_n(p, &was, to, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    static inline int gw_budget_swap32(uint32_t *p, uint32_t was, uint32_t to) {
        return __atomic_compare_exchange_n(p, &was, to, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    """
    uint64_t gw_budget_load(const uint64_t *p)
    uint32_t gw_budget_load32 "gw_budget_load"(const uint32_t *p)
    void gw_budget_store(uint32_t *p, uint32_t v)
    bint gw_budget_swap64(uint64_t *p, uint64_t was, uint64_t to)
    bint gw_budget_swap32(uint32_t *p, uint32_t was, uint32_t to)


cdef void budget_set(Budget *b, uint32_t ratio_milli, uint32_t per_s, uint64_t firsts, uint64_t now_ms) noexcept nogil:
    """The deposits, from now on. A new bucket begins with those of ten quiet seconds."""
    gw_budget_store(&b.ratio_milli, ratio_milli)
    gw_budget_store(&b.per_s, per_s)
    if gw_budget_load(&b.folded_ms) == 0 and gw_budget_swap64(&b.folded_ms, 0, now_ms if now_ms else 1):
        gw_budget_swap64(&b.seen, 0, firsts)
        gw_budget_store(&b.milli, per_s * SPAN_S * 1000)


cdef bint budget_due(const Budget *b, uint64_t now_ms) noexcept nogil:
    """May there be deposits to be added?"""
    return now_ms >= gw_budget_load(&b.folded_ms) + FOLD_MS


cdef struct Deposit:
    double recent            # first attempts of the last SPAN_S
    double milli             # to be added
    double most              # what the bucket holds


cdef Deposit deposit_of(const Budget *b, uint64_t fresh, double seconds) noexcept nogil:
    """Of so many first attempts in so much time, if they came evenly."""
    cdef Deposit d
    cdef double keep = exp(-seconds / SPAN_S)
    d.recent = gw_budget_load32(&b.recent_milli) / 1000.0 * keep + (<double>fresh / seconds * SPAN_S * (1 - keep) if seconds > 0 else 0)
    d.milli = <double>fresh * gw_budget_load32(&b.ratio_milli) + seconds * 1000 * gw_budget_load32(&b.per_s)
    d.most = d.recent * gw_budget_load32(&b.ratio_milli) + <double>SPAN_S * 1000 * gw_budget_load32(&b.per_s)
    if d.most > MILLI_MOST:
        d.most = MILLI_MOST
    return d


cdef uint32_t filled(uint32_t milli, const Deposit *d) noexcept nogil:
    """The bucket after a deposit. It runs over, also when it holds less than before because there are fewer first attempts now."""
    cdef double to = milli + d.milli
    return <uint32_t>(to if to < d.most else d.most)


cdef void budget_fold(Budget *b, uint64_t firsts, uint64_t now_ms) noexcept nogil:
    """Add the deposits since the last fold. firsts: first attempts of all workers so far. Several may call it at once: each deposit is added
    by one of them."""
    cdef uint64_t last = gw_budget_load(&b.folded_ms), seen, fresh = 0
    cdef uint32_t was
    cdef Deposit d
    if now_ms < last + FOLD_MS or not gw_budget_swap64(&b.folded_ms, last, now_ms):
        return
    while True:
        seen = gw_budget_load(&b.seen)
        if firsts <= seen:
            break
        if gw_budget_swap64(&b.seen, seen, firsts):
            fresh = firsts - seen
            break
    d = deposit_of(b, fresh, (now_ms - last) / 1000.0)
    gw_budget_store(&b.recent_milli, <uint32_t>(d.recent * 1000 + 0.5 if d.recent < 4000000 else 4000000000.0))
    while True:
        was = gw_budget_load32(&b.milli)
        if gw_budget_swap32(&b.milli, was, filled(was, &d)):
            return


cdef bint budget_take(Budget *b) noexcept nogil:
    """Pay for one retry; False when the bucket is empty."""
    cdef uint32_t was
    while True:
        was = gw_budget_load32(&b.milli)
        if was < 1000:
            return False
        if gw_budget_swap32(&b.milli, was, was - 1000):
            return True


cdef void budget_give(Budget *b) noexcept nogil:
    """Take back the pay for a retry that was not made."""
    cdef uint32_t was
    while True:
        was = gw_budget_load32(&b.milli)
        if gw_budget_swap32(&b.milli, was, was + 1000):
            return


cdef uint32_t budget_level(const Budget *b, uint64_t firsts, uint64_t now_ms) noexcept nogil:
    """What a fold would leave in it, in thousandths of a retry. Changes nothing."""
    cdef uint64_t last = gw_budget_load(&b.folded_ms), seen = gw_budget_load(&b.seen)
    cdef Deposit d
    if now_ms <= last or last == 0:
        return gw_budget_load32(&b.milli)
    d = deposit_of(b, firsts - seen if firsts > seen else 0, (now_ms - last) / 1000.0)
    return filled(gw_budget_load32(&b.milli), &d)


def budget_trace(uint32_t ratio_milli, uint32_t per_s, events) -> list:
    """For tests: a budget over time. events are (now_ms, first attempts so far, retries wanted); returned are (retries granted, what is left,
    in thousandths, as somebody sees it who only looks, before them)."""
    cdef Budget b
    cdef uint64_t now_ms, firsts
    cdef uint32_t level
    cdef list out = []
    b.folded_ms = b.seen = 0
    b.milli = b.recent_milli = 0
    for i, (now_ms, firsts, wanted) in enumerate(events):
        if i == 0:
            budget_set(&b, ratio_milli, per_s, firsts, now_ms)
        level = budget_level(&b, firsts, now_ms)
        granted = 0
        for _ in range(wanted):
            if budget_due(&b, now_ms):
                budget_fold(&b, firsts, now_ms)
            granted += budget_take(&b)
        out.append((granted, level))
    return out
