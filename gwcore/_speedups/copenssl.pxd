# Level 0. What we use of OpenSSL 3, declarations only.
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.stddef cimport size_t

cdef extern from "<openssl/bio.h>" nogil:
    ctypedef struct BIO
    ctypedef struct BIO_METHOD
    enum: BIO_CTRL_FLUSH, BIO_TYPE_SOURCE_SINK
    BIO_METHOD *BIO_meth_new(int kind, const char *name)
    void BIO_meth_free(BIO_METHOD *m)
    int BIO_meth_set_read(BIO_METHOD *m, int (*f)(BIO *, char *, int) noexcept nogil)
    int BIO_meth_set_write(BIO_METHOD *m, int (*f)(BIO *, const char *, int) noexcept nogil)
    int BIO_meth_set_ctrl(BIO_METHOD *m, long (*f)(BIO *, int, long, void *) noexcept nogil)
    BIO *BIO_new(const BIO_METHOD *m)
    int BIO_up_ref(BIO *b)
    BIO *BIO_new_mem_buf(const void *at, int size)
    int BIO_free(BIO *b)
    const BIO_METHOD *BIO_s_mem()
    int BIO_read(BIO *b, void *into, int n)
    void BIO_set_data(BIO *b, void *data)
    void *BIO_get_data(BIO *b)
    void BIO_set_init(BIO *b, int on)
    void BIO_set_retry_read(BIO *b)
    void BIO_set_retry_write(BIO *b)
    void BIO_clear_retry_flags(BIO *b)

cdef extern from "<openssl/err.h>" nogil:
    unsigned long ERR_peek_error()
    void ERR_clear_error()
    const char *ERR_reason_error_string(unsigned long e)
    int ERR_GET_REASON(unsigned long e)
    int ERR_GET_LIB(unsigned long e)
    enum: ERR_LIB_SSL

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_PKEY
    ctypedef struct EVP_MD
    ctypedef struct EVP_CIPHER
    ctypedef struct EVP_CIPHER_CTX
    ctypedef struct EVP_MAC_CTX
    const EVP_MD *EVP_sha256()
    const EVP_CIPHER *EVP_aes_256_cbc()
    int EVP_Digest(const void *data, size_t n, unsigned char *out, unsigned int *size, const EVP_MD *kind, void *engine)
    int EVP_EncryptInit_ex(EVP_CIPHER_CTX *c, const EVP_CIPHER *kind, void *engine, const unsigned char *key, const unsigned char *iv)
    int EVP_DecryptInit_ex(EVP_CIPHER_CTX *c, const EVP_CIPHER *kind, void *engine, const unsigned char *key, const unsigned char *iv)
    const EVP_CIPHER *EVP_aes_256_gcm()
    EVP_CIPHER_CTX *EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *c)
    int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *c, int what, int n, void *p)
    enum: EVP_CTRL_AEAD_GET_TAG, EVP_CTRL_AEAD_SET_TAG
    int EVP_EncryptUpdate(EVP_CIPHER_CTX *c, unsigned char *out, int *n, const unsigned char *at, int size)
    int EVP_EncryptFinal_ex(EVP_CIPHER_CTX *c, unsigned char *out, int *n)
    int EVP_DecryptUpdate(EVP_CIPHER_CTX *c, unsigned char *out, int *n, const unsigned char *at, int size)
    int EVP_DecryptFinal_ex(EVP_CIPHER_CTX *c, unsigned char *out, int *n)
    int EVP_MAC_CTX_set_params(EVP_MAC_CTX *c, const void *params)
    void EVP_PKEY_free(EVP_PKEY *k)
    int EVP_PKEY_get_bits(const EVP_PKEY *k)
    int EVP_PKEY_get_security_bits(const EVP_PKEY *k)
    int EVP_PKEY_get_base_id(const EVP_PKEY *k)
    enum: EVP_PKEY_RSA, EVP_PKEY_EC, EVP_PKEY_ED25519, EVP_PKEY_RSA_PSS

cdef extern from "<openssl/provider.h>" nogil:
    ctypedef struct OSSL_PROVIDER
    OSSL_PROVIDER *OSSL_PROVIDER_load(void *libctx, const char *name)
    int OSSL_PROVIDER_set_default_search_path(void *libctx, const char *path)
    int EVP_set_default_properties(void *libctx, const char *properties)

cdef extern from "<openssl/rand.h>" nogil:
    int RAND_bytes(unsigned char *out, int n)

cdef extern from "<openssl/core_names.h>" nogil:
    const char *OSSL_MAC_PARAM_KEY
    const char *OSSL_MAC_PARAM_DIGEST

cdef extern from "<openssl/params.h>" nogil:
    ctypedef struct OSSL_PARAM:
        pass
    OSSL_PARAM OSSL_PARAM_construct_octet_string(const char *key, void *at, size_t size)
    OSSL_PARAM OSSL_PARAM_construct_utf8_string(const char *key, char *at, size_t size)
    OSSL_PARAM OSSL_PARAM_construct_end()

cdef extern from "<openssl/asn1.h>" nogil:
    ctypedef struct ASN1_TIME
    ctypedef struct ASN1_STRING
    ctypedef struct ASN1_INTEGER
    ctypedef struct tm_ "struct tm":
        int tm_year, tm_mon, tm_mday, tm_hour, tm_min, tm_sec
    int ASN1_TIME_to_tm(const ASN1_TIME *t, tm_ *out)
    const unsigned char *ASN1_STRING_get0_data(const ASN1_STRING *s)
    int ASN1_STRING_length(const ASN1_STRING *s)

ctypedef int (*pem_password_fn)(char *into, int size, int writing, void *arg) noexcept nogil

cdef extern from "<openssl/x509v3.h>" nogil:
    ctypedef struct X509
    ctypedef struct X509_NAME
    ctypedef struct X509_STORE
    ctypedef struct X509_CRL
    ctypedef struct X509_VERIFY_PARAM
    ctypedef struct GENERAL_NAMES
    ctypedef struct GENERAL_NAME:
        int type
    enum: GEN_DNS, GEN_IPADD, NID_subject_alt_name, NID_X25519, NID_X9_62_prime256v1, NID_secp384r1, X509_V_FLAG_CRL_CHECK, X509_V_FLAG_CRL_CHECK_ALL
    unsigned long XN_FLAG_RFC2253
    X509 *PEM_read_bio_X509(BIO *b, X509 **out, pem_password_fn password, void *arg)
    X509_CRL *PEM_read_bio_X509_CRL(BIO *b, X509_CRL **out, pem_password_fn password, void *arg)
    EVP_PKEY *PEM_read_bio_PrivateKey(BIO *b, EVP_PKEY **out, pem_password_fn password, void *arg)
    void X509_free(X509 *x)
    void X509_CRL_free(X509_CRL *x)
    int X509_check_private_key(const X509 *x, const EVP_PKEY *k)
    int X509_check_issued(X509 *issuer, X509 *subject)
    EVP_PKEY *X509_get0_pubkey(const X509 *x)
    X509_NAME *X509_get_subject_name(const X509 *x)
    X509_NAME *X509_get_issuer_name(const X509 *x)
    const ASN1_TIME *X509_get0_notBefore(const X509 *x)
    const ASN1_TIME *X509_get0_notAfter(const X509 *x)
    const ASN1_TIME *X509_CRL_get0_nextUpdate(const X509_CRL *x)
    int X509_digest(const X509 *x, const EVP_MD *kind, unsigned char *out, unsigned int *size)
    const char *X509_get_default_cert_file()
    const char *X509_get_default_cert_dir()
    int X509_cmp_current_time(const ASN1_TIME *t)
    int X509_NAME_print_ex(BIO *out, const X509_NAME *n, int indent, unsigned long flags)
    char *X509_NAME_oneline(const X509_NAME *n, char *out, int size)
    void *X509_get_ext_d2i(const X509 *x, int nid, int *critical, int *index)
    void *GENERAL_NAME_get0_value(const GENERAL_NAME *n, int *kind)
    int sk_GENERAL_NAME_num(const GENERAL_NAMES *s)
    GENERAL_NAME *sk_GENERAL_NAME_value(const GENERAL_NAMES *s, int i)
    void GENERAL_NAMES_free(GENERAL_NAMES *s)
    int X509_STORE_add_cert(X509_STORE *s, X509 *x)
    int X509_STORE_add_crl(X509_STORE *s, X509_CRL *x)
    int X509_STORE_set_flags(X509_STORE *s, unsigned long flags)

cdef extern from "<openssl/ocsp.h>" nogil:
    ctypedef struct OCSP_RESPONSE
    ctypedef struct OCSP_BASICRESP
    ctypedef struct OCSP_SINGLERESP
    ctypedef struct OCSP_CERTID
    enum: OCSP_RESPONSE_STATUS_SUCCESSFUL, V_OCSP_CERTSTATUS_GOOD, V_OCSP_CERTSTATUS_REVOKED
    OCSP_RESPONSE *d2i_OCSP_RESPONSE(OCSP_RESPONSE **out, const unsigned char **at, long n)
    void OCSP_RESPONSE_free(OCSP_RESPONSE *r)
    int OCSP_response_status(OCSP_RESPONSE *r)
    const char *OCSP_response_status_str(long status)
    OCSP_BASICRESP *OCSP_response_get1_basic(OCSP_RESPONSE *r)
    void OCSP_BASICRESP_free(OCSP_BASICRESP *b)
    int OCSP_resp_count(OCSP_BASICRESP *b)
    OCSP_SINGLERESP *OCSP_resp_get0(OCSP_BASICRESP *b, int i)
    const OCSP_CERTID *OCSP_SINGLERESP_get0_id(const OCSP_SINGLERESP *s)
    int OCSP_single_get0_status(OCSP_SINGLERESP *s, int *reason, ASN1_TIME **revoked, ASN1_TIME **this_, ASN1_TIME **next_)
    int OCSP_id_get0_info(void **name, void **md, void **key, ASN1_INTEGER **serial, OCSP_CERTID *id)
    const ASN1_INTEGER *X509_get0_serialNumber(const X509 *x)
    int ASN1_INTEGER_cmp(const ASN1_INTEGER *a, const ASN1_INTEGER *b)

cdef extern from "<openssl/ssl.h>" nogil:
    ctypedef struct CipherStack "STACK_OF(SSL_CIPHER)"
    CipherStack *SSL_CTX_get_ciphers(const SSL_CTX *c)
    int sk_SSL_CIPHER_num(const CipherStack *s)
    const SSL_CIPHER *sk_SSL_CIPHER_value(const CipherStack *s, int i)
    int SSL_CIPHER_get_bits(const SSL_CIPHER *c, int *of)
    int SSL_CIPHER_get_auth_nid(const SSL_CIPHER *c)
    int SSL_CIPHER_get_cipher_nid(const SSL_CIPHER *c)
    enum: NID_auth_null, NID_rc4, NID_des_ede3_cbc
    ctypedef struct SSL
    ctypedef struct SSL_CTX
    ctypedef struct SSL_METHOD
    ctypedef struct SSL_SESSION
    ctypedef struct SSL_CIPHER
    enum:
        SSL_MODE_RELEASE_BUFFERS, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_ZERO_RETURN
        SSL_ERROR_WANT_CLIENT_HELLO_CB, SSL_ERROR_WANT_ASYNC
        SSL_VERIFY_NONE, SSL_VERIFY_PEER, SSL_VERIFY_FAIL_IF_NO_PEER_CERT, SSL_SESS_CACHE_OFF, SSL_SESS_CACHE_SERVER, SSL_SESS_CACHE_CLIENT
        SSL_SESS_CACHE_NO_INTERNAL, SSL_CLIENT_HELLO_SUCCESS, SSL_CLIENT_HELLO_ERROR, SSL_CLIENT_HELLO_RETRY
        SSL_TLSEXT_ERR_OK, SSL_TLSEXT_ERR_NOACK, SSL_TLSEXT_ERR_ALERT_FATAL, SSL_AD_UNRECOGNIZED_NAME
        SSL_R_HTTP_REQUEST, SSL_R_CERTIFICATE_VERIFY_FAILED, SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE
        SSL_SENT_SHUTDOWN, SSL_RECEIVED_SHUTDOWN, TLS1_3_VERSION, TLSEXT_TYPE_server_name
        TLSEXT_TYPE_psk, TLSEXT_TYPE_early_data, TLSEXT_TYPE_supported_versions
    uint64_t SSL_OP_NO_RENEGOTIATION, SSL_OP_NO_COMPRESSION, SSL_OP_CIPHER_SERVER_PREFERENCE, SSL_OP_NO_TICKET, SSL_OP_PRIORITIZE_CHACHA
    uint64_t SSL_OP_NO_ANTI_REPLAY
    const SSL_METHOD *TLS_server_method()
    const SSL_METHOD *TLS_client_method()
    SSL_CTX *SSL_CTX_new(const SSL_METHOD *m)
    void SSL_CTX_free(SSL_CTX *c)
    long SSL_CTX_set_mode(SSL_CTX *c, long mode)
    uint64_t SSL_CTX_set_options(SSL_CTX *c, uint64_t options)
    int SSL_CTX_set_min_proto_version(SSL_CTX *c, int version)
    int SSL_CTX_set_max_proto_version(SSL_CTX *c, int version)
    int SSL_CTX_set_cipher_list(SSL_CTX *c, const char *list)
    int SSL_CTX_set_ciphersuites(SSL_CTX *c, const char *list)
    int SSL_CTX_set1_groups_list(SSL_CTX *c, const char *list)
    int SSL_CTX_use_certificate(SSL_CTX *c, X509 *x)
    int SSL_CTX_use_PrivateKey(SSL_CTX *c, EVP_PKEY *k)
    int SSL_CTX_add1_chain_cert(SSL_CTX *c, X509 *x)
    void SSL_CTX_set_read_ahead(SSL_CTX *c, int on)
    int SSL_CTX_set_num_tickets(SSL_CTX *c, size_t n)
    long SSL_CTX_set_session_cache_mode(SSL_CTX *c, long mode)
    long SSL_CTX_set_timeout(SSL_CTX *c, long seconds)
    void SSL_CTX_set_client_hello_cb(SSL_CTX *c, int (*f)(SSL *, int *, void *) noexcept nogil, void *arg)
    void SSL_CTX_set_alpn_select_cb(SSL_CTX *c, int (*f)(SSL *, const unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *) noexcept nogil, void *arg)
    int SSL_CTX_set_alpn_protos(SSL_CTX *c, const unsigned char *at, unsigned int n)
    long SSL_CTX_set_tlsext_status_cb(SSL_CTX *c, int (*f)(SSL *, void *) noexcept nogil)
    int SSL_CTX_set_tlsext_ticket_key_evp_cb(SSL_CTX *c, int (*f)(SSL *, unsigned char *, unsigned char *, EVP_CIPHER_CTX *, EVP_MAC_CTX *, int) noexcept nogil)
    void SSL_CTX_set_verify(SSL_CTX *c, int mode, void *callback)
    void SSL_CTX_set_verify_depth(SSL_CTX *c, int depth)
    int SSL_CTX_set_default_verify_paths(SSL_CTX *c)
    X509_STORE *SSL_CTX_get_cert_store(const SSL_CTX *c)
    int SSL_CTX_add_client_CA(SSL_CTX *c, X509 *x)
    void SSL_CTX_sess_set_new_cb(SSL_CTX *c, int (*f)(SSL *, SSL_SESSION *) noexcept nogil)
    void SSL_CTX_sess_set_get_cb(SSL_CTX *c, SSL_SESSION *(*f)(SSL *, const unsigned char *, int, int *) noexcept nogil)
    int SSL_CTX_set_max_early_data(SSL_CTX *c, unsigned int n)
    int SSL_CTX_set_recv_max_early_data(SSL_CTX *c, unsigned int n)
    SSL *SSL_new(SSL_CTX *c)
    void SSL_free(SSL *s)
    void SSL_set_bio(SSL *s, BIO *r, BIO *w)
    void SSL_set_accept_state(SSL *s)
    void SSL_set_connect_state(SSL *s)
    int SSL_do_handshake(SSL *s)
    int SSL_get_all_async_fds(SSL *s, int *fds, size_t *n)
    long SSL_clear_mode(SSL *s, long mode)
    enum: SSL_MODE_ASYNC
    int SSL_read(SSL *s, void *at, int n)
    int SSL_write(SSL *s, const void *at, int n)
    int SSL_shutdown(SSL *s)
    void SSL_set_shutdown(SSL *s, int mode)
    int SSL_get_error(const SSL *s, int rc)
    int SSL_has_pending(const SSL *s)
    int SSL_version(const SSL *s)
    const char *SSL_get_version(const SSL *s)
    int SSL_session_reused(const SSL *s)
    void SSL_set_default_passwd_cb_userdata(SSL *s, void *data)
    void *SSL_get_default_passwd_cb_userdata(SSL *s)
    SSL_CTX *SSL_set_SSL_CTX(SSL *s, SSL_CTX *c)
    int SSL_set_session_id_context(SSL *s, const unsigned char *at, unsigned int n)
    int SSL_client_hello_get0_ext(SSL *s, unsigned int kind, const unsigned char **at, size_t *n)
    const SSL_CIPHER *SSL_get_current_cipher(const SSL *s)
    const char *SSL_CIPHER_get_name(const SSL_CIPHER *c)
    uint16_t SSL_CIPHER_get_protocol_id(const SSL_CIPHER *c)
    int SSL_get_negotiated_group(SSL *s)
    X509 *SSL_get0_peer_certificate(const SSL *s)
    int SSL_set_tlsext_host_name(SSL *s, const char *name)
    int SSL_set1_host(SSL *s, const char *name)
    X509_VERIFY_PARAM *SSL_get0_param(SSL *s)
    int X509_VERIFY_PARAM_set1_ip_asc(X509_VERIFY_PARAM *p, const char *ip)
    int SSL_set_session(SSL *s, SSL_SESSION *session)
    SSL_SESSION *SSL_get0_session(const SSL *s)
    void SSL_SESSION_free(SSL_SESSION *s)
    int SSL_SESSION_get_protocol_version(const SSL_SESSION *s)
    size_t SSL_client_hello_get0_session_id(SSL *s, const unsigned char **at)
    long SSL_SESSION_get_time(const SSL_SESSION *s)
    long SSL_SESSION_set_time(SSL_SESSION *s, long t)
    const unsigned char *SSL_SESSION_get_id(const SSL_SESSION *s, unsigned int *n)
    int i2d_SSL_SESSION(SSL_SESSION *s, unsigned char **out)
    SSL_SESSION *d2i_SSL_SESSION(SSL_SESSION **out, const unsigned char **at, long n)
    long SSL_set_tlsext_status_ocsp_resp(SSL *s, unsigned char *at, long n)
    int SSL_read_early_data(SSL *s, void *at, size_t n, size_t *read)
    int SSL_write_early_data(SSL *s, const void *at, size_t n, size_t *written)
    int SSL_get_early_data_status(const SSL *s)
    void SSL_CTX_set_allow_early_data_cb(SSL_CTX *c, int (*f)(SSL *, void *) noexcept nogil, void *arg)
    enum: SSL_READ_EARLY_DATA_SUCCESS, SSL_READ_EARLY_DATA_FINISH, SSL_EARLY_DATA_ACCEPTED, SSL_EARLY_DATA_REJECTED

cdef extern from "<openssl/crypto.h>" nogil:
    void *OPENSSL_malloc(size_t n)
    void OPENSSL_cleanse(void *p, size_t n)
    int OPENSSL_init_ssl(unsigned long options, const void *settings)
    enum: OPENSSL_VERSION
    const char *OpenSSL_version(int kind)
