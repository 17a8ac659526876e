# Level 0. What Cython code mentions of reasons.h; tests/test_source.py compares the two.
cdef extern from "reasons.h" nogil:
    ctypedef enum Reason:
        R_NONE, R_BAD_REQUEST, R_BAD_FRAMING, R_BAD_HEADER, R_BAD_HOST, R_BAD_PATH, R_BAD_PROXY_HEADER
        R_HEADER_TIMEOUT, R_BODY_TIMEOUT, R_BODY_TOO_SLOW, R_BODY_TOO_LARGE, R_URI_TOO_LONG, R_HEADERS_TOO_LARGE, R_TOO_MANY_HEADERS
        R_NOT_IMPLEMENTED, R_HTTP_VERSION, R_EXPECTATION_FAILED, R_CLIENT_CLOSED, R_CLIENT_WRITE_TIMEOUT
        R_MISDIRECTED, R_TLS_HANDSHAKE, R_TLS_HANDSHAKE_TIMEOUT, R_TLS_CLIENT_CERT
        R_NO_ROUTE, R_METHOD_NOT_ALLOWED, R_CONNECTION_LIMIT, R_OVERLOAD, R_BUFFER_LIMIT, R_DRAINING, R_INTERNAL, R_LOOP
        R_NO_ENDPOINT, R_QUEUE_FULL, R_QUEUE_TIMEOUT, R_DNS_FAILED, R_CONNECT_REFUSED, R_CONNECT_FAILED, R_CONNECT_TIMEOUT
        R_UPSTREAM_RESET, R_UPSTREAM_WRITE_TIMEOUT, R_RESPONSE_TIMEOUT, R_BAD_RESPONSE, R_RESPONSE_HEADERS_TOO_LARGE, R_UPGRADE_FAILED
        R_RESPONSE_IDLE, R_RESPONSE_TRUNCATED, R_TUNNEL_IDLE, R_COUNT
    ctypedef struct ReasonRow:
        const char *word
        const char *proxy_status
        unsigned short status
        unsigned char side, retry, breaker, word_len
    enum: RETRY_NEVER, RETRY_IDEMPOTENT, RETRY_ANY
    const ReasonRow REASON_ROWS[]

cdef inline const ReasonRow *reason_row(int reason) noexcept nogil:
    return &REASON_ROWS[reason]
