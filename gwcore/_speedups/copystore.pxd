# Level 3. Python's view of the store of copies.
from gwcore._speedups.copies cimport Copies

cdef class CopyStore:
    cdef Copies own
    cdef readonly int fd
    cdef readonly int process
