/* Every way in which a request, a connection or an attempt can fail: one row each, and nothing else about failures anywhere.
 * Log, status line, problem document, Proxy-Status, metric label, retry rule and breaker read the row.
 * Columns: WORD, word, status (0 = nobody to answer, the log only), side, retry (may, not does), breaker, Proxy-Status error (RFC 9209). */
#ifndef GWCORE_REASONS_H
#define GWCORE_REASONS_H

typedef enum { SIDE_CLIENT, SIDE_GATEWAY, SIDE_UPSTREAM } Side;
typedef enum { RETRY_NEVER, RETRY_IDEMPOTENT, RETRY_ANY } Retry;
typedef enum { BRK_NO, BRK_SATURATION, BRK_ENDPOINT, BRK_CONNECT, BRK_TLS, BRK_TIMEOUT, BRK_RESET, BRK_INVALID } BreakerKind;

#define REASONS(X) \
    X(NONE,                 "-",                      0, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "") \
    X(BAD_REQUEST,          "bad_request",          400, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(BAD_FRAMING,          "bad_framing",          400, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(BAD_HEADER,           "bad_header",           400, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(BAD_HOST,             "bad_host",             400, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(BAD_PATH,             "bad_path",             400, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(HEADER_TIMEOUT,       "header_timeout",       408, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(BODY_TIMEOUT,         "body_timeout",         408, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(BODY_TOO_SLOW,        "body_too_slow",        408, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(BODY_TOO_LARGE,       "body_too_large",       413, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(URI_TOO_LONG,         "uri_too_long",         414, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(HEADERS_TOO_LARGE,    "headers_too_large",    431, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(TOO_MANY_HEADERS,     "too_many_headers",     431, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(NOT_IMPLEMENTED,      "not_implemented",      501, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(HTTP_VERSION,         "http_version",         505, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(EXPECTATION_FAILED,   "expectation_failed",   417, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(UPGRADE_REQUIRED,     "upgrade_required",     426, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(RANGE_NOT_SATISFIABLE, "range_not_satisfiable", 416, SIDE_CLIENT, RETRY_NEVER,      BRK_NO,         "http_request_error") \
    X(UNAUTHENTICATED,      "unauthenticated",      401, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_denied") \
    X(FORBIDDEN,            "forbidden",            403, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_denied") \
    X(MISDIRECTED,          "misdirected",          421, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_denied") \
    X(TOO_EARLY,            "too_early",            425, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_denied") \
    X(RATE_LIMITED,         "rate_limited",         429, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "http_request_denied") \
    X(CLIENT_CLOSED,        "client_closed",          0, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "") \
    X(BAD_PROXY_HEADER,     "bad_proxy_header",       0, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "") \
    X(TLS_HANDSHAKE,        "tls_handshake",          0, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "") \
    X(TLS_HANDSHAKE_TIMEOUT, "tls_handshake_timeout", 0, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "") \
    X(TLS_CLIENT_CERT,      "tls_client_cert",        0, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "") \
    X(CLIENT_WRITE_TIMEOUT, "client_write_timeout",   0, SIDE_CLIENT,   RETRY_NEVER,      BRK_NO,         "") \
    X(NO_ROUTE,             "no_route",             404, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "destination_not_found") \
    X(METHOD_NOT_ALLOWED,   "method_not_allowed",   405, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "destination_not_found") \
    X(CONNECTION_LIMIT,     "connection_limit",     503, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "connection_limit_reached") \
    X(CONCURRENCY_LIMIT,    "concurrency_limit",    503, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "connection_limit_reached") \
    X(OVERLOAD,             "overload",             503, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "destination_unavailable") \
    X(BUFFER_LIMIT,         "buffer_limit",         503, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "destination_unavailable") \
    X(DRAINING,             "draining",             503, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "destination_unavailable") \
    X(DEGRADE_REFUSED,      "degrade_refused",      503, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "destination_unavailable") \
    X(AUTH_DOWN,            "auth_down",            503, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "proxy_internal_response") \
    X(LIMITER_DOWN,         "limiter_down",         503, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "proxy_internal_response") \
    X(PLUGIN_ERROR,         "plugin_error",         500, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "proxy_internal_error") \
    X(INTERNAL,             "internal",             500, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "proxy_internal_error") \
    X(PLUGIN_TIMEOUT,       "plugin_timeout",       504, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "proxy_internal_error") \
    X(LOOP,                 "loop",                 508, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "proxy_loop_detected") \
    X(FAULT_INJECTED,       "fault_injected",       503, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "proxy_internal_response") \
    X(NOT_CACHED,           "not_cached",           504, SIDE_GATEWAY,  RETRY_NEVER,      BRK_NO,         "http_request_denied") \
    X(DEADLINE,             "deadline",             504, SIDE_GATEWAY,  RETRY_NEVER,      BRK_TIMEOUT,    "http_response_timeout") \
    X(NO_ENDPOINT,          "no_endpoint",          503, SIDE_UPSTREAM, RETRY_NEVER,      BRK_NO,         "destination_unavailable") \
    X(BREAKER_OPEN,         "breaker_open",         503, SIDE_UPSTREAM, RETRY_NEVER,      BRK_NO,         "destination_unavailable") \
    X(BREAKER_SHED,         "breaker_shed",         503, SIDE_UPSTREAM, RETRY_NEVER,      BRK_NO,         "destination_unavailable") \
    X(QUEUE_FULL,           "queue_full",           503, SIDE_UPSTREAM, RETRY_NEVER,      BRK_SATURATION, "connection_limit_reached") \
    X(QUEUE_TIMEOUT,        "queue_timeout",        503, SIDE_UPSTREAM, RETRY_NEVER,      BRK_SATURATION, "connection_limit_reached") \
    X(DNS_FAILED,           "dns_failed",           502, SIDE_UPSTREAM, RETRY_ANY,        BRK_NO,         "dns_error") \
    X(CONNECT_REFUSED,      "connect_refused",      502, SIDE_UPSTREAM, RETRY_ANY,        BRK_CONNECT,    "connection_refused") \
    X(CONNECT_FAILED,       "connect_failed",       502, SIDE_UPSTREAM, RETRY_ANY,        BRK_CONNECT,    "destination_ip_unroutable") \
    X(CONNECT_TIMEOUT,      "connect_timeout",      504, SIDE_UPSTREAM, RETRY_ANY,        BRK_CONNECT,    "connection_timeout") \
    X(UPSTREAM_TLS,         "upstream_tls",         502, SIDE_UPSTREAM, RETRY_ANY,        BRK_TLS,        "tls_protocol_error") \
    X(UPSTREAM_TLS_VERIFY,  "upstream_tls_verify",  502, SIDE_UPSTREAM, RETRY_ANY,        BRK_TLS,        "tls_certificate_error") \
    X(UPSTREAM_RESET,       "upstream_reset",       502, SIDE_UPSTREAM, RETRY_IDEMPOTENT, BRK_RESET,      "connection_terminated") \
    X(UPSTREAM_WRITE_TIMEOUT, "upstream_write_timeout", 504, SIDE_UPSTREAM, RETRY_IDEMPOTENT, BRK_TIMEOUT, "connection_write_timeout") \
    X(RESPONSE_TIMEOUT,     "response_timeout",     504, SIDE_UPSTREAM, RETRY_IDEMPOTENT, BRK_TIMEOUT,    "http_response_timeout") \
    X(UPSTREAM_ERROR,       "upstream_error",       502, SIDE_UPSTREAM, RETRY_NEVER,      BRK_NO,         "http_protocol_error") \
    X(BAD_RESPONSE,         "bad_response",         502, SIDE_UPSTREAM, RETRY_NEVER,      BRK_INVALID,    "http_protocol_error") \
    X(RESPONSE_HEADERS_TOO_LARGE, "response_headers_too_large", 502, SIDE_UPSTREAM, RETRY_NEVER, BRK_INVALID, "http_response_header_section_size") \
    X(UPGRADE_FAILED,       "upgrade_failed",       502, SIDE_UPSTREAM, RETRY_NEVER,      BRK_INVALID,    "http_upgrade_failed") \
    X(RESPONSE_IDLE,        "response_idle",          0, SIDE_UPSTREAM, RETRY_NEVER,      BRK_ENDPOINT,   "connection_read_timeout") \
    X(RESPONSE_TRUNCATED,   "response_truncated",     0, SIDE_UPSTREAM, RETRY_NEVER,      BRK_ENDPOINT,   "http_response_incomplete") \
    X(TUNNEL_IDLE,          "tunnel_idle",            0, SIDE_UPSTREAM, RETRY_NEVER,      BRK_NO,         "")

#define X(name, word, status, side, retry, breaker, proxy_status) R_##name,
typedef enum { REASONS(X) R_COUNT } Reason;
#undef X

typedef struct {
    const char *word, *proxy_status;
    unsigned short status;
    unsigned char side, retry, breaker, word_len;
} ReasonRow;

#define X(name, word, status, side, retry, breaker, proxy_status) \
    {word, proxy_status, status, side, retry, breaker, sizeof(word) - 1},
static const ReasonRow REASON_ROWS[] = { REASONS(X) };
#undef X

#endif
