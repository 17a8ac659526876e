/* Where the server's part of a TLS 1.3 handshake goes: handshakes in memory, with the functions of libcrypto that libssl calls timed at the
 * border between the two libraries. The functions below stand before those of libcrypto.
 *
 * where CERT KEY GROUP HANDSHAKES(full) | -HANDSHAKES(resumed)
 * One line: handshakes, microseconds of all, then name=microseconds of each part, per handshake. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <openssl/kdf.h>
#include <openssl/ssl.h>

enum { SHARE, SIGN, SCHEDULE, HASH, RECORDS, TICKET, PARTS };
static const char *names[] = {"share", "sign", "schedule", "hash", "records", "ticket"};
static double spent[PARTS];
static int counting; /* the server's turn */
static int inside;   /* libcrypto calls its own functions through the same names: only the outermost counts */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

#define TIMED(part, type, name, args, call)                                   \
    type name args {                                                          \
        static type(*real) args;                                              \
        if (!real) real = (type(*) args)dlsym(RTLD_NEXT, #name);              \
        int outer = counting && !inside;                                      \
        double t = outer ? now() : 0;                                         \
        inside += outer;                                                      \
        type r = real call;                                                   \
        inside -= outer;                                                      \
        if (outer) spent[part] += now() - t;                                  \
        return r;                                                             \
    }

TIMED(SHARE, int, EVP_PKEY_keygen, (EVP_PKEY_CTX *a, EVP_PKEY **b), (a, b))
TIMED(SHARE, int, EVP_PKEY_generate, (EVP_PKEY_CTX *a, EVP_PKEY **b), (a, b))
TIMED(SHARE, int, EVP_PKEY_derive, (EVP_PKEY_CTX *a, unsigned char *b, size_t *c), (a, b, c))
TIMED(SHARE, int, EVP_PKEY_derive_init, (EVP_PKEY_CTX *a), (a))
TIMED(SHARE, int, EVP_PKEY_derive_set_peer, (EVP_PKEY_CTX *a, EVP_PKEY *b), (a, b))
TIMED(SHARE, int, EVP_PKEY_encapsulate, (EVP_PKEY_CTX *a, unsigned char *b, size_t *c, unsigned char *d, size_t *e), (a, b, c, d, e))
TIMED(SHARE, int, EVP_PKEY_set1_encoded_public_key, (EVP_PKEY *a, const unsigned char *b, size_t c), (a, b, c))
TIMED(SHARE, int, EVP_PKEY_copy_parameters, (EVP_PKEY *a, const EVP_PKEY *b), (a, b))
TIMED(SHARE, EVP_PKEY_CTX *, EVP_PKEY_CTX_new_from_name, (OSSL_LIB_CTX *a, const char *b, const char *c), (a, b, c))
TIMED(SHARE, int, EVP_PKEY_keygen_init, (EVP_PKEY_CTX *a), (a))
TIMED(SIGN, int, EVP_DigestSignInit_ex, (EVP_MD_CTX *a, EVP_PKEY_CTX **b, const char *c, OSSL_LIB_CTX *d, const char *e, EVP_PKEY *f, const OSSL_PARAM g[]), (a, b, c, d, e, f, g))
TIMED(SIGN, int, EVP_DigestSign, (EVP_MD_CTX *a, unsigned char *b, size_t *c, const unsigned char *d, size_t e), (a, b, c, d, e))
TIMED(SIGN, int, EVP_DigestSignFinal, (EVP_MD_CTX *a, unsigned char *b, size_t *c), (a, b, c))
TIMED(SCHEDULE, EVP_KDF *, EVP_KDF_fetch, (OSSL_LIB_CTX *a, const char *b, const char *c), (a, b, c))
TIMED(SCHEDULE, EVP_KDF_CTX *, EVP_KDF_CTX_new, (EVP_KDF *a), (a))
TIMED(SCHEDULE, int, EVP_KDF_derive, (EVP_KDF_CTX *a, unsigned char *b, size_t c, const OSSL_PARAM d[]), (a, b, c, d))
TIMED(SCHEDULE, unsigned char *, EVP_Q_mac, (OSSL_LIB_CTX *a, const char *b, const char *c, const char *d, const OSSL_PARAM *e, const void *f, size_t g, const unsigned char *h, size_t i, unsigned char *j, size_t k, size_t *l), (a, b, c, d, e, f, g, h, i, j, k, l))
TIMED(HASH, int, EVP_DigestInit_ex, (EVP_MD_CTX *a, const EVP_MD *b, ENGINE *c), (a, b, c))
TIMED(HASH, int, EVP_DigestUpdate, (EVP_MD_CTX *a, const void *b, size_t c), (a, b, c))
TIMED(HASH, int, EVP_DigestFinal_ex, (EVP_MD_CTX *a, unsigned char *b, unsigned int *c), (a, b, c))
TIMED(HASH, int, EVP_MD_CTX_copy_ex, (EVP_MD_CTX *a, const EVP_MD_CTX *b), (a, b))
TIMED(RECORDS, int, EVP_CipherInit_ex, (EVP_CIPHER_CTX *a, const EVP_CIPHER *b, ENGINE *c, const unsigned char *d, const unsigned char *e, int f), (a, b, c, d, e, f))
TIMED(RECORDS, int, EVP_CipherUpdate, (EVP_CIPHER_CTX *a, unsigned char *b, int *c, const unsigned char *d, int e), (a, b, c, d, e))
TIMED(RECORDS, int, EVP_CipherFinal_ex, (EVP_CIPHER_CTX *a, unsigned char *b, int *c), (a, b, c))
TIMED(TICKET, int, EVP_EncryptInit_ex, (EVP_CIPHER_CTX *a, const EVP_CIPHER *b, ENGINE *c, const unsigned char *d, const unsigned char *e), (a, b, c, d, e))
TIMED(TICKET, int, EVP_EncryptUpdate, (EVP_CIPHER_CTX *a, unsigned char *b, int *c, const unsigned char *d, int e), (a, b, c, d, e))
TIMED(TICKET, int, EVP_EncryptFinal, (EVP_CIPHER_CTX *a, unsigned char *b, int *c), (a, b, c))
TIMED(TICKET, int, EVP_DecryptUpdate, (EVP_CIPHER_CTX *a, unsigned char *b, int *c, const unsigned char *d, int e), (a, b, c, d, e))
TIMED(TICKET, int, EVP_DecryptFinal, (EVP_CIPHER_CTX *a, unsigned char *b, int *c), (a, b, c))
TIMED(TICKET, EVP_MAC *, EVP_MAC_fetch, (OSSL_LIB_CTX *a, const char *b, const char *c), (a, b, c))
TIMED(TICKET, int, EVP_MAC_init, (EVP_MAC_CTX *a, const unsigned char *b, size_t c, const OSSL_PARAM d[]), (a, b, c, d))
TIMED(TICKET, int, EVP_MAC_final, (EVP_MAC_CTX *a, unsigned char *b, size_t *c, size_t d), (a, b, c, d))
TIMED(TICKET, EVP_CIPHER *, EVP_CIPHER_fetch, (OSSL_LIB_CTX *a, const char *b, const char *c), (a, b, c))

static SSL_SESSION *kept;

static int keep(SSL *s, SSL_SESSION *session) {
    (void)s;
    SSL_SESSION_free(kept);
    kept = session;
    return 1;
}

/* The server's microseconds of one handshake; -1: none came about. */
static double once(SSL_CTX *ours, SSL_CTX *theirs, SSL_SESSION *session) {
    double took = 0, t;
    BIO *a, *b;
    char byte;
    int i, good;
    SSL *s = NULL, *c = SSL_new(theirs);
    BIO_new_bio_pair(&a, 0, &b, 0);
    SSL_set_bio(c, b, b);
    SSL_set_connect_state(c);
    if (session) SSL_set_session(c, session);
    for (i = 0; i < 4; i++) {
        SSL_do_handshake(c);
        counting = 1;
        t = now();
        if (i == 0) {
            s = SSL_new(ours);
            SSL_set_bio(s, a, a);
            SSL_set_accept_state(s);
        }
        SSL_do_handshake(s);
        took += now() - t;
        counting = 0;
    }
    SSL_read(c, &byte, 1); /* the ticket */
    good = SSL_is_init_finished(s) && SSL_is_init_finished(c) && SSL_session_reused(s) == (session != NULL);
    SSL_set_shutdown(c, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN); /* or the session is never resumed */
    counting = 1;
    t = now();
    SSL_free(s);
    took += now() - t;
    counting = 0;
    SSL_free(c);
    return good ? took : -1;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int n = atoi(argv[4]), resumed = n < 0, i;
    double all = 0, took;
    SSL_CTX *ours = SSL_CTX_new(TLS_server_method()), *theirs = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(ours, TLS1_3_VERSION);
    SSL_CTX_set_min_proto_version(theirs, TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(ours, "TLS_AES_128_GCM_SHA256");
    SSL_CTX_set_session_cache_mode(ours, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_session_cache_mode(theirs, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(theirs, keep);
    SSL_CTX_set_num_tickets(ours, 1);
    if (!SSL_CTX_set1_groups_list(ours, argv[3]) || !SSL_CTX_set1_groups_list(theirs, argv[3])) return 3; /* not in this OpenSSL */
    if (SSL_CTX_use_certificate_chain_file(ours, argv[1]) != 1 || SSL_CTX_use_PrivateKey_file(ours, argv[2], SSL_FILETYPE_PEM) != 1) return 2;
    n = abs(n);
    for (i = -20; i < n; i++) {
        SSL_SESSION *session = NULL;
        if (resumed && i > -20) {
            session = kept;
            kept = NULL;
        }
        if (i == 0) {
            all = 0;
            for (int k = 0; k < PARTS; k++) spent[k] = 0;
        }
        took = once(ours, theirs, session);
        SSL_SESSION_free(session);
        if (took < 0) return 4;
        all += took;
    }
    printf("%d %.2f", n, all / n);
    for (i = 0; i < PARTS; i++) printf(" %s=%.2f", names[i], spent[i] / n);
    printf("\n");
    return 0;
}
