/* An engine for the tests: ECDSA signatures are made "elsewhere", that is by a thread, after a delay of GWCORE_ENGINE_MS milliseconds, while
   the job that asked for one is paused. What a crypto accelerator does, without one. */
#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/async.h>
#include <openssl/ec.h>
#include <openssl/engine.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static int (*soft_sign)(int, const unsigned char *, int, unsigned char *, unsigned int *, const BIGNUM *, const BIGNUM *, EC_KEY *);
static EC_KEY_METHOD *method;
static const char key[] = "gwcore test engine";

static void *elsewhere(void *arg) {
    unsigned long long one = 1;
    long ms = atol(getenv("GWCORE_ENGINE_MS") ? getenv("GWCORE_ENGINE_MS") : "5");
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
    if (write((int)(long)arg, &one, sizeof one) != sizeof one) abort();
    return NULL;
}

static void forget(ASYNC_WAIT_CTX *ctx, const void *k, OSSL_ASYNC_FD fd, void *data) { close(fd); }

static int sign(int type, const unsigned char *dgst, int dlen, unsigned char *sig, unsigned int *siglen, const BIGNUM *kinv, const BIGNUM *r, EC_KEY *eckey) {
    ASYNC_JOB *job = ASYNC_get_current_job();
    if (job) {
        ASYNC_WAIT_CTX *ctx = ASYNC_get_wait_ctx(job);
        unsigned long long n;
        OSSL_ASYNC_FD fd;
        void *data;
        pthread_t t;
        if (!ASYNC_WAIT_CTX_get_fd(ctx, key, &fd, &data)) {
            fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
            if (fd < 0 || !ASYNC_WAIT_CTX_set_wait_fd(ctx, key, fd, NULL, forget)) return 0;
        }
        if (pthread_create(&t, NULL, elsewhere, (void *)(long)fd)) return 0;
        do ASYNC_pause_job(); while (read(fd, &n, sizeof n) != sizeof n);
        pthread_join(t, NULL);
    }
    if (getenv("GWCORE_ENGINE_FAILS")) return 0;
    return soft_sign(type, dgst, dlen, sig, siglen, kinv, r, eckey);
}

static int bind(ENGINE *e, const char *id) {
    int (*setup)(EC_KEY *, BN_CTX *, BIGNUM **, BIGNUM **);
    ECDSA_SIG *(*sig)(const unsigned char *, int, const BIGNUM *, const BIGNUM *, EC_KEY *);
    method = EC_KEY_METHOD_new(EC_KEY_OpenSSL());
    EC_KEY_METHOD_get_sign(method, &soft_sign, &setup, &sig);
    EC_KEY_METHOD_set_sign(method, sign, setup, sig);
    return ENGINE_set_id(e, "gwtest") && ENGINE_set_name(e, "asynchronous signatures for tests") && ENGINE_set_EC(e, method);
}

IMPLEMENT_DYNAMIC_BIND_FN(bind)
IMPLEMENT_DYNAMIC_CHECK_FN()
