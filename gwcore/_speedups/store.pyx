"""A set-associative table. An entry stands in one of the eight places that its id chooses (ids are random); when all are taken, the one used
longest ago goes. A place is written under a lock that nobody waits for: whoever finds it taken takes another, or does without, and a
reader that was overtaken has found nothing. A worker that dies while it writes leaves its number in the lock, by which `store_retire` finds
the place."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef extern from * nogil:
    """
    #define store_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define store_peek(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define store_set(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    #define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define store_fence() __atomic_thread_fence(__ATOMIC_ACQUIRE)
    #define store_next_epoch(p) ((void)__atomic_fetch_add((p), 1, __ATOMIC_RELAXED))
    static int store_claim(uint64_t *p, uint64_t was, uint64_t now) {
        if (!__atomic_compare_exchange_n(p, &was, now, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return 0;
        __atomic_thread_fence(__ATOMIC_RELEASE);
        return 1;
    }
    """
    uint64_t store_load(const uint64_t *p)
    uint64_t store_peek(const uint64_t *p)
    void store_set(uint64_t *p, uint64_t v)
    void store_release(uint64_t *p, uint64_t v)
    void store_fence()
    void store_next_epoch(uint32_t *p)
    bint store_claim(uint64_t *p, uint64_t was, uint64_t now)

cdef enum:
    LARGE_SHARE = 8          # one place for a large entry to so many others
    TRIES = 3


cdef uint32_t sets_of(uint32_t entries, uint32_t shelf) noexcept nogil:
    cdef uint32_t n = entries if shelf == 0 else entries // LARGE_SHARE
    return n // STORE_WAYS if n >= STORE_WAYS else 1


cdef size_t store_bytes(uint32_t entries) noexcept nogil:
    """What a table for so many entries takes; pages that were never used cost nothing."""
    return 4096 + <size_t>STORE_WAYS * (sets_of(entries, 0) * <size_t>(sizeof(StoreSlot) + SESSION_USUAL)
                                        + sets_of(entries, 1) * <size_t>(sizeof(StoreSlot) + SESSION_BYTES))


cdef void store_init(Store *s, uint32_t entries) noexcept nogil:
    """An empty table in zeroed memory of store_bytes."""
    cdef uint32_t i
    cdef uint64_t at = 4096
    s.entries = entries
    for i in range(2):
        s.shelves[i].off = at
        s.shelves[i].sets = sets_of(entries, i)
        s.shelves[i].bytes = SESSION_BYTES if i else SESSION_USUAL
        at += <uint64_t>s.shelves[i].sets * STORE_WAYS * (sizeof(StoreSlot) + s.shelves[i].bytes)


cdef inline StoreSlot *slots(const Store *s, const Shelf *f, const uint8_t *id) noexcept nogil:
    """The first of the places for an id."""
    cdef uint64_t h
    memcpy(&h, id, 8)
    return <StoreSlot *>(<char *>s + f.off) + h % f.sets * STORE_WAYS


cdef inline uint8_t *body(const Store *s, const Shelf *f, const StoreSlot *slot) noexcept nogil:
    cdef StoreSlot *first = <StoreSlot *>(<char *>s + f.off)
    return <uint8_t *>(first + <size_t>f.sets * STORE_WAYS) + <size_t>(slot - first) * f.bytes


cdef inline bint holds(const Store *s, const StoreSlot *slot, uint64_t now_ms) noexcept nogil:
    return store_peek(&slot.due_ms) > now_ms and slot.epoch == s.epoch


cdef inline bint claim(StoreSlot *slot, uint64_t seen, uint32_t worker) noexcept nogil:
    return store_claim(&slot.lock, seen, seen | worker << 1 | 1)


cdef inline void unclaim(StoreSlot *slot, uint64_t seen) noexcept nogil:
    store_release(&slot.lock, ((seen >> 16) + 1) << 16)


cdef int store_put(Store *s, uint32_t worker, const uint8_t *id, const uint8_t *at, uint32_t size, uint64_t due_ms, uint64_t now_ms) noexcept nogil:
    """Keep `size` bytes under an id until due_ms. 1: they are kept. 2: in the place of another. 0: too many bytes, or others write there."""
    cdef const Shelf *f = &s.shelves[0 if size <= SESSION_USUAL else 1]
    cdef StoreSlot *set_ = slots(s, f, id)
    cdef StoreSlot *best
    cdef uint64_t seen, age, best_seen = 0, best_age
    cdef uint32_t i, _try
    cdef bint evicts
    if size > f.bytes:
        return 0
    for _try in range(TRIES):
        best, best_age = NULL, 0
        for i in range(STORE_WAYS):
            seen = store_load(&set_[i].lock)
            if seen & 1:
                continue
            if not holds(s, &set_[i], now_ms):
                age = <uint64_t>-2
            elif memcmp(set_[i].id, id, SESSION_ID) == 0:
                age = <uint64_t>-1
            else:
                age = now_ms - min(now_ms, store_peek(&set_[i].used_ms)) + 1
            if age > best_age:
                best, best_age, best_seen = &set_[i], age, seen
        if best != NULL and claim(best, best_seen, worker):
            evicts = best_age < <uint64_t>-2
            memcpy(best.id, id, SESSION_ID)
            memcpy(body(s, f, best), at, size)
            best.size, best.epoch = size, s.epoch
            store_set(&best.used_ms, now_ms)
            store_set(&best.due_ms, due_ms)
            unclaim(best, best_seen)
            return 2 if evicts else 1
    return 0


cdef uint32_t store_get(Store *s, const uint8_t *id, uint8_t *out, uint64_t now_ms, uint64_t *due_ms) noexcept nogil:
    """Copy the bytes of an id to out (room for SESSION_BYTES); how many, 0 = not there."""
    cdef StoreSlot *slot
    cdef uint64_t seen
    cdef uint32_t _i, k, size
    for k in range(2):
        slot = slots(s, &s.shelves[k], id)
        for _i in range(STORE_WAYS):
            seen = store_load(&slot.lock)
            size = slot.size
            if not seen & 1 and holds(s, slot, now_ms) and size <= s.shelves[k].bytes and memcmp(slot.id, id, SESSION_ID) == 0:
                due_ms[0] = store_peek(&slot.due_ms)
                memcpy(out, body(s, &s.shelves[k], slot), size)
                store_fence()
                if store_peek(&slot.lock) == seen:
                    store_set(&slot.used_ms, now_ms)
                    return size
            slot += 1
    return 0


cdef bint store_take(Store *s, uint32_t worker, const uint8_t *id, uint64_t now_ms) noexcept nogil:
    """Remove an entry. Of all who do so at once, in whatever worker, one is told True; nobody is when others write there."""
    cdef StoreSlot *slot
    cdef uint64_t seen
    cdef uint32_t _i, k
    cdef bint taken = False
    for k in range(2):
        slot = slots(s, &s.shelves[k], id)
        for _i in range(STORE_WAYS):
            seen = store_load(&slot.lock)
            if not seen & 1 and holds(s, slot, now_ms) and memcmp(slot.id, id, SESSION_ID) == 0 and claim(slot, seen, worker):
                store_set(&slot.due_ms, 0)
                unclaim(slot, seen)
                taken = True
            slot += 1
    return taken


cdef void store_extend(Store *s, uint32_t worker, const uint8_t *id, uint64_t due_ms, uint64_t now_ms) noexcept nogil:
    """Let an entry live until due_ms, where it is still there."""
    cdef StoreSlot *slot
    cdef uint64_t seen
    cdef uint32_t _i, k
    for k in range(2):
        slot = slots(s, &s.shelves[k], id)
        for _i in range(STORE_WAYS):
            seen = store_load(&slot.lock)
            if not seen & 1 and holds(s, slot, now_ms) and memcmp(slot.id, id, SESSION_ID) == 0 and claim(slot, seen, worker):
                store_set(&slot.due_ms, due_ms)
                unclaim(slot, seen)
            slot += 1


cdef void store_retire(Store *s, uint32_t worker) noexcept nogil:
    """A worker died: what it was writing is empty."""
    cdef StoreSlot *slot
    cdef uint64_t seen
    cdef uint32_t _i, k
    for k in range(2):
        slot = <StoreSlot *>(<char *>s + s.shelves[k].off)
        for _i in range(s.shelves[k].sets * STORE_WAYS):
            seen = store_load(&slot.lock)
            if seen & 1 and (seen & 0xffff) >> 1 == worker:
                store_set(&slot.due_ms, 0)
                unclaim(slot, seen)
            slot += 1


cdef void store_forget(Store *s) noexcept nogil:
    """Nothing is in it any more."""
    store_next_epoch(&s.epoch)


cdef uint32_t store_count(const Store *s, uint64_t now_ms) noexcept nogil:
    """Entries that live."""
    cdef const StoreSlot *slot
    cdef uint32_t _i, k, n = 0
    for k in range(2):
        slot = <const StoreSlot *>(<const char *>s + s.shelves[k].off)
        for _i in range(s.shelves[k].sets * STORE_WAYS):
            n += holds(s, slot, now_ms)
            slot += 1
    return n
