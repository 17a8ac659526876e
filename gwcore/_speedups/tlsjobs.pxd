# Level 5. Handshakes that wait for an asynchronous provider or engine (OpenSSL's ASYNC_JOB, SSL_MODE_ASYNC).
from gwcore._speedups.tls cimport Tls, TlsIo
from gwcore._speedups.types cimport uint32_t, uint64_t

cdef struct Job:             # a session whose connection has ended while its job waits
    Tls tls                  # ssl NULL = free place
    void *plan               # LocalPlan * that its certificates are in

cdef struct Jobs:            # one per worker
    Job **rows
    uint32_t n

cdef bint job_watch(int ep, Tls *t, uint64_t data) noexcept nogil
cdef bint job_orphan(Jobs *j, int ep, Tls *t, void *plan, uint64_t data) noexcept nogil
cdef void *job_resume(Jobs *j, TlsIo *io, int ep, uint32_t row, uint64_t data) noexcept nogil
cdef uint32_t jobs_waiting(const Jobs *j) noexcept nogil
cdef void jobs_close(Jobs *j) noexcept nogil
