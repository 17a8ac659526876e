# Level 11. Answers from copies.
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.copies cimport Copy, CopyKey
from gwcore._speedups.head cimport Head
from gwcore._speedups.outlist cimport OutList
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t

cdef enum CopyFlag:          # CopyMeta.flags
    COPY_MARKER = 1          # no answer, but the names of the fields by which answers differ
    COPY_CHECK = 2           # only after asking the upstream
    COPY_STRICT = 4          # never stale

cdef uint32_t key_write(Worker *w, const Exchange *x, const Head *h, const char *path, size_t path_len, uint32_t *url_at) noexcept nogil
cdef uint32_t key_vary(Worker *w, uint32_t base_len, uint64_t salt, const char *names, uint32_t names_len, const char *asked, uint32_t asked_len) noexcept nogil
cdef const Copy *copy_lookup(Worker *w, uint32_t key_len, const char *asked, uint32_t asked_len, bint *varies) noexcept nogil
cdef int copy_write(Worker *w, Exchange *x, const Copy *c, OutList *o, const char *asked, uint32_t asked_len) noexcept nogil
cdef const Copy *copy_stands(Worker *w, const Exchange *x) noexcept nogil
cdef int copy_instead(Worker *w, Exchange *x, int reason, OutList *o) noexcept nogil
cdef const char *line_value(const char *at, uint32_t size, uint32_t *pos, const char *lower, size_t n, uint32_t *len_) noexcept nogil

cdef inline bint copy_usable(const Exchange *x, const Copy *c, uint64_t at_ms) noexcept nogil:
    """May the ladder, which there is, send this copy at that time in place of a live answer? P0 gets none."""
    return x.tier != 0 and x.ladder.copies != 0 and not c.meta.flags & (COPY_CHECK | COPY_STRICT) and c.meta.stored_ms + x.ladder.usable_ms > at_ms

cdef inline uint64_t copy_age_s(const Worker *w, const Copy *c) noexcept nogil:
    return c.meta.age_s + (w.now_ms - min(w.now_ms, c.meta.stored_ms)) // 1000
