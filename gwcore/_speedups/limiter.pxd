# Level 2. The adaptive concurrency limit of an upstream: a gradient on latency. Pure mathematics: no clock, no I/O.
from gwcore._speedups.types cimport uint32_t, uint64_t

cdef enum:
    LIMIT_WINDOW_MS = 250    # between two updates
    LIMIT_SAMPLES = 10       # at least so many answers in between, or the window goes on
    LIMIT_FLOOR_WINDOWS = 5  # so many at the minimum, and the present latency is taken for the normal one

cdef struct Limiter:
    double limit
    double before            # the limit when it began to fall; 0 = it does not
    double base_us           # the median latency without a queue, as far as known; 0 = not known
    uint32_t at_min          # windows in a row that ended at the minimum

cdef void limiter_update(Limiter *l, double median_us, uint32_t peak, uint32_t least, uint32_t most) noexcept nogil
cdef double limiter_median_us(const uint32_t *cells) noexcept nogil

cdef inline uint32_t limiter_share(uint32_t limit, uint32_t tier) noexcept nogil:
    """How much of a limit requests of this tier may fill: P0 all of it, P1 90 %, P2 80 %; one place at least."""
    cdef uint32_t share = limit if tier == 0 else <uint32_t>(<uint64_t>limit * (9 if tier == 1 else 8) // 10)
    return share if share else 1
