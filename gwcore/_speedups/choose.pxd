# Level 11. What a request chooses, once its route is known; and what the router asks of its head.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.head cimport Head
from gwcore._speedups.plan cimport PlanHead, Route, Target, UpstreamSpec
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport size_t, uint64_t
from libc.stdint cimport uint8_t

cdef bint head_has(const void *head, const char *name, size_t name_len, const char *value, size_t value_len, bint any_value) noexcept nogil
cdef uint64_t hash_of(Worker *w, const Exchange *x, const Head *h, const UpstreamSpec *spec) noexcept nogil
cdef uint64_t template_key(Worker *w, const Exchange *x, const Head *h, const UpstreamSpec *spec) noexcept nogil
cdef const Target *target_pick(Worker *w, const PlanHead *p, const Route *r) noexcept nogil
cdef uint8_t upgrade_asked(const Exchange *x, const Head *h) noexcept nogil
cdef int rewrite(Worker *w, const Route *r, const PlanHead *p, const char **path, size_t *path_len) noexcept nogil
