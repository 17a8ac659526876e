"""Session tickets (RFC 5077, RFC 8446 4.6.1) under keys that the supervisor rotates and every worker, and every machine of a fleet, may share.
One key issues, all of them open; a ticket of a key that issues no more is renewed, and so is every ticket of TLS 1.3. AES-256-CBC with
HMAC-SHA256, as RFC 5077 section 4 recommends. The ring is read under a sequence lock: a worker never waits for the supervisor."""
from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

from gwcore._speedups.copenssl cimport (
    EVP_CIPHER_CTX, EVP_DecryptInit_ex, EVP_EncryptInit_ex, EVP_MAC_CTX, EVP_MAC_CTX_set_params, EVP_aes_256_cbc, OPENSSL_cleanse,
    OSSL_MAC_PARAM_DIGEST, OSSL_MAC_PARAM_KEY, OSSL_PARAM, OSSL_PARAM_construct_end, OSSL_PARAM_construct_octet_string,
    OSSL_PARAM_construct_utf8_string, RAND_bytes, SSL, SSL_CTX, SSL_CTX_set_tlsext_ticket_key_evp_cb, SSL_version, TLS1_3_VERSION,
)
from gwcore._speedups.shm cimport TicketKey, TicketRing
from gwcore._speedups.tls cimport tls_of

cdef enum:
    PLACES = 8
    TRIES = 1000             # of reading while the supervisor writes

cdef extern from * nogil:
    """
    #define gw_acquire_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define gw_count(p) ((void)__atomic_fetch_add((p), 1, __ATOMIC_RELAXED))
    #define gw_acquire_fence() __atomic_thread_fence(__ATOMIC_ACQUIRE)
    """
    unsigned int gw_acquire_load(const unsigned int *p)
    void gw_acquire_fence()
    void gw_count(uint64_t *n)          # handshakes may run in several threads


cdef int key_read(const TicketRing *r, const unsigned char *name, TicketKey *out) noexcept nogil:
    """Copy the key of a name, or the one that issues (name NULL), to out. Its place, or -1 when there is none. Place | 256: it issues."""
    cdef unsigned int version, current, used
    cdef int i, found, _try
    for _try in range(TRIES):
        version = gw_acquire_load(&r.version)
        if version & 1:
            continue
        current, used = r.current, r.used
        found = -1
        for i in range(PLACES):
            if used >> i & 1 and (<unsigned int>i == current if name == NULL else memcmp(r.keys[i].name, name, 16) == 0):
                memcpy(out, &r.keys[i], sizeof(TicketKey))
                found = i | (256 if <unsigned int>i == current else 0)
        gw_acquire_fence()
        if gw_acquire_load(&r.version) == version:
            return found
    return -1


cdef int on_ticket(SSL *ssl, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac, int issue) noexcept nogil:
    cdef TlsShared *shared = <TlsShared *>tls_of(ssl).server
    cdef TicketKey key
    cdef OSSL_PARAM params[3]
    cdef int place = key_read(shared.ring, NULL if issue else name, &key), rc
    if place < 0:
        if not issue:
            gw_count(&shared.cell.tickets_unknown)
        return 0                                         # no ticket; or a full handshake
    params[0] = OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, key.mac, 32)
    params[1] = OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, <char *>b"sha256", 0)
    params[2] = OSSL_PARAM_construct_end()
    if issue:
        memcpy(name, key.name, 16)
        rc = RAND_bytes(iv, 16) == 1 and EVP_EncryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.aes, iv) == 1
        gw_count(&shared.cell.tickets_issued)
    else:
        rc = EVP_DecryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.aes, iv) == 1
        gw_count(&shared.cell.ticket_uses[place & 255])
    if not rc or EVP_MAC_CTX_set_params(mac, params) != 1:
        rc = -1
    elif not issue and (not place & 256 or SSL_version(ssl) == TLS1_3_VERSION):
        rc = 2                                           # good, but make a new one: clients use one of TLS 1.3 once (RFC 8446 C.4)
    OPENSSL_cleanse(&key, sizeof(key))
    return rc


cdef void tickets_attach(SSL_CTX *c) noexcept nogil:
    """Let the sessions of a context be resumed by our tickets. A session's Tls.server is a struct that begins with TlsShared."""
    SSL_CTX_set_tlsext_ticket_key_evp_cb(c, on_ticket)
