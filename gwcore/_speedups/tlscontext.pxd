# Level 5. What contexts of listeners and of upstreams have in common.
from gwcore._speedups.copenssl cimport SSL_CTX
from gwcore._speedups.plan cimport CertSpec, PlanHead, Str, TlsRules
from gwcore._speedups.types cimport size_t

cdef bint said(char *why, size_t size, const char *what) noexcept nogil
cdef bint context_cert(SSL_CTX *c, const PlanHead *p, const CertSpec *spec, char *why, size_t size) noexcept nogil
cdef int context_authorities(SSL_CTX *c, const PlanHead *p, Str pem, bint named) noexcept nogil
cdef bint context_common(SSL_CTX *c, const PlanHead *p, const TlsRules *t, char *why, size_t size) noexcept nogil
