# Level 2. Request paths: what was matched is what is sent.
from gwcore._speedups.types cimport size_t

cdef enum PathKind:
    PATH_PLAIN               # may be used as it stands
    PATH_CHANGES             # path_normalise gives another text
    PATH_BAD

cdef int path_kind(const char *p, size_t size) noexcept nogil
cdef long path_normalise(const char *p, size_t size, char *out) noexcept nogil
