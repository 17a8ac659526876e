"""A walk over both rings, a stretch at a time, so that those who store wait for no more than that. What is promoted meanwhile lands at the head
of the main ring, which is walked last; what is fetched meanwhile is refused by its epoch."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp

from gwcore._speedups.copies cimport (
    COPY_MAIN, COPY_SMALL, Copies, Copy, CopyRing, copies_add, copies_lock, copies_unlock, copy_at, copy_tags, copy_text, copy_unindex,
)
from gwcore._speedups.types cimport RC_AGAIN, RC_OK

cdef enum:
    STRETCH = 2048           # answers looked at under one lock


cdef void purge_begin(Copies *s, Purge *p, int kind, const char *text, uint32_t size) noexcept nogil:
    """Copies whose url is this text (scheme, host, path and query), whose url begins with it, or that have it as a tag."""
    p.kind, p.text, p.len = kind, text, size
    p.ring, p.at, p.purged = COPY_SMALL, 0, 0
    copies_add(&s.mem.epoch, 1)


cdef bint tagged(const Copy *c, const char *tag, uint32_t size) noexcept nogil:
    cdef const char *at = copy_tags(c)
    cdef const char *end = at + c.tags_len
    cdef const char *word
    while at < end:
        while at < end and at[0] == c' ':
            at += 1
        word = at
        while at < end and at[0] != c' ':
            at += 1
        if at - word == size and size and memcmp(word, tag, size) == 0:
            return True
    return False


cdef bint meant(const Copy *c, const Purge *p) noexcept nogil:
    if p.kind == PURGE_TAG:
        return tagged(c, p.text, p.len)
    if c.meta.url.len < p.len or p.kind == PURGE_URL and c.meta.url.len != p.len:
        return False
    return <uint64_t>c.meta.url.off + c.meta.url.len <= c.key_len and memcmp(copy_text(c) + c.meta.url.off, p.text, p.len) == 0


cdef int purge_some(Copies *s, Purge *p) noexcept nogil:
    """Go on. RC_OK: all is done. RC_AGAIN: there is more, or somebody is writing."""
    cdef CopyRing *r = &s.mem.rings[p.ring]
    cdef const Copy *c
    cdef int _i
    if not copies_lock(s):
        return RC_AGAIN
    if p.at < r.tail:
        p.at = r.tail
    for _i in range(STRETCH):
        if p.at == r.head:
            if p.ring == COPY_MAIN:
                copies_unlock(s)
                return RC_OK
            p.ring, p.at = COPY_MAIN, 0
            break
        c = copy_at(s, p.ring, p.at)
        if meant(c, p) and copy_unindex(s, p.ring, p.at):
            p.purged += 1
        p.at += c.size
    copies_unlock(s)
    return RC_AGAIN
