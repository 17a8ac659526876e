"""Hedging, the part that every request of such an upstream sees: when its second try is due. And how two tries change places: the exchange of the
client always gets the one that goes on, so that all of it (log, limits, body) works as if there had been one."""
from libc.stdint cimport uint32_t, uint64_t

from gwcore._speedups.histogram cimport HISTOGRAM_CELLS, histogram_quantile_us
from gwcore._speedups.retry cimport HEDGE_P95
from gwcore._speedups.upstream cimport Upstream

cdef enum:
    LOOK_MS = 1000           # the P95 is measured so often at the most,
    LOOK_ANSWERS = 100       # and of so many answers at least


cdef uint32_t hedge_delay_ms(Worker *w, Upstream *u) noexcept nogil:
    """How long an answer is waited for alone; 0 = for ever, because nothing was measured yet."""
    cdef uint32_t fresh[HISTOGRAM_CELLS]
    cdef uint64_t total = 0
    cdef uint32_t i
    if u.hedge_ms != HEDGE_P95:
        return u.hedge_ms
    if w.now_ms >= u.hedge_look_ms:
        u.hedge_look_ms = w.now_ms + LOOK_MS
        for i in range(HISTOGRAM_CELLS):
            fresh[i] = u.cell.seconds[i] - u.hedge_seen[i]
            total += fresh[i]
        if total >= LOOK_ANSWERS:
            u.hedge_p95_ms = 1 + <uint32_t>(histogram_quantile_us(fresh, 0.95) / 1000)
            for i in range(HISTOGRAM_CELLS):
                u.hedge_seen[i] = u.cell.seconds[i]
    return u.hedge_p95_ms


cdef void hedge_arm(Worker *w, Exchange *x) noexcept nogil:
    """All of a request is sent. If it may be tried twice, say when; whoever arms the timer of its connection minds that (answer_due)."""
    cdef uint32_t ms
    if not x.idempotent or x.replay_lost or x.retries or x.hop > 1 or x.upgrade or x.bytes_out or x.client.sink or x.upstream.retry_extra == 0 \
            or x.upstream.n < 2:
        return
    ms = hedge_delay_ms(w, x.upstream)
    if ms:
        x.hedge_due_ms = w.now_ms + ms


cdef void twin_swap(Exchange *x, Exchange *y) noexcept nogil:
    """Exchange the attempts of the two, with all that these hold. Their timers are those of their connections, and stay with them."""
    x.up, y.up = y.up, x.up
    x.rival, y.rival = y.rival, x.rival
    if x.up != NULL:
        x.up.exchange = x
    if y.up != NULL:
        y.up.exchange = y
    if x.rival != NULL:
        x.rival.exchange = x
    if y.rival != NULL:
        y.rival.exchange = y
    x.endpoint, y.endpoint = y.endpoint, x.endpoint
    x.permit, y.permit = y.permit, x.permit
    x.endpoint_permit, y.endpoint_permit = y.endpoint_permit, x.endpoint_permit
    x.endpoint_slot, y.endpoint_slot = y.endpoint_slot, x.endpoint_slot
    x.placed, y.placed = y.placed, x.placed
    x.try_due_ms, y.try_due_ms = y.try_due_ms, x.try_due_ms
    x.connect_us, y.connect_us = y.connect_us, x.connect_us
    x.connecting_us, y.connecting_us = y.connecting_us, x.connecting_us
    x.sent_us, y.sent_us = y.sent_us, x.sent_us
    x.raced, y.raced = y.raced, x.raced
    x.reused, y.reused = y.reused, x.reused
    x.got_bytes, y.got_bytes = y.got_bytes, x.got_bytes
