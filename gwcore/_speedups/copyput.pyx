"""Writing into the store of copies: S3-FIFO, under the lock."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from gwcore._speedups.copies cimport (
    COPY_BUSY, COPY_GHOSTS, COPY_LARGE, COPY_MAIN, COPY_OUTDATED, COPY_SMALL, COPY_STORED, COPY_USES, COPY_WAIT, COPY_WAYS, Copies, Copy, CopyKey, CopyMeta,
    CopyRing, CopyText, copies_epoch, copies_lane, copies_load, copies_lock, copies_peek, copies_seen, copies_set, copies_swap, copies_unlock,
    copies_part, copy_at, copy_bucket, copy_locate, copy_named, copy_search, copy_word,
)
from gwcore._speedups.sys cimport SIGKILL, getpid, kill

cdef extern from * nogil:
    """
    #define copies_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    """
    void copies_fence()

cdef enum:
    GHOST_WAYS = 16
    ENOUGH = 3               # uses, for an answer of any size
    SLACK_SHARE = 64         # of a ring: kept empty, so that there are bytes that nobody holds
    SLACK_NEED = 16          # the most for large answers
    SLACK_BYTES = 262144     # of the small ring: what comes in one turn of all workers,
    SLACK_MOST = 8           # but no more than this share
    AGAIN_BYTES = 262144     # copied for others in one put, at the least


cdef inline void step(Copies *s) noexcept nogil:
    """Between any two stores that others may see. Tests have a process die here."""
    if s.dies_in:
        s.dies_in -= 1
        if s.dies_in == 0:
            kill(getpid(), SIGKILL)


cdef inline bint passed(const Copies *s, uint32_t ring) noexcept nogil:
    """Is every process past the turn in which it was seen?"""
    cdef const uint64_t *seen = copies_seen(s, ring)
    cdef uint32_t i
    for i in range(s.mem.processes):
        if seen[i] & 1 and copies_load(&copies_lane(s, i).turn) == seen[i]:
            return False
    return True


cdef void reclaim(Copies *s, uint32_t ring) noexcept nogil:
    """Free what nobody can hold any more, and note the turns that the rest waits for."""
    cdef CopyRing *r = &s.mem.rings[ring]
    cdef uint64_t *seen = copies_seen(s, ring)
    cdef uint32_t i
    cdef int _k
    for _k in range(2):
        if r.pending == r.freed:
            if r.tail == r.freed:
                return
            copies_fence()               # the words are gone before the turns are looked at
            for i in range(s.mem.processes):
                seen[i] = copies_load(&copies_lane(s, i).turn)
            step(s)
            copies_set(&r.pending, r.tail)
            step(s)
        if not passed(s, ring):
            return
        copies_set(&r.freed, r.pending)
        step(s)


cdef inline uint64_t room(const CopyRing *r) noexcept nogil:
    """Bytes at the head that may be written."""
    return r.size - (r.head - r.freed)


cdef inline uint64_t slack(const CopyRing *r, uint64_t least, uint64_t need) noexcept nogil:
    """What is kept empty besides `need`: a share of the ring, or more, as far as that is not too much: room for another of its size, `least`."""
    return max(r.size // SLACK_SHARE, min(need, r.size // SLACK_NEED), min(least, r.size // SLACK_MOST))


cdef inline bint over(const Copy *c, uint64_t now_ms) noexcept nogil:
    return c.meta.keep_ms != 0 and c.meta.keep_ms <= now_ms


cdef inline bint worth(const Copies *s, const Copy *c, uint32_t uses) noexcept nogil:
    """Does it stay? What is larger than the mean has to be asked for in proportion; three uses are always enough."""
    return uses >= ENOUGH or <uint64_t>c.size << 10 <= s.mem.mean * uses


cdef bint move(Copies *s, const Copy *c, uint64_t *slot, uint64_t word, uint32_t uses) noexcept nogil:
    """Append an answer to the main ring once more. False: there is no room."""
    cdef CopyRing *r = &s.mem.rings[COPY_MAIN]
    cdef uint64_t position = r.head
    cdef Copy *to
    if room(r) < c.size:
        reclaim(s, COPY_MAIN)
        if room(r) < c.size:
            return False
    to = copy_at(s, COPY_MAIN, position)
    memcpy(to, c, c.size)
    to.uses = uses
    step(s)
    copies_set(&r.head, position + to.size)
    step(s)
    copies_swap(slot, word, copy_word(s, to.hash, COPY_MAIN, position))
    step(s)
    s.lane.copied_bytes += to.size
    return True


cdef inline void forget(Copies *s, uint64_t *slot, uint64_t word) noexcept nogil:
    copies_swap(slot, word, 0)
    step(s)


cdef bint main_room(Copies *s, uint64_t need, uint64_t now_ms, uint64_t *again) noexcept nogil:
    """Evict from the main ring until `need` bytes fit; again: how many bytes may yet be copied for others."""
    cdef CopyRing *r = &s.mem.rings[COPY_MAIN]
    cdef uint64_t *slot
    cdef uint64_t word
    cdef Copy *c
    cdef uint32_t uses
    cdef bint stays
    while r.size - (r.head - r.tail) < need + slack(r, 0, need) and r.tail != r.head:
        c = copy_at(s, COPY_MAIN, r.tail)
        word = copy_word(s, c.hash, COPY_MAIN, r.tail)
        slot = copy_locate(s, c.hash, word)
        if slot != NULL:
            uses = copies_peek(&c.uses)
            stays = uses != 0 and not over(c, now_ms) and again[0] >= c.size and worth(s, c, uses)
            if stays and not move(s, c, slot, word, uses - 1):
                if r.freed != r.tail:
                    return False         # there will be room for it when readers are done
                stays = False            # it is larger than what is kept free
            if stays:
                again[0] -= c.size
                s.lane.kept += 1
            else:
                forget(s, slot, word)
                s.lane.expired += over(c, now_ms)
                s.lane.evicted[COPY_MAIN] += not over(c, now_ms)
        copies_set(&r.tail, r.tail + c.size)
        step(s)
    if room(r) < need + slack(r, 0, 0) // 2:
        reclaim(s, COPY_MAIN)
    return room(r) >= need


cdef bint small_room(Copies *s, uint64_t need, uint64_t now_ms, uint64_t *again) noexcept nogil:
    """Evict from the small ring until `need` bytes fit."""
    cdef CopyRing *r = &s.mem.rings[COPY_SMALL]
    cdef uint64_t *slot
    cdef uint64_t word
    cdef Copy *c
    while r.size - (r.head - r.tail) < need + slack(r, SLACK_BYTES, need) and r.tail != r.head:
        c = copy_at(s, COPY_SMALL, r.tail)
        word = copy_word(s, c.hash, COPY_SMALL, r.tail)
        slot = copy_locate(s, c.hash, word)
        if slot != NULL:
            if over(c, now_ms):
                forget(s, slot, word)
                s.lane.expired += 1
            elif copies_peek(&c.uses) > 1 and worth(s, c, copies_peek(&c.uses)):
                if not main_room(s, c.size, now_ms, again) or not move(s, c, slot, word, 0):
                    return False
                s.lane.promoted += 1
            else:
                forget(s, slot, word)
                ghost_add(s, c.hash, c.size)
                s.lane.evicted[COPY_SMALL] += 1
        copies_set(&r.tail, r.tail + c.size)
        step(s)
    if room(r) < need + slack(r, SLACK_BYTES, 0) // 2:
        reclaim(s, COPY_SMALL)
    return room(r) >= need


cdef void publish(Copies *s, uint64_t hash_, uint64_t *slot, uint64_t was, uint64_t word) noexcept nogil:
    """Name an answer in the index, in the place of the one before it, else in the emptier of its buckets, else in that of the least used."""
    cdef uint64_t *at
    cdef uint64_t *best = NULL
    cdef uint32_t n, most = 0, uses, least = COPY_USES + 1
    cdef int i, k
    if slot != NULL and copies_swap(slot, was, word):
        return
    for k in range(2):
        at = copy_bucket(s, hash_, k)
        n = 0
        for i in range(COPY_WAYS):
            n += at[i] == 0
        if n > most:
            most = n
            i = 0
            while at[i] != 0:
                i += 1
            best = &at[i]
    if best == NULL:
        for k in range(2):
            at = copy_bucket(s, hash_, k)
            for i in range(COPY_WAYS):
                was = copies_load(&at[i])
                uses = copies_peek(&copy_named(s, was).uses) if was else 0
                if uses < least:
                    least, best = uses, &at[i]
        s.lane.crowded += 1
    copies_set(best, word)


cdef inline void fill(char **at, const CopyText *text) noexcept nogil:
    cdef int i
    for i in range(text.n if text != NULL else 0):
        memcpy(at[0], text.iov[i].iov_base, text.iov[i].iov_len)
        at[0] += text.iov[i].iov_len


cdef inline size_t length(const CopyText *text) noexcept nogil:
    return text.bytes if text != NULL else 0


cdef int copy_put(Copies *s, const CopyKey *key, const CopyMeta *meta, const CopyText *head, const CopyText *tags, const CopyText *body,
                  uint64_t epoch, uint64_t now_ms) noexcept nogil:
    """Keep an answer under its key, in the place of the one that had it. The texts may be slices of another copy, and NULL where there is none. A
    CopyResult."""
    cdef uint64_t size = (sizeof(Copy) + key.len + length(head) + length(tags) + length(body) + 15) & ~<uint64_t>15
    cdef int result
    if size > s.mem.rings[COPY_MAIN].size // 4:
        result = COPY_LARGE
    elif not copies_lock(s):
        result = COPY_BUSY
    else:
        result = put(s, key, meta, head, tags, body, epoch, now_ms, <uint32_t>size)
        copies_unlock(s)
    s.lane.results[result] += 1
    return result


cdef int put(Copies *s, const CopyKey *key, const CopyMeta *meta, const CopyText *head, const CopyText *tags, const CopyText *body,
             uint64_t epoch, uint64_t now_ms, uint32_t size) noexcept nogil:
    cdef uint64_t again = max(<uint64_t>AGAIN_BYTES, 4 * <uint64_t>size), was = 0, position, word
    cdef uint32_t ring = COPY_SMALL, uses = 0
    cdef CopyRing *r
    cdef uint64_t *slot
    cdef Copy *c
    cdef char *at
    cdef bint ghost = False
    step(s)
    if copies_epoch(s, epoch >> 54) != epoch:
        return COPY_OUTDATED
    slot = copy_search(s, key, &was)
    if slot != NULL:
        ring, uses = was >> 32 & 1, copies_peek(&copy_named(s, was).uses)
    elif ghost_take(s, key.hash):
        ring, ghost = COPY_MAIN, True
    if size > s.mem.rings[COPY_SMALL].size // 2 and ring == COPY_SMALL:
        ring, uses = COPY_MAIN, 0
    r = &s.mem.rings[ring]
    if not (main_room(s, size, now_ms, &again) if ring == COPY_MAIN else small_room(s, size, now_ms, &again)):
        return COPY_WAIT
    slot = copy_search(s, key, &was)          # again: it may have been moved or evicted
    position = r.head
    c = copy_at(s, ring, position)
    c.hash, c.size, c.uses = key.hash, size, uses
    c.key_len, c.head_len, c.tags_len, c.body_len = key.len, <uint32_t>length(head), <uint32_t>length(tags), <uint32_t>length(body)
    c.meta = meta[0]
    at = <char *>(c + 1)
    memcpy(at, key.text, key.len)
    at += key.len
    fill(&at, head)
    step(s)
    fill(&at, tags)
    fill(&at, body)
    step(s)
    copies_set(&r.head, position + size)
    step(s)
    word = copy_word(s, key.hash, ring, position)
    copies_set(&s.mem.doing, word)
    step(s)
    publish(s, key.hash, slot, was, word)
    step(s)
    copies_fence()
    if copies_epoch(s, epoch >> 54) != epoch:
        slot = copy_locate(s, key.hash, word)
        if slot != NULL:
            copies_swap(slot, word, 0)
        step(s)
        copies_set(&s.mem.doing, 0)
        return COPY_OUTDATED
    copies_set(&s.mem.doing, 0)
    step(s)
    s.lane.replaced += slot != NULL
    s.lane.ghosts += ghost
    s.mem.mean = s.mem.mean - (s.mem.mean >> 10) + size if s.mem.mean else <uint64_t>size << 10
    s.lane.stored_bytes += size
    return COPY_STORED


# ---- ghosts: the names of what left the small ring unused -----------------------------------------------------------

cdef inline uint32_t *ghosts(const Copies *s, uint64_t hash_) noexcept nogil:
    return <uint32_t *>(s.base + s.mem.ghosts_off) + copies_part(hash_ * 0xd6e8feb86659fd93ULL >> 32, s.mem.buckets // 2 + 1) * GHOST_WAYS


cdef inline uint32_t ghost_now(const Copies *s) noexcept nogil:
    return <uint32_t>(s.mem.ghost_bytes // s.mem.ghost_unit) & 0xffff


cdef inline uint32_t ghost_print(uint64_t hash_) noexcept nogil:
    return <uint32_t>(hash_ >> 40 | 1) << 16


cdef void ghost_add(Copies *s, uint64_t hash_, uint32_t size) noexcept nogil:
    """In the place of the oldest in its bucket."""
    cdef uint32_t *at = ghosts(s, hash_)
    cdef uint32_t now = ghost_now(s), age, oldest = 0
    cdef int i, best = 0
    for i in range(GHOST_WAYS):
        age = (now - at[i]) & 0xffff if at[i] else 0x10000
        if age > oldest:
            best, oldest = i, age
    at[best] = ghost_print(hash_) | now
    s.mem.ghost_bytes += size


cdef bint ghost_take(Copies *s, uint64_t hash_) noexcept nogil:
    """Has it a ghost? It has none afterwards."""
    cdef uint32_t *at = ghosts(s, hash_)
    cdef uint32_t now = ghost_now(s), wanted = ghost_print(hash_)
    cdef int i
    for i in range(GHOST_WAYS):
        if at[i] & 0xffff0000U == wanted and ((now - at[i]) & 0xffff) < COPY_GHOSTS:
            at[i] = 0
            return True
    return False
