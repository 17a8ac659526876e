# Level 5. Which route a request takes. Cost grows with the depth of the path, not with the number of routes.
from gwcore._speedups.plan cimport PlanHead, Route
from gwcore._speedups.regex cimport Regex
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t

ctypedef bint (*has_field_fn)(const void *head, const char *name, size_t name_len, const char *value, size_t value_len, bint any_value) noexcept nogil

cdef struct RouteQuery:
    const char *host         # normal form
    size_t host_len
    const char *path         # normal form
    size_t path_len
    const char *query
    size_t query_len
    uint32_t method
    const void *head         # given back to has_field
    has_field_fn has_field

cdef const Route *router_find(const PlanHead *p, const Regex *regexes, const RouteQuery *q, uint64_t *allowed) noexcept nogil
