# Level 1. Objects of one size in chunks which never move and never go back: a pointer stays readable for the life of the
# process, so a stale handle is detected by its generation and never faults.
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t

cdef struct SlabItem:        # the first member of everything that lives in a slab
    uint32_t slot            # its place, fixed
    uint32_t gen             # starts at 1; giving the item back adds one, so older handles stop matching
    uint32_t next_free       # while free: the next free place + 1
    uint32_t live            # 1 while taken

cdef struct Slab:
    char **chunk             # chunk pointers; the items in them never move
    uint32_t n_chunks
    uint32_t item_bytes
    uint32_t free_first      # place + 1 of the item given back last; 0 = none
    uint32_t used            # items taken
    uint32_t made            # items ever made

cdef enum:
    SLAB_CHUNK_ITEMS = 256

cdef inline void *slab_at(const Slab *s, uint32_t slot) noexcept nogil:
    return s.chunk[slot // SLAB_CHUNK_ITEMS] + <size_t>(slot % SLAB_CHUNK_ITEMS) * s.item_bytes

cdef inline uint64_t slab_bytes(const Slab *s) noexcept nogil:
    """What it has from the system."""
    return <uint64_t>s.made * s.item_bytes

cdef inline uint64_t slab_handle(const SlabItem *item) noexcept nogil:
    return <uint64_t>item.gen << 32 | item.slot

cdef inline void *slab_get(const Slab *s, uint64_t handle) noexcept nogil:
    """The item of a handle; NULL when it was given back since (or never existed)."""
    cdef uint32_t slot = <uint32_t>handle
    cdef SlabItem *item
    if slot >= s.made:
        return NULL
    item = <SlabItem *>slab_at(s, slot)
    return item if item.gen == <uint32_t>(handle >> 32) and item.live else NULL

cdef void slab_init(Slab *s, uint32_t item_bytes) noexcept nogil
cdef void *slab_take(Slab *s) noexcept nogil
cdef void slab_give(Slab *s, void *item) noexcept nogil
cdef void slab_close(Slab *s) noexcept nogil
