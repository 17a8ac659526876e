"""The access log. Fixed fields in a fixed order; what clients send is escaped; no query strings, no credentials."""
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from gwcore._speedups.buffer cimport buf_bytes
from gwcore._speedups.address cimport address_text
from gwcore._speedups.conn cimport SINK_REFRESH, Conn, Worker
from gwcore._speedups.explain cimport explain_breaker
from gwcore._speedups.fields cimport METHODS, METHOD_SIZE
from gwcore._speedups.plan cimport plan_text
from gwcore._speedups.reasons cimport reason_row
from gwcore._speedups.ring cimport ring_put
from gwcore._speedups.story cimport CACHE_ERROR, CACHE_EXPIRED, CACHE_HIT, CACHE_MISS, CACHE_STALE, CACHE_VARY, DEGRADED_STATIC, Exchange
from gwcore._speedups.tls cimport TLS_LOCAL, TLS_REDIS, tls_cipher, tls_version

cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    struct tm:
        int tm_year, tm_mon, tm_mday, tm_hour, tm_min, tm_sec
    tm *gmtime_r(const time_t *t, tm *out)

cdef enum:
    RECORD_BYTES = 8192
    SUBJECT_AT = 25          # len("X-Gwcore-Client-Subject: ")

cdef struct Line:
    char at[8192]
    size_t n


cdef inline void put(Line *l, const char *s, size_t n) noexcept nogil:
    if l.n + n < RECORD_BYTES - 64:
        memcpy(l.at + l.n, s, n)
        l.n += n


cdef inline void word(Line *l, const char *s) noexcept nogil:
    put(l, s, strlen(s))


cdef void number(Line *l, uint64_t n) noexcept nogil:
    cdef char digits[24]
    cdef int i = 24
    while True:
        i -= 1
        digits[i] = <char>(48 + n % 10)
        n //= 10
        if n == 0:
            break
    put(l, digits + i, 24 - i)


cdef void millis(Line *l, uint64_t us) noexcept nogil:
    """Microseconds as milliseconds with three decimals."""
    cdef char frac[4]
    number(l, us // 1000)
    us %= 1000
    frac[0], frac[1], frac[2], frac[3] = c'.', <char>(48 + us // 100), <char>(48 + us // 10 % 10), <char>(48 + us % 10)
    put(l, frac, 4)


cdef void escaped(Line *l, const char *s, size_t n) noexcept nogil:
    """JSON string contents: quotes, backslashes, control bytes and everything beyond ASCII as \\u00XX (bytes read as Latin-1)."""
    cdef size_t i, run = 0
    cdef uint8_t c
    cdef char esc[6]
    for i in range(n):
        c = <uint8_t>s[i]
        if c >= 32 and c < 127 and c != c'"' and c != c'\\':
            continue
        put(l, s + run, i - run)
        run = i + 1
        esc[0], esc[1], esc[2], esc[3] = c'\\', c'u', c'0', c'0'
        esc[4] = b"0123456789abcdef"[c >> 4]
        esc[5] = b"0123456789abcdef"[c & 15]
        put(l, esc, 6)
    put(l, s + run, n - run)


cdef struct Stamp:           # the second for which the text was made
    uint64_t second
    char text[20]            # 2026-01-31T12:00:00

cdef Stamp STAMP


cdef void time_put(Line *l, uint64_t wall_ms) noexcept nogil:
    cdef tm t
    cdef time_t s = <time_t>(wall_ms // 1000)
    cdef char frac[5]
    cdef uint32_t ms = wall_ms % 1000
    if STAMP.second != <uint64_t>s:
        gmtime_r(&s, &t)
        digits(STAMP.text, t.tm_year + 1900, 4)
        STAMP.text[4] = STAMP.text[7] = c'-'
        digits(STAMP.text + 5, t.tm_mon + 1, 2)
        digits(STAMP.text + 8, t.tm_mday, 2)
        STAMP.text[10] = c'T'
        digits(STAMP.text + 11, t.tm_hour, 2)
        STAMP.text[13] = STAMP.text[16] = c':'
        digits(STAMP.text + 14, t.tm_min, 2)
        digits(STAMP.text + 17, t.tm_sec, 2)
        STAMP.second = s
    put(l, STAMP.text, 19)
    frac[0], frac[4] = c'.', c'Z'
    digits(frac + 1, ms, 3)
    put(l, frac, 5)


cdef void digits(char *out, int n, int width) noexcept nogil:
    while width:
        width -= 1
        out[width] = <char>(48 + n % 10)
        n //= 10


cdef void line_send(Worker *w, Line *l) noexcept nogil:
    if ring_put(w.ring, l.at, l.n):
        w.lane.worker.log_records += 1
    else:
        w.lane.worker.log_dropped += 1


cdef void tls_fields(Line *l, const Conn *c) noexcept nogil:
    """What only a TLS connection has; ends within a string, as it began."""
    cdef const char *at
    cdef size_t n = 0
    word(l, b'","tls_cipher":"')
    word(l, tls_cipher(&c.tls))
    word(l, b'","tls_resumed":"')
    word(l, b"" if not c.tls.resumed else b"local" if c.tls.kind == TLS_LOCAL else b"redis" if c.tls.kind == TLS_REDIS else b"ticket")
    word(l, b'","tls_client":"')
    if c.tls.who != NULL:                            # the value of its first line
        at = buf_bytes(c.tls.who) + SUBJECT_AT
        while at[n] != c'\r':
            n += 1
        escaped(l, at, n)


cdef const char *cache_word(int how) noexcept nogil:
    """Of CacheHow."""
    if how == CACHE_HIT: return b"hit"
    if how == CACHE_STALE: return b"stale"
    if how == CACHE_ERROR: return b"error"
    if how == CACHE_MISS: return b"miss"
    if how == CACHE_VARY: return b"vary"
    if how == CACHE_EXPIRED: return b"expired"
    return b"bypass"


cdef void log_exchange(Worker *w, const Exchange *x) noexcept nogil:
    """Write the line of an exchange that ends. `w.now_us` is its end."""
    cdef Line l
    cdef char peer[48]
    cdef char detail[400]
    cdef uint64_t total = w.now_us - x.start_us
    if w.ring == NULL:
        return
    l.n = 0
    word(&l, b'{"ts":"')
    time_put(&l, w.wall_ms)
    word(&l, b'","id":"')
    if x.note != NULL:
        put(&l, buf_bytes(x.note) + x.note_path_len, x.note_id_len)
    word(&l, b'","client":"')
    put(&l, peer, address_text(x.origin.address, x.origin.family, peer))
    word(&l, b'","method":"')
    put(&l, METHODS[x.method & 63], METHOD_SIZE[x.method & 63])
    word(&l, b'","path":"')
    if x.note != NULL:
        escaped(&l, buf_bytes(x.note), x.note_path_len)
    word(&l, b'","status":')
    number(&l, x.status)
    word(&l, b',"reason":"')
    word(&l, reason_row(x.reason).word)
    word(&l, b'","route":"')
    if x.route != NULL:
        escaped(&l, plan_text(x.plan.head, x.route.name), x.route.name.len)
    elif x.note != NULL:                             # a tunnel keeps its route's name there
        escaped(&l, buf_bytes(x.note) + x.note_path_len + x.note_id_len, x.note_route_len)
    word(&l, b'","upstream":"')
    if x.upstream != NULL:
        escaped(&l, x.upstream.name, x.upstream.name_len)
    word(&l, b'","endpoint":"')
    if x.endpoint != NULL:
        escaped(&l, x.endpoint.name, x.endpoint.name_len)
    word(&l, b'","attempts":')
    number(&l, x.attempts)
    word(&l, b',"bytes_in":')
    number(&l, x.bytes_in)
    word(&l, b',"bytes_out":')
    number(&l, x.bytes_out)
    word(&l, b',"t_queue_ms":')
    millis(&l, x.queue_us)
    word(&l, b',"t_connect_ms":')
    millis(&l, x.connecting_us)
    word(&l, b',"t_first_byte_ms":')
    millis(&l, x.first_byte_us - x.start_us if x.first_byte_us else total)
    word(&l, b',"t_total_ms":')
    millis(&l, total)
    word(&l, b',"tls":"')
    if x.client.tls.ssl != NULL:
        word(&l, tls_version(&x.client.tls))
    word(&l, b'","degraded":"')
    word(&l, b"" if not x.degraded else b"static" if x.degraded == DEGRADED_STATIC else b"cache")
    word(&l, b'","tier":"P')
    number(&l, x.tier)
    if x.refusal:
        word(&l, b'","detail":"')
        put(&l, detail, explain_breaker(x, detail, sizeof(detail)))
    if x.client.tls.ssl != NULL:
        tls_fields(&l, x.client)
    if x.retries:
        word(&l, b'","retried":"')
        if x.retried:
            number(&l, x.retried)
        else:
            word(&l, reason_row(x.first_reason).word)
    if x.cached:
        word(&l, b'","cache":"')
        word(&l, cache_word(x.cached))
    if x.client.sink:
        word(&l, b'","detached":"refresh' if x.client.sink == SINK_REFRESH else b'","detached":"left')
    if x.budget_empty:
        word(&l, b'","flags":"retry_budget')
    word(&l, b'"}\n')
    line_send(w, &l)


cdef void log_refused(Worker *w, const Conn *c, int reason, int status) noexcept nogil:
    """A connection or a head that was refused before there was a request."""
    cdef Line l
    cdef char peer[48]
    if w.ring == NULL:
        return
    l.n = 0
    word(&l, b'{"ts":"')
    time_put(&l, w.wall_ms)
    word(&l, b'","id":"","client":"')
    put(&l, peer, address_text(c.peer, c.family, peer))
    word(&l, b'","method":"","path":"","status":')
    number(&l, status)
    word(&l, b',"reason":"')
    word(&l, reason_row(reason).word)
    word(&l, b'","route":"","upstream":"","endpoint":"","attempts":0,"bytes_in":0,"bytes_out":0,"t_queue_ms":0.000,"t_connect_ms":0.000,'
             b'"t_first_byte_ms":0.000,"t_total_ms":0.000,"tls":"","degraded":"","tier":"P1"}\n')
    line_send(w, &l)
