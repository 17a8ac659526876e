# Level 5. Sessions that the gateway keeps for its clients (TLS 1.2 by id, TLS 1.3 as PSK), and letters about them to who asks Redis.
from gwcore._speedups.copenssl cimport SSL, SSL_SESSION
from gwcore._speedups.shm cimport TlsCell
from gwcore._speedups.store cimport Store
from gwcore._speedups.tls cimport Tls
from gwcore._speedups.types cimport uint32_t, uint64_t
from libc.stdint cimport uint8_t

cdef extern from * nogil:
    """
    #define session_add(p, n) ((void)__atomic_fetch_add((p), (n), __ATOMIC_RELAXED))
    """
    void session_add(uint64_t *p, uint64_t n)       # to a figure that handshake threads add to as well

cdef enum LetterKind:
    LETTER_ASK               # a handshake waits for the session of this id
    LETTER_KEEP              # a new session, to be read from the store
    LETTER_EXTEND            # a session was used and lives longer
    LETTER_CLAIM             # as LETTER_ASK, of one that is to admit early data: whoever removes it from Redis has it

cdef struct Letter:
    uint64_t turn            # whose the place is: equal to the number of a writer, or one more for the reader
    uint64_t handle          # of the connection that waits
    uint32_t kind
    uint32_t ttl_s           # of the session
    uint8_t id[32]

cdef struct Mail:            # written by the worker and its handshake threads, read by the worker; nobody waits
    uint64_t written
    uint64_t taken
    uint32_t open            # somebody reads it, and Redis may be asked
    Letter letters[512]

cdef struct SessionUse:      # what the callbacks of a context need; part of TlsServer
    Store *store
    TlsCell *cell
    Mail *mail
    const uint64_t *wall_ms
    uint32_t worker
    uint32_t lifetime_s
    uint32_t max_version
    bint redis

cdef void mail_init(Mail *m) noexcept nogil
cdef bint mail_put(Mail *m, uint32_t kind, uint64_t handle, uint32_t ttl_s, const uint8_t *id) noexcept nogil
cdef bint mail_take(Mail *m, Letter *out) noexcept nogil
cdef bint session_offered(SSL *ssl, uint32_t max_version, uint8_t *id) noexcept nogil
cdef bint session_wanted(SessionUse *u, Tls *t, SSL *ssl) noexcept nogil
cdef SSL_SESSION *session_find(SessionUse *u, Tls *t, const uint8_t *id, int size) noexcept nogil
cdef bint session_claim(SessionUse *u, Tls *t, SSL *ssl) noexcept nogil
cdef void session_keep(SessionUse *u, SSL_SESSION *s) noexcept nogil

cdef inline bint mail_waits(const Mail *m) noexcept nogil:
    return m.written != m.taken
