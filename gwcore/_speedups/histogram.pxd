# Level 1. Log-linear histogram: 161 cells, eight linear steps per octave from 100 us over 20 octaves; the last takes the rest.
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    HISTOGRAM_CELLS = 161

cdef int histogram_cell(uint64_t latency_us) noexcept nogil
cdef double histogram_edge_us(int cell) noexcept nogil
cdef double histogram_quantile_us(const uint32_t *cells, double q) noexcept nogil
