# Level 6. The TLS side of an upstream: how its endpoints are verified and what we show them.
from gwcore._speedups.copenssl cimport SSL_CTX, SSL_SESSION
from gwcore._speedups.plan cimport EndpointSpec, PlanHead
from gwcore._speedups.tls cimport Tls, TlsIo
from gwcore._speedups.types cimport size_t, uint32_t

cdef enum:
    SESSIONS = 4             # kept of one endpoint; TLS 1.3 wants each used once

cdef struct Sessions:        # of one endpoint, newest first; each slot owns a reference
    SSL_SESSION *kept[4]

cdef SSL_CTX *client_build(const PlanHead *p, uint32_t i, char *why, size_t size) noexcept nogil
cdef bint client_begin(TlsIo *io, Tls *t, SSL_CTX *c, Sessions *sessions, const char *name, bint ip, const char *sni) noexcept nogil
cdef void sessions_drop(Sessions *s) noexcept nogil
