# Level 20. The event loop of a worker: its own epoll, drained in batches under a time budget.
from gwcore._speedups.conn cimport LISTENERS_MAX, Worker
from gwcore._speedups.handshakes cimport Crew
from gwcore._speedups.types cimport uint32_t, uint64_t
from libc.stdint cimport uint8_t

cdef struct Listener:
    int fd                   # -1 = closed
    bint paused
    bint proxy_protocol
    char address[128]
    uint32_t address_len

cdef struct Reactor:
    Worker w
    Listener listeners[64]
    int n_listeners

cdef bint reactor_open(Reactor *r) noexcept nogil
cdef bint reactor_crew(Reactor *r, Crew *crew) noexcept nogil
cdef void reactor_close(Reactor *r) noexcept nogil
cdef void clock_arm(Worker *w) noexcept nogil
cdef void reactor_drain(Reactor *r) noexcept nogil
cdef void reactor_clock(Worker *w) noexcept nogil
cdef bint listener_add(Reactor *r, const char *address, uint32_t size, int fd) noexcept nogil
cdef void listener_drop(Reactor *r, int i, bint empty_queue) noexcept nogil
cdef uint32_t reactor_close_idle(Reactor *r, uint64_t idle_ms) noexcept nogil
