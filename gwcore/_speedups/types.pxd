# Level 0. The words every other file uses: return codes, intrusive links, slices of a plan.
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t

# Positive = progress in bytes. RC_AGAIN = somebody will wake us. RC_FAIL = the cause is in errno or in a Reason.
# -1 is not in it: it is what a system call returns, and only sys callers compare with it.
cdef enum:
    RC_OK = 0
    RC_AGAIN = -2
    RC_DONE = -3
    RC_FAIL = -4
    RC_PARK = -5             # Python is to be asked first

cdef struct Str:            # a slice of a plan blob, relative to its base
    uint32_t off
    uint32_t len

# Intrusive list node. A fresh node points at itself, so dropping one twice, or one never pushed, is harmless.
cdef struct Link:
    Link *next
    Link *prev

cdef struct Node:           # a link that names what it belongs to by slab place
    Link link                # first member
    uint32_t owner

cdef inline void link_init(Link *node) noexcept nogil:
    node.next = node.prev = node

cdef inline bint link_empty(const Link *node) noexcept nogil:
    return node.next == node

cdef inline void link_push(Link *head, Link *node) noexcept nogil:
    """Put node first in the list."""
    node.next = head.next
    node.prev = head
    head.next.prev = node
    head.next = node

cdef inline void link_append(Link *head, Link *node) noexcept nogil:
    """Put node last in the list."""
    node.prev = head.prev
    node.next = head
    head.prev.next = node
    head.prev = node

cdef inline void link_drop(Link *node) noexcept nogil:
    node.prev.next = node.next
    node.next.prev = node.prev
    node.next = node.prev = node
