"""Slabs: fixed-size objects with generations. Taking and giving are a few loads and stores; malloc only when a chunk is full."""
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from gwcore._speedups.sys cimport gw_poison, gw_unpoison
from gwcore._speedups.types cimport size_t, uint32_t


cdef void slab_init(Slab *s, uint32_t item_bytes) noexcept nogil:
    """An empty slab for items of item_bytes (rounded up to 16)."""
    memset(s, 0, sizeof(Slab))
    s.item_bytes = (item_bytes + 15) & ~<uint32_t>15


cdef bint slab_grow(Slab *s) noexcept nogil:
    cdef char **table = <char **>realloc(s.chunk, (s.n_chunks + 1) * sizeof(char *))
    cdef uint32_t i
    cdef SlabItem *item
    if table == NULL:
        return False
    s.chunk = table
    table[s.n_chunks] = <char *>calloc(SLAB_CHUNK_ITEMS, s.item_bytes)
    if table[s.n_chunks] == NULL:
        return False
    s.n_chunks += 1
    for i in range(SLAB_CHUNK_ITEMS):        # pushed last to first, so the lowest place is taken first
        item = <SlabItem *>slab_at(s, s.made + SLAB_CHUNK_ITEMS - 1 - i)
        item.slot = s.made + SLAB_CHUNK_ITEMS - 1 - i
        item.gen = 1
        item.next_free = s.free_first
        s.free_first = item.slot + 1
        gw_poison(item + 1, s.item_bytes - sizeof(SlabItem))
    s.made += SLAB_CHUNK_ITEMS
    return True


cdef void *slab_take(Slab *s) noexcept nogil:
    """A zeroed item, or NULL when memory is out. The caller owns it until slab_give."""
    cdef SlabItem *item
    if s.free_first == 0 and not slab_grow(s):
        return NULL
    item = <SlabItem *>slab_at(s, s.free_first - 1)
    s.free_first = item.next_free
    s.used += 1
    item.live = 1
    gw_unpoison(item + 1, s.item_bytes - sizeof(SlabItem))
    memset(item + 1, 0, s.item_bytes - sizeof(SlabItem))
    return item


cdef void slab_give(Slab *s, void *p) noexcept nogil:
    """Give an item back; its handles go stale at once. Giving twice is harmless."""
    cdef SlabItem *item = <SlabItem *>p
    if item == NULL or not item.live:
        return
    item.live = 0
    item.gen += 1
    if item.gen == 0:
        item.gen = 1
    item.next_free = s.free_first
    s.free_first = item.slot + 1
    s.used -= 1
    gw_poison(item + 1, s.item_bytes - sizeof(SlabItem))


cdef void slab_close(Slab *s) noexcept nogil:
    """Free all memory. No item may be in use any more."""
    cdef uint32_t i
    for i in range(s.n_chunks):
        gw_unpoison(s.chunk[i], <size_t>SLAB_CHUNK_ITEMS * s.item_bytes)
        free(s.chunk[i])
    free(s.chunk)
    memset(s, 0, sizeof(Slab))
