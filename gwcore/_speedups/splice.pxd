# Level 8. Pipes through which large bodies move from socket to socket without passing through this process.
from gwcore._speedups.conn cimport Conn, Worker
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t

cdef struct Moved:           # what one call of splice_move did
    size_t taken             # bytes from the source
    size_t given             # bytes to the target
    bint ended               # the source has no more, now and for ever

cdef bint pipe_take(Worker *w, uint32_t *pipe) noexcept nogil
cdef void pipe_give(Worker *w, uint32_t *pipe, size_t held) noexcept nogil
cdef void pipes_close(Worker *w) noexcept nogil
cdef int splice_move(Worker *w, uint32_t pipe, Conn *source, Conn *to, uint64_t left, size_t held, Moved *moved) noexcept nogil
cdef int splice_through(Worker *w, Conn *source, Conn *to, uint64_t most, Moved *moved) noexcept nogil
cdef bint conn_dry(Conn *c) noexcept nogil
