"""A count-min sketch (Cormode and Muthukrishnan 2005) in every worker's lane: four rows of cells, an address counts in one cell of each row,
and its number is the least of the four sums over the workers. It never says too few; with 10,000 addresses one in two hundred is counted
together with another. Touched when a connection opens and closes, and only while the limit is on."""
from libc.stdint cimport uint64_t

from gwcore._speedups.plan cimport hash_bytes
from gwcore._speedups.shm cimport CLIENT_CELLS, CLIENT_ROWS, segment_lane

cdef enum:
    V6_NETWORK = 8           # bytes of an IPv6 address that name a client: a household has a /64


cdef uint64_t client_hash(const Segment_ *s, const uint8_t *peer, uint8_t family) noexcept nogil:
    """15 bits for each row; the seed is secret, so that nobody chooses who shares a cell."""
    cdef uint64_t h = hash_bytes(s.seed, <const char *>peer, V6_NETWORK if family == 6 else 16)
    h ^= h >> 32
    h *= s.seed | 1
    return h ^ h >> 29


cdef bint client_enter(Segment_ *s, Lane *own, const uint8_t *peer, uint8_t family, uint32_t most) noexcept nogil:
    """Count one connection more of this address; False (and nothing counted) when it has `most` already."""
    cdef uint64_t h = client_hash(s, peer, family)
    cdef uint32_t row, cell, sum, i, least = 0xffffffff
    for row in range(CLIENT_ROWS):
        cell = <uint32_t>(h >> (row * 15)) % CLIENT_CELLS
        sum = 0
        for i in range(s.workers):
            sum += segment_lane(s, i).clients[row][cell]
        if sum < least:
            least = sum
    if least >= most:
        return False
    for row in range(CLIENT_ROWS):
        own.clients[row][<uint32_t>(h >> (row * 15)) % CLIENT_CELLS] += 1
    return True


cdef void client_leave(Segment_ *s, Lane *own, const uint8_t *peer, uint8_t family) noexcept nogil:
    """Take back what client_enter counted."""
    cdef uint64_t h = client_hash(s, peer, family)
    cdef uint32_t row
    for row in range(CLIENT_ROWS):
        own.clients[row][<uint32_t>(h >> (row * 15)) % CLIENT_CELLS] -= 1
