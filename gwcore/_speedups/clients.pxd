# Level 5. How many connections each client address holds, over all workers: for limits.connections_per_client.
from gwcore._speedups.shm cimport Lane, Segment_
from gwcore._speedups.types cimport uint32_t
from libc.stdint cimport uint8_t

cdef bint client_enter(Segment_ *s, Lane *own, const uint8_t *peer, uint8_t family, uint32_t most) noexcept nogil
cdef void client_leave(Segment_ *s, Lane *own, const uint8_t *peer, uint8_t family) noexcept nogil
