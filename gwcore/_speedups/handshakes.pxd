# Level 5. Threads that run the steps of TLS handshakes, so that private-key work stops no request. They never touch Python.
from gwcore._speedups.tls cimport Tls
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t

cdef struct Step:            # one step of one handshake, away from its connection; the crew's while it runs, the reactor's otherwise
    Step *next
    Tls tls                  # the session, moved here: OpenSSL's callbacks write to it
    void *plan               # LocalPlan * that the connection held for its certificates
    uint64_t handle          # of the connection
    char *bytes              # what the peer sent, then what is to be sent to it
    size_t size              # of the former; what the step left of it stands at bytes[size - left:]
    size_t left
    char *out
    size_t out_size
    int rc                   # as tls_step

cdef struct Crew:
    uint32_t threads         # running
    uint32_t limit           # most steps that may wait
    uint32_t waiting
    int wake_fd              # readable when steps are done
    void *inside             # mutex, condition, lists, thread numbers

cdef Crew *crew_start(uint32_t threads, uint32_t limit) noexcept nogil
cdef void crew_stop(Crew *c) noexcept nogil
cdef bint crew_full(Crew *c) noexcept nogil
cdef bint crew_give(Crew *c, uint64_t handle, Tls *t, void *plan, const char *bytes, size_t size) noexcept nogil
cdef Step *crew_take(Crew *c) noexcept nogil
cdef void step_free(Step *s) noexcept nogil
