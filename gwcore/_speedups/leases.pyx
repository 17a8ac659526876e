"""Leases: of all the processes that miss an answer one fetches it. A table whose words say all there is to say, changed by compare-and-swap."""
from libc.stdint cimport uint32_t, uint64_t

from gwcore._speedups.copies cimport COPY_WAYS, Copies, CopyKey, copies_load, copies_part, copies_swap


cdef inline uint64_t *leases(const Copies *s) noexcept nogil:
    return <uint64_t *>(s.base + s.mem.leases_off)


cdef inline uint64_t *lease_bucket(const Copies *s, uint64_t hash_) noexcept nogil:
    return leases(s) + copies_part(hash_ * 0xe7037ed1a0b428dbULL >> 32, s.mem.leases // COPY_WAYS) * COPY_WAYS


cdef inline uint64_t lease_word(const Copies *s, uint64_t hash_, uint64_t due_ms) noexcept nogil:
    """When it ends (by 4 ms, 32 bits), 21 bits of the hash, and whose it is."""
    return (due_ms >> 2) << 32 | (hash_ >> 43 & 0x1fffff) << 11 | s.process


cdef inline bint lease_lives(uint64_t word, uint64_t now_ms) noexcept nogil:
    return word != 0 and <uint32_t>((word >> 32) - (now_ms >> 2)) - 1 < 0x7fffffff


cdef inline bint lease_names(uint64_t word, uint64_t hash_) noexcept nogil:
    return (word >> 11 & 0x1fffff) == (hash_ >> 43 & 0x1fffff)


cdef int lease_take(Copies *s, const CopyKey *key, uint64_t due_ms, uint64_t now_ms) noexcept nogil:
    """Of all who want to fetch an answer one is told LEASE_TAKEN, until due_ms at the most; the others find it in the store later. A LeaseResult."""
    cdef uint64_t *at = lease_bucket(s, key.hash)
    cdef uint64_t word, mine = lease_word(s, key.hash, due_ms), seen = 0
    cdef int i, _k, free
    for _k in range(4):
        free = -1
        for i in range(COPY_WAYS):
            word = copies_load(&at[i])
            if not lease_lives(word, now_ms):
                if free < 0:
                    free, seen = i, word
            elif lease_names(word, key.hash):
                return LEASE_HELD
        if free < 0:
            return LEASE_FULL
        if copies_swap(&at[free], seen, mine):
            for i in range(free):        # two may have come at once: the one before stays
                word = copies_load(&at[i])
                if lease_lives(word, now_ms) and lease_names(word, key.hash):
                    copies_swap(&at[free], mine, 0)
                    return LEASE_HELD
            s.lane.leases += 1
            return LEASE_TAKEN
    return LEASE_FULL


cdef void lease_give(Copies *s, const CopyKey *key) noexcept nogil:
    """Give back what this process took."""
    cdef uint64_t *at = lease_bucket(s, key.hash)
    cdef uint64_t word
    cdef int i
    for i in range(COPY_WAYS):
        word = copies_load(&at[i])
        if word and (word & 0x7ff) == s.process and lease_names(word, key.hash):
            copies_swap(&at[i], word, 0)


cdef bint lease_held(const Copies *s, const CopyKey *key, uint64_t now_ms) noexcept nogil:
    """Does somebody fetch it?"""
    cdef uint64_t *at = lease_bucket(s, key.hash)
    cdef uint64_t word
    cdef int i
    for i in range(COPY_WAYS):
        word = copies_load(&at[i])
        if lease_lives(word, now_ms) and lease_names(word, key.hash):
            return True
    return False


cdef void lease_retire(Copies *s, uint32_t process) noexcept nogil:
    """A process died: what it had is free."""
    cdef uint64_t *at = leases(s)
    cdef uint64_t word
    cdef uint32_t i
    for i in range(s.mem.leases):
        word = copies_load(&at[i])
        if word and (word & 0x7ff) == process:
            copies_swap(&at[i], word, 0)
