# Level 7. How long an upstream connection may idle.
from gwcore._speedups.types cimport uint64_t
from gwcore.pool cimport PoolItem

cdef uint64_t idle_life_ms(const PoolItem *item) noexcept nogil
cdef void idle_peer_closed(PoolItem *item, uint64_t now_ms) noexcept nogil
cdef void idle_outlived(PoolItem *item, uint64_t now_ms) noexcept nogil
