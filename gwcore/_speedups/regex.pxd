# Level 1. PCRE2 with JIT, a match limit and no allocation per match.
from gwcore._speedups.types cimport size_t

cdef struct Regex:
    void *code
    void *match
    void *context

cdef int regex_search(const Regex *r, const char *text, size_t size) noexcept nogil
cdef void regex_free(Regex *r) noexcept nogil
cdef int regex_compile(Regex *r, const char *text, size_t size, char *error, size_t error_size) noexcept nogil
