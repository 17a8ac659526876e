"""Latency histogram with a relative error of at most 6.25 % (after HdrHistogram: linear steps within octaves)."""
from libc.stdint cimport uint32_t, uint64_t


cdef int histogram_cell(uint64_t latency_us) noexcept nogil:
    """The cell of a latency. Cells 0 to 7 reach up to 200 us, in steps of 12.5 us from 100 us; anything below is cell 0."""
    cdef uint64_t x = latency_us * 2 // 25          # in steps of 12.5 us: 8 = 100 us
    cdef int octave = 0
    if x < 8:
        return 0
    while x >= 16:
        x >>= 1
        octave += 1
        if octave == 20:
            return HISTOGRAM_CELLS - 1
    return octave * 8 + <int>x - 8


cdef double histogram_edge_us(int cell) noexcept nogil:
    """The upper edge of a cell in microseconds."""
    return 12.5 * <double>(<uint64_t>1 << (cell // 8)) * (cell % 8 + 9)


cdef double histogram_quantile_us(const uint32_t *cells, double q) noexcept nogil:
    """The latency below which a share q (0 to 1) of the counts lies, read at the middle of its cell; 0 when empty."""
    cdef uint64_t total = 0, seen = 0
    cdef int i
    cdef double low
    for i in range(HISTOGRAM_CELLS):
        total += cells[i]
    if total == 0:
        return 0
    for i in range(HISTOGRAM_CELLS):
        seen += cells[i]
        if cells[i] and seen >= q * total:
            break
    low = histogram_edge_us(i - 1) if i else 100.0
    return (low + histogram_edge_us(i)) / 2


def cell_of(uint64_t latency_us) -> int:
    return histogram_cell(latency_us)


def edge_us(int cell) -> float:
    return histogram_edge_us(cell)
