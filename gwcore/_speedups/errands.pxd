# Level 21. What Python does for the data plane while requests and handshakes wait.
from gwcore._speedups.copystore cimport CopyStore
from gwcore._speedups.reactor cimport Reactor

cdef class Errands:
    cdef Reactor r
    cdef readonly CopyStore copies       # None = no copies are kept
    cdef public object on_letters        # called with letters about sessions
    cdef public object on_copies         # called with letters about copies
    cdef _letters(self)
    cdef _session_letters(self)
    cdef _copy_letters(self)
