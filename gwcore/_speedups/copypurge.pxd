# Level 2. Forgetting all copies of an address, below one, or with a tag.
from gwcore._speedups.copies cimport Copies
from gwcore._speedups.types cimport uint32_t, uint64_t

cdef enum PurgeKind: PURGE_URL, PURGE_PREFIX, PURGE_TAG

cdef struct Purge:
    uint32_t kind
    uint32_t len
    const char *text
    uint32_t ring            # where the walk is
    uint64_t at
    uint64_t purged          # copies forgotten so far

cdef void purge_begin(Copies *s, Purge *p, int kind, const char *text, uint32_t size) noexcept nogil
cdef int purge_some(Copies *s, Purge *p) noexcept nogil
