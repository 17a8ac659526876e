# Level 2. Who fetches what: collapses the misses of all processes.
from gwcore._speedups.copies cimport Copies, CopyKey
from gwcore._speedups.types cimport uint32_t, uint64_t

cdef enum LeaseResult:
    LEASE_TAKEN              # = RC_OK. It is the caller's to give back
    LEASE_HELD               # somebody has it, of this process or another
    LEASE_FULL               # no room for it: do without

cdef int lease_take(Copies *s, const CopyKey *key, uint64_t due_ms, uint64_t now_ms) noexcept nogil
cdef void lease_give(Copies *s, const CopyKey *key) noexcept nogil
cdef bint lease_held(const Copies *s, const CopyKey *key, uint64_t now_ms) noexcept nogil
cdef void lease_retire(Copies *s, uint32_t process) noexcept nogil
