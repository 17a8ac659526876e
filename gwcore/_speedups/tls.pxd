# Level 2. TLS without sockets: a session reads and writes ciphertext through windows of memory; who owns the socket moves the bytes.
from gwcore._speedups.buffer cimport Buf
from gwcore._speedups.copenssl cimport BIO, BIO_METHOD, SSL, SSL_CTX, SSL_get_default_passwd_cb_userdata
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t
from libc.stdint cimport uint8_t, uint16_t

cdef enum:
    TLS_IN_BYTES = 65536     # ciphertext of one read
    TLS_OUT_BYTES = 147456   # ciphertext of one write: what one turn may make of 128 KiB
    TLS_RECORD = 16384       # most plaintext of a record (RFC 8446 5.1)
    TLS_RECORD_FIRST = 4096  # of the first records of a flow: the first bytes can be read before all of a long record has come
    TLS_FLOW_BYTES = 65536   # so many bytes after a pause, records have their full size
    TLS_OVERHEAD = 512       # room that a record may need beyond its plaintext
    TLS_EARLY = 16384        # most early data of a connection

cdef enum TlsFault: FAULT_UNDRAWN, FAULT_NONE, FAULT_FAIL, FAULT_STALL, FAULT_CUT

cdef enum TlsKind: TLS_FULL, TLS_TICKET, TLS_LOCAL, TLS_REDIS      # how a session came about

cdef enum TlsEarly:          # early data (RFC 8446 2.3) of a client
    EARLY_NONE
    EARLY_TRY                # the handshake may begin with some
    EARLY_READ               # accepted: bytes go both ways, though Finished has not come
    EARLY_ENDED              # all of it is read; Finished is due

cdef enum TlsClaim: CLAIM_NONE, CLAIM_ASKED, CLAIM_WON         # of its session, which admits early data once in a fleet

cdef enum TlsLookup: LOOKUP_NONE, LOOKUP_WANTED, LOOKUP_ANSWERED, LOOKUP_USED      # of its session in Redis

cdef struct TlsIo:           # one per worker: the windows of the call that runs, and scratch for it
    const char *in_at
    size_t in_left
    size_t out_used
    char *out                # TLS_OUT_BYTES
    char *inbox              # TLS_IN_BYTES
    char *stage              # TLS_RECORD: plaintext put together for one record, or of one record of early data
    size_t staged            # of the latter
    BIO_METHOD *method
    BIO *bio                 # of all sessions here: it has no state between calls

cdef struct Tls:             # part of a connection; all zero = plain
    SSL *ssl
    Buf *sealed              # ciphertext that came and was not opened yet
    Buf *who                 # lines for the upstream that name the client by its certificate; NULL = it has none
    void *server             # TlsServer * while the handshake runs; it belongs to a plan that the connection holds
    void *sessions           # Sessions * of the endpoint, on the upstream side
    uint64_t name_hash       # of the server name that the client asked for, lower case; 0 = none
    uint32_t flow            # bytes sealed since the last pause
    uint32_t flow_s          # when, in seconds
    uint64_t identity        # of the policy that was chosen, as far as it fits; policies are numbered anew at a reload
    uint16_t policy          # while the handshake runs: index of the policy
    uint16_t error           # OpenSSL's reason code of a failure
    uint8_t begun            # the peer has sent something
    uint8_t due              # the handshake is not over
    uint8_t named            # the server name is one of a certificate's
    uint8_t fault            # TlsFault, drawn for each handshake where the configuration asks for it
    uint8_t paused           # its provider is done: the step is to go on
    uint8_t waiting          # for an asynchronous provider
    uint8_t answered         # our flight is made: what is left of the handshake costs little
    uint8_t away             # a thread has the session
    uint8_t closed           # close_notify came
    uint8_t resumed
    uint8_t verify_failed    # the peer's certificate is the cause of the failure
    uint8_t kind             # TlsKind
    uint8_t lookup           # TlsLookup
    uint8_t early            # TlsEarly
    uint8_t claim            # TlsClaim
    uint16_t fed             # bytes of early data behind a part of a head that was looked at already

cdef bint tls_io_open(TlsIo *io) noexcept nogil
cdef void tls_io_close(TlsIo *io) noexcept nogil
cdef bint tls_begin(TlsIo *io, Tls *t, SSL_CTX *ctx, bint accepting) noexcept nogil
cdef void tls_adopt(TlsIo *io, Tls *t) noexcept nogil
cdef int tls_step(TlsIo *io, Tls *t) noexcept nogil
cdef int tls_early(TlsIo *io, Tls *t) noexcept nogil
cdef int tls_open(TlsIo *io, Tls *t, char *into, size_t room, size_t *got) noexcept nogil
cdef int tls_seal(TlsIo *io, Tls *t, const char *at, size_t size) noexcept nogil
cdef bint tls_holds(const Tls *t) noexcept nogil
cdef void tls_bye(TlsIo *io, Tls *t) noexcept nogil
cdef void tls_end(Tls *t) noexcept nogil
cdef const char *tls_version(const Tls *t) noexcept nogil
cdef const char *tls_cipher(const Tls *t) noexcept nogil

cdef inline bint tls_is_early(const Tls *t) noexcept nogil:
    return t.early > EARLY_TRY

cdef inline size_t tls_out_room(const TlsIo *io) noexcept nogil:
    return TLS_OUT_BYTES - io.out_used

cdef inline Tls *tls_of(SSL *s) noexcept nogil:
    """What tls_adopt told the session. It stands where a reader of keys would have its own (we have none): ex_data would cost 100 bytes."""
    return <Tls *>SSL_get_default_passwd_cb_userdata(s)
