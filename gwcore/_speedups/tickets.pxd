# Level 5. Session tickets: the keys are the gateway's own, in the shared segment.
from gwcore._speedups.copenssl cimport SSL_CTX
from gwcore._speedups.shm cimport TicketRing, TlsCell

cdef struct TlsShared:       # what the callbacks of a handshake find: the first member of TlsServer
    const TicketRing *ring
    TlsCell *cell            # of this worker

cdef void tickets_attach(SSL_CTX *c) noexcept nogil
