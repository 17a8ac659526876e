"""What the configuration asks OpenSSL about certificates, keys and names of algorithms: the library that will use them is the one that judges
them. Cold; with the GIL."""
import calendar
import ipaddress
import os

from gwcore._speedups.copenssl cimport (
    ASN1_STRING, ASN1_STRING_get0_data, ASN1_STRING_length, ASN1_TIME, ASN1_TIME_to_tm, BIO, BIO_free, BIO_new_mem_buf, ERR_clear_error,
    ERR_peek_error, ERR_reason_error_string, EVP_CIPHER_CTX, EVP_CIPHER_CTX_ctrl, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new,
    EVP_CTRL_AEAD_GET_TAG, EVP_CTRL_AEAD_SET_TAG, EVP_DecryptFinal_ex, EVP_DecryptInit_ex, EVP_DecryptUpdate, EVP_EncryptFinal_ex,
    EVP_EncryptInit_ex, EVP_EncryptUpdate, EVP_PKEY, EVP_PKEY_EC, EVP_PKEY_ED25519, EVP_PKEY_RSA, EVP_PKEY_RSA_PSS, EVP_PKEY_free,
    EVP_PKEY_get_base_id, EVP_PKEY_get_bits, EVP_PKEY_get_security_bits, EVP_aes_256_gcm, EVP_sha256, GENERAL_NAME, GENERAL_NAMES, GENERAL_NAMES_free, GENERAL_NAME_get0_value,
    GEN_DNS, GEN_IPADD, NID_subject_alt_name, OPENSSL_VERSION, OPENSSL_init_ssl, OSSL_PROVIDER_load, OSSL_PROVIDER_set_default_search_path, EVP_set_default_properties, OpenSSL_version, PEM_read_bio_PrivateKey,
    PEM_read_bio_X509, PEM_read_bio_X509_CRL, SSL_CTX, SSL_CTX_free, SSL_CTX_new, SSL_CTX_set1_groups_list, SSL_CTX_set_cipher_list,
    SSL_CTX_set_ciphersuites, TLS_server_method, X509, X509_CRL, X509_CRL_free, X509_CRL_get0_nextUpdate, X509_NAME_oneline,
    X509_check_issued, X509_check_private_key, X509_digest, X509_free, X509_get_default_cert_dir, X509_get_default_cert_file, X509_get0_notAfter, X509_get0_notBefore, X509_get0_pubkey,
    ASN1_INTEGER, ASN1_INTEGER_cmp, CipherStack, NID_auth_null, NID_des_ede3_cbc, NID_rc4, OCSP_BASICRESP, OCSP_BASICRESP_free, OCSP_CERTID,
    OCSP_RESPONSE, OCSP_RESPONSE_STATUS_SUCCESSFUL, OCSP_RESPONSE_free, OCSP_SINGLERESP, OCSP_SINGLERESP_get0_id, OCSP_id_get0_info, OCSP_resp_count,
    OCSP_resp_get0, OCSP_response_get1_basic, OCSP_response_status, OCSP_response_status_str, OCSP_single_get0_status, SSL_CIPHER, SSL_CIPHER_get_auth_nid,
    SSL_CIPHER_get_bits, SSL_CIPHER_get_cipher_nid, SSL_CIPHER_get_name, SSL_CTX_get_ciphers, V_OCSP_CERTSTATUS_GOOD, V_OCSP_CERTSTATUS_REVOKED,
    X509_get0_serialNumber, d2i_OCSP_RESPONSE, sk_SSL_CIPHER_num, sk_SSL_CIPHER_value,
    X509_get_ext_d2i, X509_get_issuer_name, X509_get_subject_name, sk_GENERAL_NAME_num, sk_GENERAL_NAME_value, tm_,
)


cdef extern from * nogil:
    """
    #include <openssl/engine.h>
    #include <string.h>
    /* The engine interface is deprecated and may be absent; everything of it is in this one function. */
    static const char *gw_engine(const char *name) {
    #ifdef OPENSSL_NO_ENGINE
        return "this OpenSSL is built without engines; use a provider";
    #else
        ENGINE *e;
    #pragma GCC diagnostic push
    #pragma GCC diagnostic ignored "-Wdeprecated-declarations"
        ENGINE_load_builtin_engines();
        if (strchr(name, '/')) {
            e = ENGINE_by_id("dynamic");
            if (!e || !ENGINE_ctrl_cmd_string(e, "SO_PATH", name, 0) || !ENGINE_ctrl_cmd_string(e, "LOAD", NULL, 0)) return "cannot be loaded";
        } else if (!(e = ENGINE_by_id(name))) {
            return "is not known";
        }
        if (!ENGINE_init(e)) return "does not start";
        if (!ENGINE_set_default(e, ENGINE_METHOD_ALL)) return "cannot be made the default";
    #pragma GCC diagnostic pop
        return NULL;
    #endif
    }
    """
    const char *gw_engine(const char *name)


def version() -> str:
    """For example "OpenSSL 3.0.15 3 Sep 2024"."""
    if OPENSSL_init_ssl(0, NULL) != 1:
        raise RuntimeError("OpenSSL does not initialise; is the installation whole?")
    return OpenSSL_version(OPENSSL_VERSION).decode()


cdef str trouble(str otherwise):
    """OpenSSL's word for what went wrong last; its queue is empty afterwards."""
    cdef const char *why = ERR_reason_error_string(ERR_peek_error())
    ERR_clear_error()
    return why.decode() if why != NULL else otherwise


cdef int no_password(char *into, int size, int writing, void *arg) noexcept nogil:
    return -1


cdef object unix_time(const ASN1_TIME *t):
    cdef tm_ out
    if t == NULL or ASN1_TIME_to_tm(t, &out) != 1:
        return None
    return calendar.timegm((out.tm_year + 1900, out.tm_mon + 1, out.tm_mday, out.tm_hour, out.tm_min, out.tm_sec))


cdef list names_of(X509 *x):
    """DNS names in lower case and addresses of the subjectAltName; a common name counts for nothing (RFC 9525)."""
    cdef GENERAL_NAMES *all = <GENERAL_NAMES *>X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL)
    cdef GENERAL_NAME *one
    cdef ASN1_STRING *s
    cdef int i
    names = []
    if all == NULL:
        return names
    for i in range(sk_GENERAL_NAME_num(all)):
        one = sk_GENERAL_NAME_value(all, i)
        if one.type == GEN_DNS:
            s = <ASN1_STRING *>GENERAL_NAME_get0_value(one, NULL)
            names.append(ASN1_STRING_get0_data(s)[:ASN1_STRING_length(s)].decode("latin-1").lower().rstrip("."))
        elif one.type == GEN_IPADD:
            s = <ASN1_STRING *>GENERAL_NAME_get0_value(one, NULL)
            raw = ASN1_STRING_get0_data(s)[:ASN1_STRING_length(s)]
            if len(raw) in (4, 16):
                ip = ipaddress.ip_address(raw)
                names.append(str(ip) if ip.version == 4 else f"[{ip}]")
    GENERAL_NAMES_free(all)
    return names


cdef dict facts_of(X509 *x):
    cdef char line[512]
    cdef unsigned char digest[64]
    cdef unsigned int size = 0
    cdef EVP_PKEY *k = X509_get0_pubkey(x)
    cdef int kind = EVP_PKEY_get_base_id(k) if k != NULL else 0
    X509_NAME_oneline(X509_get_subject_name(x), line, sizeof(line))
    subject = line.decode(errors="replace")
    X509_NAME_oneline(X509_get_issuer_name(x), line, sizeof(line))
    X509_digest(x, EVP_sha256(), digest, &size)
    return {
        "subject": subject,
        "issuer": line.decode(errors="replace"),
        "names": names_of(x),
        "not_before": unix_time(X509_get0_notBefore(x)),
        "not_after": unix_time(X509_get0_notAfter(x)),
        "sha256": digest[:size].hex(),
        "key": {EVP_PKEY_RSA: "RSA", EVP_PKEY_RSA_PSS: "RSA-PSS", EVP_PKEY_EC: "EC", EVP_PKEY_ED25519: "Ed25519"}.get(kind, "other"),
        "bits": EVP_PKEY_get_bits(k) if k != NULL else 0,
        "security_bits": EVP_PKEY_get_security_bits(k) if k != NULL else 0,
    }


def certificates(pem: bytes) -> list[dict]:
    """The certificates of a PEM file, in its order: subject, issuer, names (DNS names in lower case, addresses), not_before and not_after (unix
    time), sha256, key, bits, security_bits, and `signed`: whether the next one in the file issued it (None for the last). ValueError when one
    of them cannot be read, or there is none."""
    cdef BIO *b = BIO_new_mem_buf(<const char *>pem, <int>len(pem))
    cdef X509 *x
    cdef X509 *before = NULL
    found = []
    try:
        while True:
            x = PEM_read_bio_X509(b, NULL, no_password, NULL)
            if x == NULL:
                why = trouble("no start line")
                if "no start line" not in why:
                    raise ValueError(f"certificate {len(found) + 1} of the file: {why}")
                break
            if before != NULL:
                found[len(found) - 1]["signed"] = X509_check_issued(x, before) == 0
                X509_free(before)
            before = x
            found.append(dict(facts_of(x), signed=None))
    finally:
        X509_free(before)
        BIO_free(b)
        ERR_clear_error()
    if not found:
        raise ValueError("there is no certificate in it")
    return found


def check_key(chain: bytes, key: bytes) -> str:
    """"" when the PEM key belongs to the first certificate of the PEM chain, else what is wrong."""
    cdef BIO *b = BIO_new_mem_buf(<const char *>chain, <int>len(chain))
    cdef X509 *x = PEM_read_bio_X509(b, NULL, no_password, NULL)
    cdef EVP_PKEY *k
    BIO_free(b)
    if x == NULL:
        return trouble("there is no certificate in it")
    b = BIO_new_mem_buf(<const char *>key, <int>len(key))
    k = PEM_read_bio_PrivateKey(b, NULL, no_password, NULL)
    BIO_free(b)
    if k == NULL:
        X509_free(x)
        if b"ENCRYPTED" in key:
            ERR_clear_error()
            return "the key is encrypted; store it without a password and protect the file"
        return f"there is no private key in it ({trouble('unreadable')})"
    good = X509_check_private_key(x, k) == 1
    ERR_clear_error()
    EVP_PKEY_free(k)
    X509_free(x)
    return "" if good else "the key is not the certificate's"


def crl_expiry(pem: bytes) -> list:
    """When each revocation list of a PEM file wants to be replaced (unix time, or None). ValueError when there is none."""
    cdef BIO *b = BIO_new_mem_buf(<const char *>pem, <int>len(pem))
    cdef X509_CRL *l
    out = []
    while True:
        l = PEM_read_bio_X509_CRL(b, NULL, no_password, NULL)
        if l == NULL:
            break
        out.append(unix_time(X509_CRL_get0_nextUpdate(l)))
        X509_CRL_free(l)
    BIO_free(b)
    ERR_clear_error()
    if not out:
        raise ValueError("there is no revocation list in it")
    return out


def ocsp(der: bytes, chain: bytes) -> dict | None:
    """What an OCSP response says of the first certificate of a PEM chain: status (good, revoked, unknown), this_update and next_update (unix time;
    the latter None when it does not say). None when it is about other certificates. ValueError when it is no response, or no successful one."""
    cdef const unsigned char *at = der
    cdef BIO *b = BIO_new_mem_buf(<const char *>chain, <int>len(chain))
    cdef X509 *x = PEM_read_bio_X509(b, NULL, no_password, NULL)
    cdef OCSP_RESPONSE *r = d2i_OCSP_RESPONSE(NULL, &at, <long>len(der))
    cdef OCSP_BASICRESP *basic
    cdef OCSP_SINGLERESP *one
    cdef ASN1_INTEGER *serial
    cdef ASN1_TIME *since
    cdef ASN1_TIME *until
    cdef int i, status
    found = None
    BIO_free(b)
    if r == NULL:
        X509_free(x)
        raise ValueError(f"is no OCSP response in DER ({trouble('unreadable')})")
    status = OCSP_response_status(r)
    basic = OCSP_response_get1_basic(r) if status == OCSP_RESPONSE_STATUS_SUCCESSFUL else NULL
    OCSP_RESPONSE_free(r)
    if basic == NULL:
        X509_free(x)
        ERR_clear_error()
        raise ValueError(f"is an OCSP response without an answer ({OCSP_response_status_str(status).decode()})")
    for i in range(OCSP_resp_count(basic)):
        one = OCSP_resp_get0(basic, i)
        serial = NULL
        OCSP_id_get0_info(NULL, NULL, NULL, &serial, <OCSP_CERTID *>OCSP_SINGLERESP_get0_id(one))
        if x == NULL or serial == NULL or ASN1_INTEGER_cmp(serial, X509_get0_serialNumber(x)) != 0:
            continue
        since = until = NULL
        status = OCSP_single_get0_status(one, NULL, NULL, &since, &until)
        found = {"status": {V_OCSP_CERTSTATUS_GOOD: "good", V_OCSP_CERTSTATUS_REVOKED: "revoked"}.get(status, "unknown"),
                 "this_update": unix_time(since), "next_update": unix_time(until)}
    OCSP_BASICRESP_free(basic)
    X509_free(x)
    ERR_clear_error()
    return found


def weak_ciphers(value: str) -> list[str]:
    """Those that a list for TLS 1.2 lets in and that protect nobody any more: anonymous, without encryption, RC4, DES, below 112 bits."""
    cdef SSL_CTX *c = SSL_CTX_new(TLS_server_method())
    cdef bytes text = value.encode()
    cdef CipherStack *all
    cdef const SSL_CIPHER *one
    cdef int i, kind
    out = []
    if c == NULL:
        raise MemoryError
    if SSL_CTX_set_cipher_list(c, text) == 1:
        all = SSL_CTX_get_ciphers(c)
        for i in range(sk_SSL_CIPHER_num(all)):
            one = sk_SSL_CIPHER_value(all, i)
            kind = SSL_CIPHER_get_cipher_nid(one)
            if SSL_CIPHER_get_auth_nid(one) == NID_auth_null or kind == NID_rc4 or kind == NID_des_ede3_cbc or SSL_CIPHER_get_bits(one, NULL) < 112:
                out.append(SSL_CIPHER_get_name(one).decode())
    SSL_CTX_free(c)
    ERR_clear_error()
    return out


def wrap(key: bytes, text: bytes) -> bytes:
    """text under AES-256-GCM: 12 bytes nonce, ciphertext, 16 bytes tag. key: 32 bytes."""
    cdef EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new()
    cdef bytes nonce = os.urandom(12)
    cdef bytearray out = bytearray(len(text) + 16)
    cdef unsigned char *at = out
    cdef int n = 0, end = 0
    if len(key) != 32:
        raise ValueError("the key must have 32 bytes")
    good = c != NULL and EVP_EncryptInit_ex(c, EVP_aes_256_gcm(), NULL, <const unsigned char *>key, <const unsigned char *>nonce) == 1 \
        and EVP_EncryptUpdate(c, at, &n, <const unsigned char *>text, <int>len(text)) == 1 and EVP_EncryptFinal_ex(c, at + n, &end) == 1 \
        and EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_GET_TAG, 16, at + len(text)) == 1
    EVP_CIPHER_CTX_free(c)
    if not good:
        raise RuntimeError(f"AES-256-GCM: {trouble('refused')}")
    return nonce + bytes(out)


def unwrap(key: bytes, sealed: bytes) -> bytes:
    """What wrap made sealed of. ValueError when it is another key's, or was changed."""
    cdef EVP_CIPHER_CTX *c
    cdef bytearray out
    cdef const unsigned char *at = sealed
    cdef unsigned char *into
    cdef int n = 0, end = 0, size = <int>len(sealed) - 28
    if len(key) != 32 or size < 0:
        raise ValueError("not wrapped with this secret")
    out = bytearray(size + 16)
    into = out
    c = EVP_CIPHER_CTX_new()
    good = c != NULL and EVP_DecryptInit_ex(c, EVP_aes_256_gcm(), NULL, <const unsigned char *>key, at) == 1 \
        and EVP_DecryptUpdate(c, into, &n, at + 12, size) == 1 \
        and EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_SET_TAG, 16, <void *>(at + 12 + size)) == 1 and EVP_DecryptFinal_ex(c, into + n, &end) == 1
    EVP_CIPHER_CTX_free(c)
    ERR_clear_error()
    if not good:
        raise ValueError("not wrapped with this secret")
    return bytes(out[:size])


LOADED: list = []        # what this process has loaded; it stays


def use(providers: list[str], path: str = "", properties: str = "", engine: str = "") -> None:
    """Load providers (or an engine) for all that OpenSSL does in this process. Once is enough: later calls with the same arguments do nothing,
    others are left for the next start. ValueError says what cannot be had."""
    cdef bytes text
    wanted = (tuple(providers), path, properties, engine)
    if wanted == ((), "", "", ""):
        return
    if LOADED:
        return
    if path and OSSL_PROVIDER_set_default_search_path(NULL, path.encode()) != 1:
        raise ValueError(f"tls.crypto.path {path}: {trouble('refused')}")
    for name in providers:
        text = name.encode()
        if OSSL_PROVIDER_load(NULL, text) == NULL:
            raise ValueError(f"tls.crypto.providers: {name} cannot be loaded: {trouble('refused')}")
    if properties and EVP_set_default_properties(NULL, properties.encode()) != 1:
        raise ValueError(f"tls.crypto.properties {properties!r}: {trouble('refused')}")
    if engine:
        text = engine.encode()
        why = gw_engine(text)
        if why != NULL:
            raise ValueError(f"tls.crypto.engine {engine}: {why.decode()} ({trouble('no reason given')})")
    LOADED.append(wanted)


def authorities() -> tuple[str, str]:
    """The file and the directory in which this OpenSSL looks for authorities that everybody trusts."""
    return X509_get_default_cert_file().decode(), X509_get_default_cert_dir().decode()


def accepts(kind: str, value: str) -> bool:
    """Does this OpenSSL know these `groups`, `ciphers` (TLS 1.2) or `ciphersuites` (TLS 1.3)?"""
    cdef SSL_CTX *c = SSL_CTX_new(TLS_server_method())
    cdef bytes text = value.encode()
    cdef int rc
    if c == NULL:
        raise MemoryError
    if kind == "groups":
        rc = SSL_CTX_set1_groups_list(c, text)
    elif kind == "ciphers":
        rc = SSL_CTX_set_cipher_list(c, text)
    else:
        rc = SSL_CTX_set_ciphersuites(c, text)
    SSL_CTX_free(c)
    ERR_clear_error()
    return rc == 1
