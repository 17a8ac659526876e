"""The timer wheel (after Varghese and Lauck, hashed hierarchical wheels)."""
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from gwcore._speedups.types cimport Link, link_append, link_drop, link_empty, link_init, uint32_t, uint64_t


cdef extern from *:
    """
    static inline int gw_ctz64(unsigned long long v) { return __builtin_ctzll(v); }
    """
    int gw_ctz64(uint64_t v) noexcept nogil


cdef void wheel_init(Wheel *w, uint64_t now_ms) noexcept nogil:
    cdef int i
    memset(w, 0, sizeof(Wheel))
    for i in range(256):
        link_init(&w.near[i])
    for i in range(512):
        link_init(&w.far[i])
    link_init(&w.due)
    w.now_ms = now_ms


cdef void timer_init(Timer *t, uint32_t owner, uint32_t kind) noexcept nogil:
    link_init(&t.link)
    t.due_ms = t.at_ms = 0
    t.owner = owner
    t.kind = kind


cdef void timer_link(Wheel *w, Timer *t) noexcept nogil:
    """Link the timer at its due time (at once when that is past)."""
    cdef uint64_t at = t.due_ms, slot
    link_drop(&t.link)
    if t.at_ms == 0:
        w.armed += 1
    if at <= w.now_ms:
        at = w.now_ms + 1
    if at // 256 == w.now_ms // 256:            # the same round of the near wheel
        w.near_bits[(at % 256) // 64] |= <uint64_t>1 << (at % 64)
        link_append(&w.near[at % 256], &t.link)
    else:
        slot = at // 256
        if slot - w.now_ms // 256 > 511:
            slot = w.now_ms // 256 + 511
            at = slot * 256
        w.far_bits[(slot % 512) // 64] |= <uint64_t>1 << (slot % 64)
        link_append(&w.far[slot % 512], &t.link)
    t.at_ms = at


cdef void timer_cancel(Wheel *w, Timer *t) noexcept nogil:
    """Forget the deadline; cancelling twice is harmless."""
    link_drop(&t.link)
    if t.at_ms:
        w.armed -= 1
    t.due_ms = t.at_ms = 0


cdef void cascade(Wheel *w, uint64_t slot) noexcept nogil:
    cdef Link *head = &w.far[slot % 512]
    cdef Timer *t
    w.far_bits[(slot % 512) // 64] &= ~(<uint64_t>1 << (slot % 64))
    while not link_empty(head):
        t = <Timer *>head.next
        if t.due_ms // 256 == slot:
            # now_ms still stands one tick before the slot: place it by hand, for timer_link would look one round back
            link_drop(&t.link)
            t.at_ms = t.due_ms
            w.near_bits[(t.at_ms % 256) // 64] |= <uint64_t>1 << (t.at_ms % 64)
            link_append(&w.near[t.at_ms % 256], &t.link)
        elif t.due_ms < slot * 256:
            link_drop(&t.link)
            link_append(&w.due, &t.link)
        else:
            timer_link(w, t)


cdef void wheel_advance(Wheel *w, uint64_t now_ms) noexcept nogil:
    """Move the timers that are met up to now_ms to the due list; wheel_pop hands them out."""
    cdef uint64_t tick
    cdef Link *head
    while w.now_ms < now_ms:
        tick = w.now_ms + 1
        if tick % 256 == 0:
            cascade(w, tick // 256)
        if not (w.near_bits[0] | w.near_bits[1] | w.near_bits[2] | w.near_bits[3]):
            # nothing in this round: jump to its end, or to now
            tick = tick | 255
            if tick > now_ms:
                tick = now_ms
        elif w.near_bits[(tick % 256) // 64] >> (tick % 64) & 1:
            head = &w.near[tick % 256]
            w.near_bits[(tick % 256) // 64] &= ~(<uint64_t>1 << (tick % 64))
            while not link_empty(head):
                link_move(&w.due, head.next)
        w.now_ms = tick


cdef inline void link_move(Link *to, Link *node) noexcept nogil:
    link_drop(node)
    link_append(to, node)


cdef Timer *wheel_pop(Wheel *w) noexcept nogil:
    """The next timer that is really due, unarmed; NULL when there is none. One met too early goes back to the wheel."""
    cdef Timer *t
    while not link_empty(&w.due):
        t = <Timer *>w.due.next
        if t.due_ms > w.now_ms:
            timer_link(w, t)
            continue
        timer_cancel(w, t)
        return t
    return NULL


cdef uint64_t wheel_next_ms(const Wheel *w) noexcept nogil:
    """When the wheel has to be looked at again, at the latest (ms); 0 = never. May be early, is never late."""
    cdef uint64_t tick, word, slot, i
    if not link_empty(&w.due):
        return w.now_ms
    tick = w.now_ms % 256
    for i in range(tick // 64, 4):
        word = w.near_bits[i]
        if i == tick // 64 and tick % 64:
            word &= ~((<uint64_t>1 << (tick % 64)) - 1)
        if word:
            return w.now_ms - tick + i * 64 + <uint64_t>gw_ctz64(word)
    slot = w.now_ms // 256
    for i in range(1, 512):
        if w.far_bits[((slot + i) % 512) // 64] == 0:
            continue
        if w.far_bits[((slot + i) % 512) // 64] >> ((slot + i) % 64) & 1:
            return (slot + i) * 256
    return 0


# ---- the door for unit tests and the micro benchmark -------------------------------------------------------------

cdef class WheelProbe:
    """A wheel of n timers for tests: arm(i, due_ms), cancel(i), advance(now_ms) -> [i, ...], next_ms()."""
    cdef Wheel w
    cdef Timer *t
    cdef readonly int n

    def __cinit__(self, int n, uint64_t now_ms=0):
        self.t = <Timer *>calloc(n, sizeof(Timer))
        if self.t == NULL:
            raise MemoryError
        self.n = n
        wheel_init(&self.w, now_ms)
        for i in range(n):
            timer_init(&self.t[i], i, 0)

    def __dealloc__(self):
        free(self.t)

    def _check(self, int i):
        if not 0 <= i < self.n:
            raise IndexError(i)

    def arm(self, int i, uint64_t due_ms):
        self._check(i)
        timer_arm(&self.w, &self.t[i], due_ms)

    def cancel(self, int i):
        self._check(i)
        timer_cancel(&self.w, &self.t[i])

    def advance(self, uint64_t now_ms):
        cdef Timer *t
        out = []
        wheel_advance(&self.w, now_ms)
        while True:
            t = wheel_pop(&self.w)
            if t == NULL:
                return out
            out.append(t.owner)

    def next_ms(self):
        return wheel_next_ms(&self.w)

    @property
    def armed(self):
        return self.w.armed
