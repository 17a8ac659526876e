"""What contexts of listeners and of upstreams have in common."""
from libc.stddef cimport size_t

from gwcore._speedups.copenssl cimport (
    BIO, BIO_free, BIO_new_mem_buf, ERR_clear_error, ERR_peek_error, ERR_reason_error_string, EVP_PKEY, EVP_PKEY_free,
    PEM_read_bio_PrivateKey, PEM_read_bio_X509, SSL_CTX, SSL_CTX_add1_chain_cert, SSL_CTX_add_client_CA, SSL_CTX_get_cert_store,
    SSL_CTX_set1_groups_list, SSL_CTX_set_cipher_list, SSL_CTX_set_ciphersuites, SSL_CTX_set_max_proto_version,
    SSL_CTX_set_min_proto_version, SSL_CTX_set_mode, SSL_CTX_set_options, SSL_CTX_set_read_ahead, SSL_CTX_use_PrivateKey,
    SSL_CTX_use_certificate, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, SSL_MODE_RELEASE_BUFFERS, SSL_OP_NO_COMPRESSION,
    SSL_OP_NO_RENEGOTIATION, X509, X509_STORE_add_cert, X509_free,
)
from gwcore._speedups.plan cimport plan_text

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *out, size_t size, const char *format, ...)


cdef bint said(char *why, size_t size, const char *what) noexcept nogil:
    cdef const char *detail = ERR_reason_error_string(ERR_peek_error())
    if detail == NULL:
        detail = b"refused"
    snprintf(why, size, b"%s: %s", what, detail)
    ERR_clear_error()
    return False


cdef int no_password(char *into, int size, int writing, void *arg) noexcept nogil:
    return -1                                            # or OpenSSL asks the terminal


cdef bint context_cert(SSL_CTX *c, const PlanHead *p, const CertSpec *spec, char *why, size_t size) noexcept nogil:
    cdef BIO *b = BIO_new_mem_buf(plan_text(p, spec.chain), <int>spec.chain.len)
    cdef X509 *x = PEM_read_bio_X509(b, NULL, NULL, NULL)
    cdef EVP_PKEY *k
    cdef bint good = x != NULL and SSL_CTX_use_certificate(c, x) == 1
    X509_free(x)
    while good:
        x = PEM_read_bio_X509(b, NULL, NULL, NULL)
        if x == NULL:
            break
        good = SSL_CTX_add1_chain_cert(c, x) == 1
        X509_free(x)
    BIO_free(b)
    if not good:
        return said(why, size, b"certificate")
    ERR_clear_error()                                    # the end of the file
    b = BIO_new_mem_buf(plan_text(p, spec.key), <int>spec.key.len)
    k = PEM_read_bio_PrivateKey(b, NULL, no_password, NULL)
    good = k != NULL and SSL_CTX_use_PrivateKey(c, k) == 1
    EVP_PKEY_free(k)
    BIO_free(b)
    return good or said(why, size, b"key")


cdef int context_authorities(SSL_CTX *c, const PlanHead *p, Str pem, bint named) noexcept nogil:
    """Trust the certificates of a PEM text, and (named) tell peers that we do; how many they are."""
    cdef BIO *b = BIO_new_mem_buf(plan_text(p, pem), <int>pem.len)
    cdef X509 *x
    cdef int n = 0
    while True:
        x = PEM_read_bio_X509(b, NULL, NULL, NULL)
        if x == NULL:
            break
        n += 1
        X509_STORE_add_cert(SSL_CTX_get_cert_store(c), x)
        if named:
            SSL_CTX_add_client_CA(c, x)
        X509_free(x)
    BIO_free(b)
    ERR_clear_error()
    return n


cdef bint context_common(SSL_CTX *c, const PlanHead *p, const TlsRules *t, char *why, size_t size) noexcept nogil:
    """Versions, algorithms, and what every session of ours does."""
    SSL_CTX_set_mode(c, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER)
    SSL_CTX_set_read_ahead(c, 1)
    SSL_CTX_set_options(c, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION)
    if SSL_CTX_set_min_proto_version(c, <int>t.min_version) != 1 or SSL_CTX_set_max_proto_version(c, <int>t.max_version) != 1:
        return said(why, size, b"versions")
    if t.ciphers.len and SSL_CTX_set_cipher_list(c, plan_text(p, t.ciphers)) != 1:
        return said(why, size, b"ciphers")
    if t.suites.len and SSL_CTX_set_ciphersuites(c, plan_text(p, t.suites)) != 1:
        return said(why, size, b"ciphersuites")
    if SSL_CTX_set1_groups_list(c, plan_text(p, t.groups)) != 1:
        return said(why, size, b"groups")
    return True
