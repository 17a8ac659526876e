# Level 8. What control fields say of an answer's life (RFC 9111, 9213).
from gwcore._speedups.head cimport Field, Head
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t
from libc.stdint cimport int64_t, uint8_t

cdef struct Said:            # of one message; seconds, -1 = not said
    int64_t max_age
    int64_t s_maxage
    int64_t min_fresh
    int64_t max_stale
    int64_t revalidate       # stale-while-revalidate
    int64_t error            # stale-if-error
    uint8_t any              # something that is known
    uint8_t no_store
    uint8_t no_cache
    uint8_t own              # private
    uint8_t common           # public
    uint8_t must_revalidate
    uint8_t only_if_cached
    uint8_t targeted         # a field for gateways alone said it: Expires does not count

cdef void request_said(const Head *h, Said *out) noexcept nogil
cdef void response_said(const Head *h, Said *out) noexcept nogil
cdef int64_t date_read(const char *at, size_t size) noexcept nogil
cdef int64_t lifetime_s(const Head *h, const Said *said, int64_t now_s) noexcept nogil
cdef int64_t age_s(const Head *h, int64_t now_s) noexcept nogil
cdef const Field *field_named(const Head *h, const char *lower, size_t n) noexcept nogil
