# Level 2. What an upstream's retries may cost it: a bucket of tokens that all workers share.
from gwcore._speedups.types cimport uint32_t, uint64_t

cdef struct Budget:          # in the shared segment
    uint64_t folded_ms       # atomic: deposits up to here are in
    uint64_t seen            # atomic: first attempts up to here are in
    uint32_t milli           # atomic: what is left, in thousandths of a retry
    uint32_t recent_milli    # first attempts of the last ten seconds, as a sum that decays, in thousandths
    uint32_t ratio_milli     # deposit of a first attempt
    uint32_t per_s           # deposit of a second

cdef void budget_set(Budget *b, uint32_t ratio_milli, uint32_t per_s, uint64_t firsts, uint64_t now_ms) noexcept nogil
cdef bint budget_due(const Budget *b, uint64_t now_ms) noexcept nogil
cdef void budget_fold(Budget *b, uint64_t firsts, uint64_t now_ms) noexcept nogil
cdef bint budget_take(Budget *b) noexcept nogil
cdef void budget_give(Budget *b) noexcept nogil
cdef uint32_t budget_level(const Budget *b, uint64_t firsts, uint64_t now_ms) noexcept nogil
