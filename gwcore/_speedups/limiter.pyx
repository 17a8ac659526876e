"""The gradient. Of every window the median latency m; base is the lowest m of late; g = base / m with a tolerance, within 0.5 and 1, shrinks the limit;
sqrt(limit) of new places lets it grow where they are used (after Netflix's Gradient2 and TCP Vegas), a quarter of that while latency is above the base.

A window in which the limit was nearly full has a latency that we may have made ourselves, by letting a queue stand at the upstream: base does not learn
from it, and creeps up by half a percent a window only while there is room. So an overload, however long, does not become the normal. And only a
limit that is nearly full shrinks: where it does not bind, smaller would not be quicker.

At the minimum for five windows, less load has not helped: the upstream is slow by itself, and refusing cures nothing. Its present latency becomes the
base, and the limit is what it was before it began to fall."""
from libc.math cimport fmax, fmin, sqrt

from gwcore._speedups.histogram cimport HISTOGRAM_CELLS, histogram_cell, histogram_edge_us

cdef double GROWTH_OF_BASE = 1.005
cdef double TOLERANCE = 1.1
cdef double FULL = 0.75              # of the limit
cdef double FRESH_WHILE_SLOW = 0.25
cdef double SHARE_OF_NEW = 0.2


cdef void limiter_update(Limiter *l, double median_us, uint32_t peak, uint32_t least, uint32_t most) noexcept nogil:
    """A window has ended: its median latency, and the most requests that were under way in it."""
    cdef bint full = peak >= FULL * l.limit
    cdef double g, fresh, limit
    if l.base_us <= 0:
        l.base_us = median_us
    l.base_us = fmin(median_us, l.base_us if full else l.base_us * GROWTH_OF_BASE)
    g = fmax(0.5, fmin(1, TOLERANCE * l.base_us / median_us)) if median_us > 0 else 1
    fresh = sqrt(l.limit) if g >= 1 else sqrt(l.limit) * FRESH_WHILE_SLOW
    limit = (1 - SHARE_OF_NEW) * l.limit + SHARE_OF_NEW * (g * l.limit + fresh)
    if limit > l.limit and peak * 2 < l.limit or limit < l.limit and not full:       # what nobody uses proves nothing, and harms nobody
        limit = l.limit
    if g >= 1:
        l.before = 0
    elif limit < l.limit and l.before == 0:
        l.before = l.limit
    l.limit = fmax(least, fmin(most, limit))
    l.at_min = l.at_min + 1 if l.limit <= least else 0
    if l.at_min >= LIMIT_FLOOR_WINDOWS:
        l.base_us = median_us
        l.limit = fmax(l.limit, fmin(most, l.before))
        l.before = 0
        l.at_min = 0


cdef double limiter_median_us(const uint32_t *cells) noexcept nogil:
    """The median of a latency histogram (see histogram), read between the edges of its cell by how far into the cell it falls; 0 when empty."""
    cdef uint64_t total = 0, seen = 0
    cdef double low
    cdef int i
    for i in range(HISTOGRAM_CELLS):
        total += cells[i]
    if total == 0:
        return 0
    for i in range(HISTOGRAM_CELLS):
        if (seen + cells[i]) * 2 >= total:
            break
        seen += cells[i]
    low = histogram_edge_us(i - 1) if i else 0
    return low + (histogram_edge_us(i) - low) * (total / 2.0 - seen) / cells[i]


# ---- the door for unit tests --------------------------------------------------------------------------------------

cdef class LimiterProbe:
    """A limiter for tests: sample(latency_us), window(peak) -> limit."""
    cdef Limiter l
    cdef uint32_t cells[161]
    cdef readonly uint32_t samples
    cdef uint32_t least, most

    def __cinit__(self, start=64, least=8, most=1000):
        self.l.limit, self.least, self.most = start, least, most

    def sample(self, uint64_t latency_us):
        self.cells[histogram_cell(latency_us)] += 1
        self.samples += 1

    def median_us(self):
        return limiter_median_us(self.cells)

    def window(self, uint32_t peak):
        if self.samples >= LIMIT_SAMPLES:
            limiter_update(&self.l, limiter_median_us(self.cells), peak, self.least, self.most)
            for i in range(HISTOGRAM_CELLS):
                self.cells[i] = 0
            self.samples = 0
        return <uint32_t>self.l.limit

    def share(self, uint32_t tier):
        return limiter_share(<uint32_t>self.l.limit, tier)

    @property
    def limit(self):
        return self.l.limit

    @property
    def base_us(self):
        return self.l.base_us
