"""Contexts of a listener. A certificate is chosen at the ClientHello, before OpenSSL looks for a session, so that a session made under one
name or with other client certificates is never found under another: the identity of what was chosen, with the name, is its session id
context (CONFORMANCE T4)."""
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from gwcore._speedups.copenssl cimport (
    SSL_CTX_set_mode, SSL_MODE_ASYNC,    TLS1_3_VERSION,    BIO, BIO_free, BIO_new, BIO_new_mem_buf, BIO_read, BIO_s_mem, ERR_clear_error, EVP_Digest, EVP_sha256, NID_X25519,
    NID_X9_62_prime256v1, NID_secp384r1, OPENSSL_malloc, PEM_read_bio_X509_CRL, SSL, SSL_AD_UNRECOGNIZED_NAME,
    SSL_CIPHER_get_protocol_id, SSL_CLIENT_HELLO_ERROR, SSL_CLIENT_HELLO_RETRY, SSL_CLIENT_HELLO_SUCCESS,
    SSL_CTX, SSL_CTX_sess_set_get_cb, SSL_CTX_sess_set_new_cb, SSL_SESSION, SSL_SESS_CACHE_NO_INTERNAL, SSL_SESS_CACHE_SERVER, SSL_CTX_free, SSL_CTX_get_cert_store,
    SSL_CTX_new, SSL_CTX_set_alpn_select_cb, SSL_CTX_set_client_hello_cb, SSL_CTX_set_num_tickets, SSL_CTX_set_options,
    SSL_CTX_set_session_cache_mode, SSL_CTX_set_timeout, SSL_CTX_set_tlsext_status_cb, SSL_CTX_set_verify,
    SSL_CTX_set_verify_depth, SSL_OP_CIPHER_SERVER_PREFERENCE, SSL_OP_NO_TICKET, SSL_OP_PRIORITIZE_CHACHA, SSL_SESS_CACHE_OFF,
    SSL_CTX_set_allow_early_data_cb, SSL_CTX_set_max_early_data, SSL_CTX_set_recv_max_early_data, SSL_EARLY_DATA_REJECTED, SSL_OP_NO_ANTI_REPLAY,
    SSL_get_early_data_status,
    SSL_TLSEXT_ERR_ALERT_FATAL, SSL_TLSEXT_ERR_NOACK, SSL_TLSEXT_ERR_OK, SSL_VERIFY_FAIL_IF_NO_PEER_CERT, SSL_VERIFY_PEER,
    SSL_client_hello_get0_ext, SSL_get0_peer_certificate, SSL_get_current_cipher, SSL_get_negotiated_group,
    SSL_set_SSL_CTX, SSL_set_session_id_context, SSL_set_tlsext_status_ocsp_resp, SSL_version, TLSEXT_TYPE_server_name,
    TLS_server_method, X509, X509_CRL, X509_CRL_free, X509_NAME_print_ex, X509_STORE_add_crl, X509_STORE_set_flags,
    X509_V_FLAG_CRL_CHECK, X509_V_FLAG_CRL_CHECK_ALL, X509_cmp_current_time, X509_digest, X509_get0_notAfter,
    X509_get_subject_name, XN_FLAG_RFC2253,
)
from gwcore._speedups.fields cimport LOWER
from gwcore._speedups.histogram cimport histogram_cell
from gwcore._speedups.plan cimport CertSpec, Str, TlsPolicy, hash_bytes, name_id, plan_text, plan_tls
from gwcore._speedups.sessions cimport session_claim, session_find, session_keep, session_wanted
from gwcore._speedups.shm cimport TlsCell
from gwcore._speedups.tickets cimport tickets_attach
from gwcore._speedups.tls cimport TLS_EARLY, tls_of
from gwcore._speedups.tlscontext cimport context_authorities, context_cert, context_common, said

cdef enum:
    NAME_MOST = 253          # of a host name (RFC 1035)

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *out, size_t size, const char *format, ...)


# ---- what OpenSSL asks during a handshake -------------------------------------------------------------------------

cdef size_t name_asked(SSL *ssl, char *out) noexcept nogil:
    """The server name of a ClientHello in lower case and without a trailing dot (RFC 6066 3); its length, 0 when there is none."""
    cdef const unsigned char *at
    cdef size_t n, i
    if SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_server_name, &at, &n) != 1 or n < 5:
        return 0
    if <size_t>(at[0] << 8 | at[1]) != n - 2 or at[2] != 0 or <size_t>(at[3] << 8 | at[4]) > n - 5:
        return 0                                     # malformed: OpenSSL refuses it in a moment
    n = <size_t>(at[3] << 8 | at[4])
    at += 5
    if n and at[n - 1] == c'.':
        n -= 1
    if n > NAME_MOST:
        return 0
    for i in range(n):
        out[i] = LOWER[at[i]]
    return n


cdef int on_hello(SSL *ssl, int *alert, void *arg) noexcept nogil:
    cdef TlsServer *s = <TlsServer *>arg
    cdef Tls *t = tls_of(ssl)
    cdef char name[256]
    cdef unsigned char identity[32 + 256]
    cdef unsigned int size
    cdef size_t n = name_asked(ssl, name)
    cdef uint32_t policy = server_policy(s, name, n)
    cdef const TlsPolicy *p
    if policy == 0 and n and s.spec.refuse_unknown:
        alert[0] = SSL_AD_UNRECOGNIZED_NAME
        return SSL_CLIENT_HELLO_ERROR
    t.named = policy != 0
    t.policy = <uint16_t>(policy - 1 if policy else 0)
    t.name_hash = hash_bytes(1, name, n) if n else 0
    p = <const TlsPolicy *>(<const char *>s.plan + s.spec.policies.off) + t.policy
    memcpy(&t.identity, p.identity, sizeof(t.identity))
    memcpy(identity, p.identity, 32)
    memcpy(identity + 32, name, n)
    if SSL_set_SSL_CTX(ssl, s.contexts[t.policy]) == NULL or EVP_Digest(identity, 32 + n, identity, &size, EVP_sha256(), NULL) != 1 \
            or SSL_set_session_id_context(ssl, identity, 32) != 1:
        return SSL_CLIENT_HELLO_ERROR
    return SSL_CLIENT_HELLO_RETRY if s.spec.sessions == 2 and session_wanted(&s.sessions, t, ssl) else SSL_CLIENT_HELLO_SUCCESS


cdef int on_session(SSL *ssl, SSL_SESSION *session) noexcept nogil:
    session_keep(&(<TlsServer *>tls_of(ssl).server).sessions, session)
    return 0                                             # the session stays OpenSSL's


cdef SSL_SESSION *on_resume(SSL *ssl, const unsigned char *id, int size, int *copy) noexcept nogil:
    cdef Tls *t = tls_of(ssl)
    copy[0] = 0                                          # what is found is OpenSSL's to free
    return session_find(&(<TlsServer *>t.server).sessions, t, id, size)


cdef int on_early(SSL *ssl, void *arg) noexcept nogil:
    cdef Tls *t = tls_of(ssl)
    return session_claim(&(<TlsServer *>t.server).sessions, t, ssl)


cdef int on_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *offered, unsigned int n, void *arg) noexcept nogil:
    """The first of ours that the client offers; none in common is an alert (RFC 7301 3.2)."""
    cdef TlsServer *s = <TlsServer *>arg
    cdef const char *ours = plan_text(s.plan, s.spec.rules.alpn)
    cdef uint32_t i = 0, k
    while i < s.spec.rules.alpn.len:
        k = 0
        while k < n:
            if offered[k] == <uint8_t>ours[i] and memcmp(offered + k + 1, ours + i + 1, offered[k]) == 0:
                out[0] = offered + k + 1
                out_len[0] = offered[k]
                return SSL_TLSEXT_ERR_OK
            k += 1 + offered[k]
        i += 1 + <uint8_t>ours[i]
    return SSL_TLSEXT_ERR_ALERT_FATAL


cdef int on_status(SSL *ssl, void *arg) noexcept nogil:
    """Staple the OCSP response of the certificate (its first, where there are two)."""
    cdef Tls *t = tls_of(ssl)
    cdef TlsServer *s = <TlsServer *>t.server
    cdef const TlsPolicy *p = <const TlsPolicy *>(<const char *>s.plan + s.spec.policies.off) + t.policy
    cdef const uint32_t *list = <const uint32_t *>(<const char *>s.plan + p.certs.off)
    cdef Str der = (<const CertSpec *>(<const char *>s.plan + s.spec.certs.off) + list[0]).ocsp
    cdef unsigned char *copy
    if der.len == 0:
        return SSL_TLSEXT_ERR_NOACK
    copy = <unsigned char *>OPENSSL_malloc(der.len)      # OpenSSL frees it
    if copy == NULL:
        return SSL_TLSEXT_ERR_NOACK
    memcpy(copy, plan_text(s.plan, der), der.len)
    SSL_set_tlsext_status_ocsp_resp(ssl, copy, der.len)
    return SSL_TLSEXT_ERR_OK


# ---- which policy -------------------------------------------------------------------------------------------------

cdef uint32_t server_policy(const TlsServer *s, const char *name, size_t n) noexcept nogil:
    """The index + 1 of the policy for a name in lower case; 0 = no certificate has it. A wildcard stands for one label (RFC 6125 6.4.3)."""
    cdef uint32_t id = name_id(s.plan, s.spec.names, name, n, 0)
    cdef size_t i = 0
    if id or n == 0:
        return id
    while i < n and name[i] != c'.':
        i += 1
    return name_id(s.plan, s.spec.names, name + i, n - i, 1) if 0 < i < n else 0


cdef bint server_owns(const TlsServer *s, const Tls *t, const char *host, size_t n) noexcept nogil:
    """May a request for this host come on this connection? A client that named a server gets hosts of that certificate only; one that named
    none (or an unknown one) every host but those that have a certificate of their own. s NULL: the listener is gone, or plain by now."""
    cdef uint32_t policy
    cdef uint64_t identity
    if n == 0 or (t.named and t.name_hash == hash_bytes(1, host, n)):
        return True                                      # HTTP/1.0 need not name a host
    policy = server_policy(s, host, n) if s != NULL else 0
    if policy == 0:
        return not t.named
    memcpy(&identity, ((<const TlsPolicy *>(<const char *>s.plan + s.spec.policies.off)) + policy - 1).identity, sizeof(identity))
    return identity == t.identity


# ---- who the client is --------------------------------------------------------------------------------------------

cdef long server_identity(const Tls *t, char *out, size_t room) noexcept nogil:
    """Header lines that tell the upstream of the client's certificate, into out (room for 900 bytes at least); their length, 0 when it showed
    none. -1: the certificate has ended meanwhile, which a resumed session does not ask (CONFORMANCE T4). The subject is escaped as RFC 2253
    has it, so that no byte of it can end a line."""
    cdef X509 *x = SSL_get0_peer_certificate(t.ssl)
    cdef unsigned char digest[64]
    cdef unsigned int n = 0, i
    cdef BIO *b
    cdef int size = 0
    cdef char subject[513]
    cdef char hexed[65]
    if x == NULL:
        return 0
    if X509_cmp_current_time(X509_get0_notAfter(x)) <= 0:
        return -1
    b = BIO_new(BIO_s_mem())
    if b != NULL and X509_NAME_print_ex(b, X509_get_subject_name(x), 0, XN_FLAG_RFC2253) >= 0:
        size = BIO_read(b, subject, 512)
    BIO_free(b)
    subject[size if size > 0 else 0] = 0
    X509_digest(x, EVP_sha256(), digest, &n)
    for i in range(32):
        hexed[2 * i], hexed[2 * i + 1] = b"0123456789abcdef"[digest[i] >> 4], b"0123456789abcdef"[digest[i] & 15]
    hexed[64] = 0
    ERR_clear_error()
    return snprintf(out, room, b"X-Gwcore-Client-Subject: %s\r\nX-Gwcore-Client-Fingerprint: sha256=%s\r\n", <char *>subject, <char *>hexed)


# ---- counting -----------------------------------------------------------------------------------------------------

cdef uint16_t[9] CIPHERS                 # ids, in the order of shm.CIPHER_WORDS
CIPHERS[:] = [0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8]
cdef int[4] GROUPS                       # ids with TLS 1.3 and OpenSSL's NIDs, in the order of shm.GROUP_WORDS
GROUPS[:] = [NID_X25519, NID_X9_62_prime256v1, NID_secp384r1, 0x011ec | 0x1000000]


cdef void server_count(TlsServer *s, const Tls *t, uint64_t us) noexcept nogil:
    """Count a handshake that has come about, and how long it took."""
    cdef TlsCell *cell = s.shared.cell
    cdef uint16_t cipher = SSL_CIPHER_get_protocol_id(SSL_get_current_cipher(t.ssl))
    cdef int group = SSL_get_negotiated_group(t.ssl), i = 0
    if t.resumed:
        cell.resumed[t.kind - 1 if t.kind else 0] += 1
    else:
        cell.full[SSL_version(t.ssl) == TLS1_3_VERSION] += 1
    while i < 9 and CIPHERS[i] != cipher:
        i += 1
    cell.ciphers[i] += 1
    i = 0
    while i < 4 and GROUPS[i] != group:
        i += 1
    cell.groups[i if i < 4 else 4 if group == 0 else 5] += 1
    cell.seconds[histogram_cell(us)] += 1
    cell.sum_us += us
    cell.early_refused += SSL_get_early_data_status(t.ssl) == SSL_EARLY_DATA_REJECTED


# ---- making contexts ----------------------------------------------------------------------------------------------

cdef bint context_clients(SSL_CTX *c, const TlsServer *s, char *why, size_t size) noexcept nogil:
    """Ask for client certificates."""
    cdef BIO *b
    cdef X509_CRL *l
    cdef int n
    if context_authorities(c, s.plan, s.spec.client_ca, True) == 0:
        return said(why, size, b"client_auth.ca holds no certificate")
    if s.spec.client_crl.len:
        b = BIO_new_mem_buf(plan_text(s.plan, s.spec.client_crl), <int>s.spec.client_crl.len)
        n = 0
        while True:
            l = PEM_read_bio_X509_CRL(b, NULL, NULL, NULL)
            if l == NULL:
                break
            n += 1
            X509_STORE_add_crl(SSL_CTX_get_cert_store(c), l)
            X509_CRL_free(l)
        BIO_free(b)
        ERR_clear_error()
        if n == 0:
            return said(why, size, b"client_auth.crl holds no revocation list")
        X509_STORE_set_flags(SSL_CTX_get_cert_store(c), X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL)
    SSL_CTX_set_verify(c, SSL_VERIFY_PEER | (SSL_VERIFY_FAIL_IF_NO_PEER_CERT if s.spec.client_auth == 2 else 0), NULL)
    SSL_CTX_set_verify_depth(c, <int>s.spec.client_depth)
    return True


cdef bint context_rules(SSL_CTX *c, TlsServer *s, char *why, size_t size) noexcept nogil:
    """Everything but certificates."""
    cdef const TlsSpec *t = s.spec
    if not context_common(c, s.plan, &t.rules, why, size):
        return False
    SSL_CTX_set_options(c, SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA)
    SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_SERVER | SSL_SESS_CACHE_NO_INTERNAL if t.sessions == 2 else SSL_SESS_CACHE_OFF)
    SSL_CTX_set_timeout(c, t.lifetime_s)
    if t.asynchronous:
        SSL_CTX_set_mode(c, SSL_MODE_ASYNC)
    SSL_CTX_set_num_tickets(c, 1 if t.sessions else 0)
    if t.sessions == 1:
        tickets_attach(c)
    else:
        SSL_CTX_set_options(c, SSL_OP_NO_TICKET)         # TLS 1.3 then names sessions by their id in what it calls tickets
    if t.sessions == 2:
        SSL_CTX_sess_set_new_cb(c, on_session)
        SSL_CTX_sess_set_get_cb(c, on_resume)
    if t.early:
        SSL_CTX_set_options(c, SSL_OP_NO_ANTI_REPLAY)    # OpenSSL's own needs a cache of its own; on_early does it
        SSL_CTX_set_max_early_data(c, TLS_EARLY)
        SSL_CTX_set_recv_max_early_data(c, TLS_EARLY)
        SSL_CTX_set_allow_early_data_cb(c, on_early, NULL)
    SSL_CTX_set_client_hello_cb(c, on_hello, s)
    SSL_CTX_set_alpn_select_cb(c, on_alpn, s)
    SSL_CTX_set_tlsext_status_cb(c, on_status)
    if t.client_auth and not context_clients(c, s, why, size):
        return False
    return True


cdef bint server_build(TlsServer *s, const PlanHead *p, uint32_t i, char *why, size_t size) noexcept nogil:
    """The contexts of the plan's i-th TLS listener. False: why says what is refused, and server_free gives back what was made."""
    cdef const TlsPolicy *policy
    cdef const uint32_t *list
    cdef uint32_t k, n
    s.plan, s.spec = p, plan_tls(p, i)
    s.sessions.redis, s.sessions.lifetime_s, s.sessions.max_version = s.spec.redis != 0, s.spec.lifetime_s, s.spec.rules.max_version
    s.contexts = <SSL_CTX **>calloc(s.spec.policies.n, sizeof(SSL_CTX *))
    if s.contexts == NULL:
        return said(why, size, b"memory")
    for k in range(s.spec.policies.n):
        s.contexts[k] = SSL_CTX_new(TLS_server_method())
        if s.contexts[k] == NULL:
            return said(why, size, b"memory")
        if not context_rules(s.contexts[k], s, why, size):
            return False
        policy = <const TlsPolicy *>(<const char *>p + s.spec.policies.off) + k
        list = <const uint32_t *>(<const char *>p + policy.certs.off)
        for n in range(policy.certs.n):
            if not context_cert(s.contexts[k], p, <const CertSpec *>(<const char *>p + s.spec.certs.off) + list[n], why, size):
                return False
    return True


cdef void server_free(TlsServer *s) noexcept nogil:
    """Connections that are up keep their contexts: OpenSSL counts."""
    cdef uint32_t k
    if s.contexts != NULL:
        for k in range(s.spec.policies.n):
            SSL_CTX_free(s.contexts[k])
        free(s.contexts)
    s.contexts = NULL
