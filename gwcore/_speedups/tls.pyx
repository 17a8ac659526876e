"""TLS sessions over OpenSSL, without sockets. The BIO reads from the window `in_at[:in_left]` and writes behind `out[:out_used]`; all three
belong to the worker, so a connection that waits holds no buffer of ours. One BIO serves all sessions of a thread: what it says of a call that
could not go on is asked for before the next call.

OpenSSL's error queue is empty between calls: every failure here empties it, so that no call pays for clearing it first."""
from libc.stddef cimport size_t
from libc.stdint cimport uint16_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from gwcore._speedups.copenssl cimport (
    BIO, BIO_CTRL_FLUSH, BIO_TYPE_SOURCE_SINK, BIO_clear_retry_flags, BIO_free, BIO_get_data, BIO_meth_free, BIO_meth_new, BIO_meth_set_ctrl,
    BIO_meth_set_read, BIO_meth_set_write, BIO_new, BIO_set_data, BIO_set_init, BIO_set_retry_read, BIO_set_retry_write, BIO_up_ref, ERR_GET_LIB,
    ERR_GET_REASON, ERR_LIB_SSL, ERR_clear_error, ERR_peek_error, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_ZERO_RETURN,
    SSL_R_CERTIFICATE_VERIFY_FAILED, SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE, SSL_CIPHER_get_name, SSL_ERROR_WANT_ASYNC, SSL_ERROR_WANT_CLIENT_HELLO_CB, SSL_MODE_ASYNC,
    SSL_clear_mode, SSL_do_handshake, SSL_free, SSL_get_current_cipher, SSL_get_error, SSL_get_version, SSL_has_pending, SSL_new,
    SSL_RECEIVED_SHUTDOWN, SSL_SENT_SHUTDOWN, SSL_read, SSL_session_reused, SSL_set_accept_state, SSL_set_bio, SSL_set_connect_state,
    SSL_set_default_passwd_cb_userdata, SSL_set_shutdown,
    SSL_EARLY_DATA_ACCEPTED, SSL_READ_EARLY_DATA_FINISH, SSL_READ_EARLY_DATA_SUCCESS, SSL_get_early_data_status, SSL_read_early_data,
    SSL_shutdown, SSL_write, SSL_write_early_data,
)
from gwcore._speedups.types cimport RC_AGAIN, RC_DONE, RC_FAIL, RC_OK, RC_PARK


cdef int window_read(BIO *b, char *into, int n) noexcept nogil:
    cdef TlsIo *io = <TlsIo *>BIO_get_data(b)
    BIO_clear_retry_flags(b)
    if io.in_left == 0:
        BIO_set_retry_read(b)
        return -1
    if <size_t>n > io.in_left:
        n = <int>io.in_left
    memcpy(into, io.in_at, n)
    io.in_at += n
    io.in_left -= n
    return n


cdef int window_write(BIO *b, const char *at, int n) noexcept nogil:
    cdef TlsIo *io = <TlsIo *>BIO_get_data(b)
    BIO_clear_retry_flags(b)
    if <size_t>n > tls_out_room(io):
        n = <int>tls_out_room(io)
    if n == 0:
        BIO_set_retry_write(b)
        return -1
    memcpy(io.out + io.out_used, at, n)
    io.out_used += n
    return n


cdef long window_ctrl(BIO *b, int what, long n, void *p) noexcept nogil:
    return what == BIO_CTRL_FLUSH


cdef bint tls_io_open(TlsIo *io) noexcept nogil:
    """Scratch and the BIO's methods; opening twice is harmless. False when memory is out."""
    if io.method != NULL:
        return True
    memset(io, 0, sizeof(TlsIo))
    io.out = <char *>malloc(TLS_OUT_BYTES)
    io.inbox = <char *>malloc(TLS_IN_BYTES)
    io.stage = <char *>malloc(TLS_RECORD)
    io.method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, b"gwcore window")
    if io.out == NULL or io.inbox == NULL or io.stage == NULL or io.method == NULL:
        tls_io_close(io)
        return False
    BIO_meth_set_read(io.method, window_read)
    BIO_meth_set_write(io.method, window_write)
    BIO_meth_set_ctrl(io.method, window_ctrl)
    io.bio = BIO_new(io.method)
    if io.bio == NULL:
        tls_io_close(io)
        return False
    BIO_set_data(io.bio, io)
    BIO_set_init(io.bio, 1)
    return True


cdef void tls_io_close(TlsIo *io) noexcept nogil:
    """After the last session has ended."""
    free(io.out)
    free(io.inbox)
    free(io.stage)
    BIO_free(io.bio)
    if io.method != NULL:
        BIO_meth_free(io.method)
    memset(io, 0, sizeof(TlsIo))


cdef bint tls_begin(TlsIo *io, Tls *t, SSL_CTX *ctx, bint accepting) noexcept nogil:
    """A session for ctx whose handshake is due. False when memory is out; then t is plain as before."""
    cdef SSL *s = SSL_new(ctx)
    if s == NULL:
        ERR_clear_error()
        return False
    if accepting:
        SSL_set_accept_state(s)
    else:
        SSL_set_connect_state(s)
    t.ssl = s
    tls_adopt(io, t)
    t.due = 1
    t.closed = t.named = t.resumed = t.verify_failed = t.kind = t.lookup = t.early = t.claim = 0
    t.name_hash = t.error = t.policy = 0
    t.flow = t.fed = 0
    return True


cdef void tls_adopt(TlsIo *io, Tls *t) noexcept nogil:
    """The session is in this place and thread now; its callbacks find t with tls_of."""
    BIO_up_ref(io.bio)
    SSL_set_bio(t.ssl, io.bio, io.bio)
    SSL_set_default_passwd_cb_userdata(t.ssl, t)


cdef int failed(Tls *t) noexcept nogil:
    cdef unsigned long e = ERR_peek_error()
    t.error = <uint16_t>ERR_GET_REASON(e) if ERR_GET_LIB(e) == ERR_LIB_SSL else 0
    t.verify_failed = t.error == SSL_R_CERTIFICATE_VERIFY_FAILED or t.error == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE
    ERR_clear_error()
    return RC_FAIL


cdef int early_begun(Tls *t) noexcept nogil:
    t.early = EARLY_READ
    t.due = 0
    t.resumed = 1
    return RC_OK


cdef int tls_step(TlsIo *io, Tls *t) noexcept nogil:
    """Go on with the handshake. RC_OK: it is over. RC_AGAIN: it waits for bytes (of the peer, when the window is empty; else for room in
    `out`), or for a provider (t.waiting). RC_PARK: it waits for t.lookup to be answered. RC_FAIL: t.error; an alert may stand in `out`.
    RC_OK with t.early: early data is accepted, io.staged bytes of it are there, and tls_early goes on."""
    cdef int rc = SSL_READ_EARLY_DATA_FINISH, why
    io.staged = 0
    if t.early == EARLY_TRY:
        rc = SSL_read_early_data(t.ssl, io.stage, TLS_RECORD, &io.staged)
    if rc == SSL_READ_EARLY_DATA_FINISH:             # there is none, or none that is accepted
        t.early = EARLY_NONE
        rc = SSL_do_handshake(t.ssl)
    elif rc == SSL_READ_EARLY_DATA_SUCCESS:
        return early_begun(t)
    if rc == 1:
        t.due = 0
        SSL_clear_mode(t.ssl, SSL_MODE_ASYNC)            # records are ciphered here: a pause for each costs more than it saves
        t.resumed = SSL_session_reused(t.ssl) != 0
        return RC_OK
    why = SSL_get_error(t.ssl, rc)
    if why == SSL_ERROR_WANT_READ or why == SSL_ERROR_WANT_WRITE:
        if t.early == EARLY_TRY and why == SSL_ERROR_WANT_READ and SSL_get_early_data_status(t.ssl) == SSL_EARLY_DATA_ACCEPTED:
            return early_begun(t)                        # our flight is made, the data itself has not come yet
        return RC_AGAIN
    if why == SSL_ERROR_WANT_ASYNC:
        t.waiting = 1
        return RC_AGAIN
    if why == SSL_ERROR_WANT_CLIENT_HELLO_CB:
        return RC_PARK
    return failed(t)


cdef int tls_early(TlsIo *io, Tls *t) noexcept nogil:
    """Go on with early data, then with the handshake behind it. RC_OK: io.staged bytes, ask again. RC_AGAIN: it waits for bytes of the peer.
    RC_DONE: the handshake is over. RC_FAIL: t.error; an alert may stand in `out`."""
    cdef int rc = SSL_READ_EARLY_DATA_FINISH, why
    io.staged = 0
    if t.early == EARLY_READ:
        rc = SSL_read_early_data(t.ssl, io.stage, TLS_RECORD, &io.staged)
        if rc == SSL_READ_EARLY_DATA_SUCCESS:
            return RC_OK
        if rc == SSL_READ_EARLY_DATA_FINISH:
            t.early = EARLY_ENDED
    if t.early == EARLY_ENDED:
        rc = SSL_do_handshake(t.ssl)
        if rc == 1:
            t.early = EARLY_NONE
            return RC_DONE
    why = SSL_get_error(t.ssl, rc)
    return RC_AGAIN if why == SSL_ERROR_WANT_READ or why == SSL_ERROR_WANT_WRITE else failed(t)


cdef int tls_open(TlsIo *io, Tls *t, char *into, size_t room, size_t *got) noexcept nogil:
    """Open what the window and the session hold, room bytes at the most. RC_OK: all of it. RC_AGAIN: into is full, there may be more.
    RC_DONE: close_notify came behind got[0] bytes. RC_FAIL."""
    cdef int n, why
    got[0] = 0
    while got[0] < room:
        n = SSL_read(t.ssl, into + got[0], <int>(room - got[0]))
        if n > 0:
            got[0] += n
            if io.in_left == 0 and not SSL_has_pending(t.ssl):
                return RC_OK
            continue
        why = SSL_get_error(t.ssl, n)
        if why == SSL_ERROR_WANT_READ or why == SSL_ERROR_WANT_WRITE:
            return RC_OK
        if why == SSL_ERROR_ZERO_RETURN:
            t.closed = 1
            return RC_DONE
        return failed(t)
    return RC_AGAIN


cdef int tls_seal(TlsIo *io, Tls *t, const char *at, size_t size) noexcept nogil:
    """One record of size bytes (at most TLS_RECORD) behind `out`, where the caller has made size + TLS_OVERHEAD room. RC_OK or RC_FAIL."""
    cdef size_t n
    if tls_is_early(t):
        if SSL_write_early_data(t.ssl, at, size, &n) == 1 and n == size:
            return RC_OK
        return failed(t)
    if SSL_write(t.ssl, at, <int>size) == <int>size:
        return RC_OK
    return failed(t)


cdef bint tls_holds(const Tls *t) noexcept nogil:
    """Are there bytes of the peer that no read of the socket will bring?"""
    return t.sealed != NULL or SSL_has_pending(t.ssl)


cdef void tls_bye(TlsIo *io, Tls *t) noexcept nogil:
    """close_notify behind `out`. Asked again, OpenSSL reads: the window may hold what is another session's."""
    io.in_left = 0
    if SSL_shutdown(t.ssl) < 0:
        ERR_clear_error()


cdef const char *tls_version(const Tls *t) noexcept nogil:
    return SSL_get_version(t.ssl)


cdef const char *tls_cipher(const Tls *t) noexcept nogil:
    return SSL_CIPHER_get_name(SSL_get_current_cipher(t.ssl))


cdef void tls_end(Tls *t) noexcept nogil:
    """Free the session; twice is harmless. What t.sealed and t.server refer to are the caller's to give back."""
    if t.ssl != NULL:
        if t.error == 0:                                 # or OpenSSL takes an end without ceremony for a reason never to resume the session
            SSL_set_shutdown(t.ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN)
        SSL_free(t.ssl)
        t.ssl = NULL
    t.due = 0
