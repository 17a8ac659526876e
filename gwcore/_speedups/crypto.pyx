"""The OpenSSL that this build is linked with. TLS itself comes with its own issue; the wheel carries the library already."""

cdef extern from "<openssl/ssl.h>" nogil:
    int OPENSSL_init_ssl(unsigned long options, const void *settings)
    enum: OPENSSL_VERSION
    const char *OpenSSL_version(int kind)


def version() -> str:
    """For example "OpenSSL 3.0.15 3 Sep 2024"."""
    if OPENSSL_init_ssl(0, NULL) != 1:
        raise RuntimeError("OpenSSL does not initialise; is the installation whole?")
    return OpenSSL_version(OPENSSL_VERSION).decode()
