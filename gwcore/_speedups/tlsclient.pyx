"""TLS to upstreams. A certificate is verified against name and authorities unless the configuration says otherwise; sessions are kept by
endpoint, so none is shown to another upstream (CONFORMANCE T8)."""
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t

from gwcore._speedups.copenssl cimport (
    SSL, SSL_CTX, SSL_CTX_free, SSL_CTX_new, SSL_CTX_sess_set_new_cb, SSL_CTX_set_alpn_protos,
    SSL_CTX_set_default_verify_paths, SSL_CTX_set_session_cache_mode, SSL_CTX_set_verify, SSL_SESSION, SSL_SESSION_free, SSL_SESSION_get_protocol_version,
    SSL_SESS_CACHE_CLIENT, SSL_SESS_CACHE_NO_INTERNAL, SSL_VERIFY_NONE, SSL_VERIFY_PEER, SSL_get0_param, SSL_set1_host,
    SSL_set_session, SSL_set_tlsext_host_name, TLS1_3_VERSION, TLS_client_method, X509_VERIFY_PARAM_set1_ip_asc,
)
from gwcore._speedups.plan cimport TlsClientSpec, plan_client, plan_text
from gwcore._speedups.tls cimport tls_begin, tls_end, tls_of
from gwcore._speedups.tlscontext cimport context_authorities, context_cert, context_common, said


cdef int on_session(SSL *ssl, SSL_SESSION *session) noexcept nogil:
    """The upstream offers a session: keep it, it is ours (1)."""
    cdef Tls *t = tls_of(ssl)
    cdef Sessions *s = <Sessions *>t.sessions
    cdef int i = SESSIONS - 1
    if s == NULL:
        return 0
    SSL_SESSION_free(s.kept[i])
    while i:
        s.kept[i] = s.kept[i - 1]
        i -= 1
    s.kept[0] = session
    return 1


cdef SSL_CTX *client_build(const PlanHead *p, uint32_t i, char *why, size_t size) noexcept nogil:
    """The context of the plan's i-th upstream TLS; NULL: why says what is refused."""
    cdef const TlsClientSpec *t = plan_client(p, i)
    cdef SSL_CTX *c = SSL_CTX_new(TLS_client_method())
    cdef bint good = c != NULL and context_common(c, p, &t.rules, why, size)
    if good:
        SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL)
        SSL_CTX_sess_set_new_cb(c, on_session)
        SSL_CTX_set_verify(c, SSL_VERIFY_PEER if t.verify else SSL_VERIFY_NONE, NULL)
        SSL_CTX_set_alpn_protos(c, <const unsigned char *>plan_text(p, t.rules.alpn), t.rules.alpn.len)
        if t.ca.len:
            good = context_authorities(c, p, t.ca, False) > 0 or said(why, size, b"ca holds no certificate")
        elif t.verify:
            good = SSL_CTX_set_default_verify_paths(c) == 1 or said(why, size, b"the system's authorities")
    if good and t.cert.chain.len:
        good = context_cert(c, p, &t.cert, why, size)
    if not good:
        SSL_CTX_free(c)
        return NULL
    return c


cdef bint client_begin(TlsIo *io, Tls *t, SSL_CTX *c, Sessions *sessions, const char *name, bint ip, const char *sni) noexcept nogil:
    """A session with an endpoint: its certificate must be for name (an address: ip; NULL: any), sni is what we ask for (NULL: nothing). A kept
    session is offered, one of TLS 1.3 once. False when memory is out; then t is plain as before."""
    cdef SSL_SESSION *kept = sessions.kept[0]
    cdef int i
    cdef bint good
    if not tls_begin(io, t, c, False):
        return False
    t.sessions = sessions
    good = sni == NULL or SSL_set_tlsext_host_name(t.ssl, sni) == 1
    if name != NULL:
        if ip:
            good = good and X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(t.ssl), name) == 1
        else:
            good = good and SSL_set1_host(t.ssl, name) == 1
    if not good:
        tls_end(t)
        return False
    if kept != NULL:
        SSL_set_session(t.ssl, kept)
        if SSL_SESSION_get_protocol_version(kept) >= TLS1_3_VERSION:     # to be used once (RFC 8446 C.4)
            for i in range(SESSIONS - 1):
                sessions.kept[i] = sessions.kept[i + 1]
            sessions.kept[SESSIONS - 1] = NULL
            SSL_SESSION_free(kept)
    return True


cdef void sessions_drop(Sessions *s) noexcept nogil:
    cdef int i
    for i in range(SESSIONS):
        SSL_SESSION_free(s.kept[i])
        s.kept[i] = NULL
