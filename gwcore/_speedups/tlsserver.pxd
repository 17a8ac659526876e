# Level 6. The TLS side of a listener: its contexts, one for each set of certificates, and how one is chosen by the client's server name.
from gwcore._speedups.copenssl cimport SSL_CTX
from gwcore._speedups.plan cimport PlanHead, TlsSpec
from gwcore._speedups.sessions cimport SessionUse
from gwcore._speedups.tickets cimport TlsShared
from gwcore._speedups.tls cimport Tls
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t

cdef struct TlsServer:       # owned by a LocalPlan; a connection in its handshake holds that plan
    TlsShared shared         # first member
    SessionUse sessions
    const PlanHead *plan
    const TlsSpec *spec
    SSL_CTX **contexts       # by policy

cdef bint server_build(TlsServer *s, const PlanHead *p, uint32_t i, char *why, size_t size) noexcept nogil
cdef void server_free(TlsServer *s) noexcept nogil
cdef long server_identity(const Tls *t, char *out, size_t room) noexcept nogil
cdef void server_count(TlsServer *s, const Tls *t, uint64_t us) noexcept nogil
cdef uint32_t server_policy(const TlsServer *s, const char *name, size_t n) noexcept nogil
cdef bint server_owns(const TlsServer *s, const Tls *t, const char *host, size_t n) noexcept nogil
