# Level 1. Header field names that the gateway knows, methods, and byte classes of RFC 9110.
from gwcore._speedups.types cimport size_t
from libc.stdint cimport int64_t, uint8_t

cdef enum FieldId:
    F_OTHER
    # framing and hop-by-hop
    F_CONNECTION, F_CONTENT_LENGTH, F_TRANSFER_ENCODING, F_KEEP_ALIVE, F_PROXY_CONNECTION, F_TE, F_TRAILER, F_UPGRADE, F_HTTP2_SETTINGS
    F_HOP_LAST               # everything up to here never passes the gateway
    # read or set by us
    F_HOST, F_EXPECT, F_X_FORWARDED_FOR, F_X_FORWARDED_PROTO, F_X_FORWARDED_HOST, F_X_FORWARDED_PORT, F_FORWARDED, F_X_REAL_IP
    F_VIA, F_X_REQUEST_ID, F_PROXY, F_X_GWCORE, F_ALIAS, F_EARLY_DATA
    # kept whatever Connection says
    F_AUTHORIZATION, F_COOKIE, F_CONTENT, F_IDEMPOTENCY_KEY
    F_DATE, F_SERVER, F_SET_COOKIE, F_MAX_FORWARDS

cdef enum:
    B_TOKEN = 1              # token byte of RFC 9110 5.6.2
    B_TARGET = 2             # may stand in a request target
    B_DIGIT = 4
    B_HEX = 8
    B_UNRESERVED = 16        # RFC 3986 2.3
    B_VALUE = 32             # may stand in a field value
    B_HOST = 64              # may stand in a host name (RFC 3986 3.2.2, but for the comma)

cdef enum Method:            # llhttp's numbers
    M_DELETE = 0, M_GET = 1, M_HEAD = 2, M_POST = 3, M_PUT = 4, M_CONNECT = 5, M_OPTIONS = 6, M_TRACE = 7, M_PATCH = 28

cdef uint8_t BYTE_CLASS[256]
cdef uint8_t LOWER[256]
cdef char METHODS[64][16]    # names by llhttp's number
cdef size_t METHOD_SIZE[64]

cdef int field_id(const char *name, size_t size) noexcept nogil
cdef bint same_word(const char *a, size_t n, const char *lower, size_t m) noexcept nogil
cdef bint all_bytes(const char *at, size_t size, uint8_t wanted) noexcept nogil
cdef int64_t decimal(const char *at, size_t size, size_t most) noexcept nogil
