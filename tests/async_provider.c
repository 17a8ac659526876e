/* A provider for the tests: Ed25519 signatures are made "elsewhere", that is by a thread, after a delay of GWCORE_ENGINE_MS milliseconds, while the
   job that asked for one is paused. It has keys of its own kind (a keymgmt), as a provider for an HSM has, and lets the default provider of a
   library context of its own do the arithmetic. */
#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <string.h>
#include "async_pause.h"

typedef struct { unsigned char pub[32], priv[32]; int has_pub, has_priv; } Key;
typedef struct { Key *key; } Signer;

static OSSL_LIB_CTX *inside;
static const char wait_key[] = "gwcore test provider";

/* ---- keys ---- */

static void *key_new(void *provider) { return calloc(1, sizeof(Key)); }

static void key_free(void *key) { free(key); }

static int key_has(const void *k, int selection) {
    const Key *key = k;
    return !((selection & OSSL_KEYMGMT_SELECT_PUBLIC_KEY && !key->has_pub) || (selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY && !key->has_priv));
}

static int key_match(const void *a, const void *b, int selection) {
    return memcmp(((const Key *)a)->pub, ((const Key *)b)->pub, 32) == 0;
}

static int take(const OSSL_PARAM params[], const char *name, unsigned char into[32], int *has) {
    const OSSL_PARAM *p = OSSL_PARAM_locate_const(params, name);
    if (!p) return 1;
    if (p->data_type != OSSL_PARAM_OCTET_STRING || p->data_size != 32) return 0;
    memcpy(into, p->data, 32);
    return *has = 1;
}

static int key_import(void *k, int selection, const OSSL_PARAM params[]) {
    Key *key = k;
    return take(params, OSSL_PKEY_PARAM_PUB_KEY, key->pub, &key->has_pub) && take(params, OSSL_PKEY_PARAM_PRIV_KEY, key->priv, &key->has_priv) && key->has_pub;
}

static int key_export(void *k, int selection, OSSL_CALLBACK *give, void *arg) {
    Key *key = k;
    OSSL_PARAM out[] = {OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PUB_KEY, key->pub, 32), OSSL_PARAM_construct_end()};
    return !(selection & OSSL_KEYMGMT_SELECT_PRIVATE_KEY) && give(out, arg);            /* the private part does not leave */
}

static const OSSL_PARAM *key_types(int selection) {
    static const OSSL_PARAM types[] = {OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_PUB_KEY, NULL, 0), OSSL_PARAM_octet_string(OSSL_PKEY_PARAM_PRIV_KEY, NULL, 0), OSSL_PARAM_END};
    return types;
}

static int key_params(void *k, OSSL_PARAM params[]) {
    OSSL_PARAM *p;
    return (!(p = OSSL_PARAM_locate(params, OSSL_PKEY_PARAM_BITS)) || OSSL_PARAM_set_int(p, 256))
        && (!(p = OSSL_PARAM_locate(params, OSSL_PKEY_PARAM_SECURITY_BITS)) || OSSL_PARAM_set_int(p, 128))
        && (!(p = OSSL_PARAM_locate(params, OSSL_PKEY_PARAM_MAX_SIZE)) || OSSL_PARAM_set_int(p, 64))
        && (!(p = OSSL_PARAM_locate(params, OSSL_PKEY_PARAM_MANDATORY_DIGEST)) || OSSL_PARAM_set_utf8_string(p, ""));
}

static const OSSL_PARAM *key_gettable(void *provider) {
    static const OSSL_PARAM all[] = {OSSL_PARAM_int(OSSL_PKEY_PARAM_BITS, NULL), OSSL_PARAM_int(OSSL_PKEY_PARAM_SECURITY_BITS, NULL),
                                     OSSL_PARAM_int(OSSL_PKEY_PARAM_MAX_SIZE, NULL), OSSL_PARAM_utf8_string(OSSL_PKEY_PARAM_MANDATORY_DIGEST, NULL, 0), OSSL_PARAM_END};
    return all;
}

/* ---- signatures ---- */

static void *signer_new(void *provider, const char *properties) { return calloc(1, sizeof(Signer)); }

static void signer_free(void *s) { free(s); }

static int sign_init(void *s, const char *digest, void *key, const OSSL_PARAM params[]) {
    if (key) ((Signer *)s)->key = key;
    return !digest || !*digest;
}

static int sign(void *s, unsigned char *sig, size_t *size, size_t room, const unsigned char *text, size_t n) {
    EVP_PKEY *key;
    EVP_MD_CTX *ctx;
    int good;
    *size = 64;
    if (!sig) return 1;
    if (room < 64 || !pause_here(wait_key) || getenv("GWCORE_ENGINE_FAILS")) return 0;
    key = EVP_PKEY_new_raw_private_key_ex(inside, "ED25519", NULL, ((Signer *)s)->key->priv, 32);
    ctx = EVP_MD_CTX_new();
    good = key && ctx && EVP_DigestSignInit_ex(ctx, NULL, NULL, inside, NULL, key, NULL) == 1 && EVP_DigestSign(ctx, sig, size, text, n) == 1;
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(key);
    return good;
}

static int verify(void *s, const unsigned char *sig, size_t size, const unsigned char *text, size_t n) {
    EVP_PKEY *key = EVP_PKEY_new_raw_public_key_ex(inside, "ED25519", NULL, ((Signer *)s)->key->pub, 32);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int good = key && ctx && EVP_DigestVerifyInit_ex(ctx, NULL, NULL, inside, NULL, key, NULL) == 1 && EVP_DigestVerify(ctx, sig, size, text, n) == 1;
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(key);
    return good;
}

/* ---- what it offers ---- */

typedef void (*F)(void);
static const OSSL_DISPATCH keys[] = {
    {OSSL_FUNC_KEYMGMT_NEW, (F)key_new}, {OSSL_FUNC_KEYMGMT_FREE, (F)key_free}, {OSSL_FUNC_KEYMGMT_HAS, (F)key_has}, {OSSL_FUNC_KEYMGMT_MATCH, (F)key_match},
    {OSSL_FUNC_KEYMGMT_IMPORT, (F)key_import}, {OSSL_FUNC_KEYMGMT_IMPORT_TYPES, (F)key_types}, {OSSL_FUNC_KEYMGMT_EXPORT, (F)key_export},
    {OSSL_FUNC_KEYMGMT_EXPORT_TYPES, (F)key_types}, {OSSL_FUNC_KEYMGMT_GET_PARAMS, (F)key_params}, {OSSL_FUNC_KEYMGMT_GETTABLE_PARAMS, (F)key_gettable}, {0, NULL}};
static const OSSL_DISPATCH signatures[] = {
    {OSSL_FUNC_SIGNATURE_NEWCTX, (F)signer_new}, {OSSL_FUNC_SIGNATURE_FREECTX, (F)signer_free}, {OSSL_FUNC_SIGNATURE_DIGEST_SIGN_INIT, (F)sign_init},
    {OSSL_FUNC_SIGNATURE_DIGEST_SIGN, (F)sign}, {OSSL_FUNC_SIGNATURE_DIGEST_VERIFY_INIT, (F)sign_init}, {OSSL_FUNC_SIGNATURE_DIGEST_VERIFY, (F)verify}, {0, NULL}};
static const OSSL_ALGORITHM key_kinds[] = {{"ED25519:1.3.101.112", "provider=gwtest", keys, NULL}, {NULL, NULL, NULL, NULL}};
static const OSSL_ALGORITHM signature_kinds[] = {{"ED25519:1.3.101.112", "provider=gwtest", signatures, NULL}, {NULL, NULL, NULL, NULL}};

static const OSSL_ALGORITHM *query(void *provider, int operation, int *no_cache) {
    *no_cache = 0;
    return operation == OSSL_OP_KEYMGMT ? key_kinds : operation == OSSL_OP_SIGNATURE ? signature_kinds : NULL;
}

static void teardown(void *provider) { OSSL_LIB_CTX_free(inside); }

static const OSSL_DISPATCH provider[] = {{OSSL_FUNC_PROVIDER_QUERY_OPERATION, (F)query}, {OSSL_FUNC_PROVIDER_TEARDOWN, (F)teardown}, {0, NULL}};

int OSSL_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in, const OSSL_DISPATCH **out, void **context) {
    inside = OSSL_LIB_CTX_new();
    *out = provider;
    *context = (void *)handle;
    return inside != NULL;
}
