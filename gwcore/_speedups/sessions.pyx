"""Stateful sessions. All of this may run in several handshake threads at once, so it shares nothing but the store and the mail, which are made
for that, and counts atomically."""
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from gwcore._speedups.copenssl cimport (
    ERR_clear_error, OPENSSL_cleanse, SSL_SESSION_free, SSL_SESSION_get_id, SSL_SESSION_get_protocol_version, SSL_SESSION_get_time,
    SSL_SESSION_set_time, SSL_client_hello_get0_ext, SSL_client_hello_get0_session_id, TLS1_3_VERSION, TLSEXT_TYPE_psk,
    TLSEXT_TYPE_early_data, TLSEXT_TYPE_supported_versions, SSL_get0_session, d2i_SSL_SESSION, i2d_SSL_SESSION,
)
from gwcore._speedups.store cimport SESSION_BYTES, SESSION_ID, store_extend, store_get, store_put, store_take
from gwcore._speedups.tls cimport CLAIM_ASKED, CLAIM_WON, EARLY_TRY, LOOKUP_NONE, LOOKUP_USED, LOOKUP_WANTED, TLS_LOCAL, TLS_REDIS

cdef extern from * nogil:
    """
    #define mail_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define mail_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    static int mail_claim(uint64_t *p, uint64_t was) {
        return __atomic_compare_exchange_n(p, &was, was + 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    """
    uint64_t mail_load(const uint64_t *p)
    void mail_store(uint64_t *p, uint64_t v)
    bint mail_claim(uint64_t *p, uint64_t was)

cdef enum:
    LETTERS = 512
    LIFE_MOST_S = 86400      # of a TLS 1.2 session, however often it is used (CONFORMANCE T5)


# ---- mail ---------------------------------------------------------------------------------------------------------

cdef void mail_init(Mail *m) noexcept nogil:
    cdef uint64_t i
    for i in range(LETTERS):
        m.letters[i].turn = i


cdef bint mail_put(Mail *m, uint32_t kind, uint64_t handle, uint32_t ttl_s, const uint8_t *id) noexcept nogil:
    """From any thread. False: it is full."""
    cdef Letter *l
    cdef uint64_t n, turn
    while True:
        n = mail_load(&m.written)
        l = &m.letters[n % LETTERS]
        turn = mail_load(&l.turn)
        if turn == n:
            if mail_claim(&m.written, n):
                break
        elif turn < n:
            return False
    l.kind, l.handle, l.ttl_s = kind, handle, ttl_s
    memcpy(l.id, id, SESSION_ID)
    mail_store(&l.turn, n + 1)
    return True


cdef bint mail_take(Mail *m, Letter *out) noexcept nogil:
    """The oldest letter, in the worker's own thread. False: there is none."""
    cdef Letter *l = &m.letters[m.taken % LETTERS]
    if mail_load(&l.turn) != m.taken + 1:
        return False
    out[0] = l[0]
    mail_store(&l.turn, m.taken + LETTERS)
    m.taken += 1
    return True


# ---- the ClientHello ----------------------------------------------------------------------------------------------

cdef bint offers_13(SSL *ssl) noexcept nogil:
    cdef const unsigned char *at
    cdef size_t n, i = 1
    if SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_supported_versions, &at, &n) != 1:
        return False
    while i + 1 < n:
        if at[i] == 3 and at[i + 1] == 4:
            return True
        i += 2
    return False


cdef bint session_offered(SSL *ssl, uint32_t max_version, uint8_t *id) noexcept nogil:
    """The id of the session that a ClientHello asks for, while OpenSSL waits in its callback. With TLS 1.3 it is an identity of
    pre_shared_key (RFC 8446 4.2.11), and the field of that name is only for show (D.4); False: it asks for none that could be ours."""
    cdef const unsigned char *at
    cdef size_t n, i = 2, k
    if max_version >= <uint32_t>TLS1_3_VERSION and offers_13(ssl):
        if SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_psk, &at, &n) != 1 or n < 2:
            return False
        n = min(n, <size_t>(at[0] << 8 | at[1]) + 2)
        while i + 2 <= n:
            k = <size_t>(at[i] << 8 | at[i + 1])
            if k == SESSION_ID and i + 2 + k <= n:
                memcpy(id, at + i + 2, SESSION_ID)
                return True
            i += 2 + k + 4
        return False
    if SSL_client_hello_get0_session_id(ssl, &at) != SESSION_ID:
        return False
    memcpy(id, at, SESSION_ID)
    return True


cdef bint session_wanted(SessionUse *u, Tls *t, SSL *ssl) noexcept nogil:
    """Must Redis be asked before this handshake goes on? Once at the most. With early data always: a copy at hand says nothing of other machines."""
    cdef uint8_t bytes[SESSION_BYTES]
    cdef uint8_t id[SESSION_ID]
    cdef const unsigned char *at
    cdef size_t n
    cdef uint64_t due
    if t.lookup != LOOKUP_NONE:
        t.lookup = LOOKUP_USED
        return False
    if not u.redis or not u.mail.open or not session_offered(ssl, u.max_version, id):
        return False
    if t.early == EARLY_TRY and SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_early_data, &at, &n) == 1:
        t.claim = CLAIM_ASKED
    elif store_get(u.store, id, bytes, u.wall_ms[0], &due):
        return False
    t.lookup = LOOKUP_WANTED
    return True


# ---- what OpenSSL asks --------------------------------------------------------------------------------------------

cdef SSL_SESSION *session_find(SessionUse *u, Tls *t, const uint8_t *id, int size) noexcept nogil:
    """The session of an id, the caller's; NULL when there is none that may be used. One of TLS 1.2 lives on by its use, for a day at the most;
    TLS 1.3 makes a new one each time."""
    cdef uint8_t bytes[SESSION_BYTES]
    cdef const unsigned char *at = bytes
    cdef const unsigned char *own
    cdef unsigned int n = 0
    cdef uint64_t now = u.wall_ms[0], due = 0
    cdef SSL_SESSION *s = NULL
    cdef bint good
    if size == SESSION_ID:
        n = store_get(u.store, id, bytes, now, &due)
    if n:
        s = d2i_SSL_SESSION(NULL, &at, n)
        OPENSSL_cleanse(bytes, n)
        ERR_clear_error()
    if s != NULL:
        own = SSL_SESSION_get_id(s, &n)
        good = n == SESSION_ID and memcmp(own, id, SESSION_ID) == 0      # or somebody has moved it in Redis
        if good and SSL_SESSION_get_protocol_version(s) < TLS1_3_VERSION:
            good = now // 1000 < <uint64_t>SSL_SESSION_get_time(s) + LIFE_MOST_S
            SSL_SESSION_set_time(s, <long>(now // 1000))
            if good and (t.lookup != LOOKUP_NONE or due < now + u.lifetime_s * <uint64_t>500):
                store_extend(u.store, u.worker, id, now + u.lifetime_s * <uint64_t>1000, now)
                if u.redis and u.mail.open:
                    mail_put(u.mail, LETTER_EXTEND, 0, u.lifetime_s, id)
        if not good:
            SSL_SESSION_free(s)
            s = NULL
    if s == NULL:
        session_add(&u.cell.store_misses, 1)
        return NULL
    session_add(&u.cell.store_hits, 1)
    t.kind = TLS_REDIS if t.lookup != LOOKUP_NONE and t.claim != CLAIM_ASKED else TLS_LOCAL
    return s


cdef bint session_claim(SessionUse *u, Tls *t, SSL *ssl) noexcept nogil:
    """May early data of this handshake be taken? A session admits it once: for whoever removes it from the store of this machine first and, with
    Redis behind the store, has removed it there. OpenSSL asks when all else is in order, the client's proof that the session is its own included."""
    cdef unsigned int n = 0
    cdef const unsigned char *id = SSL_SESSION_get_id(SSL_get0_session(ssl), &n)
    cdef bint won = n == SESSION_ID and store_take(u.store, u.worker, id, u.wall_ms[0])
    if u.redis and t.claim != CLAIM_WON:
        won = False
    if won:
        session_add(&u.cell.early_accepted, 1)
    return won


cdef void session_keep(SessionUse *u, SSL_SESSION *s) noexcept nogil:
    """Keep a new session in the store, and let it be written to Redis."""
    cdef uint8_t bytes[SESSION_BYTES]
    cdef unsigned char *at = bytes
    cdef unsigned int n = 0
    cdef const unsigned char *id = SSL_SESSION_get_id(s, &n)
    cdef int size = i2d_SSL_SESSION(s, NULL), kept = 0
    cdef uint64_t now = u.wall_ms[0]
    if n == SESSION_ID and 0 < size <= SESSION_BYTES:
        i2d_SSL_SESSION(s, &at)
        kept = store_put(u.store, u.worker, id, bytes, <uint32_t>size, now + u.lifetime_s * <uint64_t>1000, now)
        OPENSSL_cleanse(bytes, <size_t>size)
    if not kept:
        session_add(&u.cell.sessions_refused, 1)
        return
    session_add(&u.cell.sessions_kept, 1)
    if kept == 2:
        session_add(&u.cell.sessions_evicted, 1)
    if u.redis and not (u.mail.open and mail_put(u.mail, LETTER_KEEP, 0, u.lifetime_s, id)):
        session_add(&u.cell.redis_dropped, 1)
