/* An engine for the tests: ECDSA signatures are made "elsewhere", that is by a thread, after a delay of GWCORE_ENGINE_MS milliseconds, while
   the job that asked for one is paused. What a crypto accelerator does, without one. */
#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/ec.h>
#include <openssl/engine.h>
#include <string.h>
#include "async_pause.h"

static int (*soft_sign)(int, const unsigned char *, int, unsigned char *, unsigned int *, const BIGNUM *, const BIGNUM *, EC_KEY *);
static EC_KEY_METHOD *method;
static const char key[] = "gwcore test engine";

static int sign(int type, const unsigned char *dgst, int dlen, unsigned char *sig, unsigned int *siglen, const BIGNUM *kinv, const BIGNUM *r, EC_KEY *eckey) {
    if (!pause_here(key)) return 0;
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
