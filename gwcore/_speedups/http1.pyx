"""What a head means. Doubt about framing is refused, never repaired (RFC 9112 6.3); everything here works on offsets of the head."""
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t
from libc.string cimport memchr, memcmp

from gwcore._speedups.cllhttp cimport LLHTTP_REQUEST, LLHTTP_RESPONSE
from gwcore._speedups.fields cimport (
    B_DIGIT, B_HEX, B_HOST, B_TARGET, B_TOKEN, B_VALUE, BYTE_CLASS, F_AUTHORIZATION, F_CONNECTION, F_CONTENT_LENGTH, F_DATE,
    F_EXPECT, F_HOP_LAST, F_HOST, F_IDEMPOTENCY_KEY, F_KEEP_ALIVE, F_MAX_FORWARDS, F_TE, F_TRANSFER_ENCODING, F_UPGRADE, F_VIA, F_X_FORWARDED_FOR,
    F_X_REAL_IP, F_X_REQUEST_ID, LOWER, M_CONNECT, M_OPTIONS, all_bytes, decimal, same_word,
)
from gwcore._speedups.head cimport Field, Head, HeadLimits, field_end, head_feed, head_init
from gwcore._speedups.reasons cimport (
    R_BAD_FRAMING, R_BAD_HEADER, R_BAD_HOST, R_BAD_PATH, R_BAD_REQUEST, R_BAD_RESPONSE, R_EXPECTATION_FAILED,
    R_HTTP_VERSION, R_METHOD_NOT_ALLOWED, R_NOT_IMPLEMENTED,
)
from gwcore._speedups.types cimport RC_AGAIN, RC_FAIL, RC_OK


cdef size_t list_next(const char *at, size_t size, size_t *pos, const char **item) noexcept nogil:
    """The next non-empty element of a comma list from pos on; its length, 0 at the end."""
    cdef size_t a = pos[0], b
    while a < size and (at[a] == c',' or at[a] == c' ' or at[a] == c'\t'):
        a += 1
    b = a
    while b < size and at[b] != c',':
        b += 1
    pos[0] = b
    while b > a and (at[b - 1] == c' ' or at[b - 1] == c'\t'):
        b -= 1
    item[0] = at + a
    return b - a


cdef int host_check(const char *at, size_t size) noexcept nogil:
    """uri-host [":" port] of RFC 9110 7.2, or nothing at all. 0 = well-formed."""
    cdef size_t i = 0, port
    cdef int64_t number = 0
    if size == 0:
        return 0
    if size > 255 + 6:
        return -1
    if at[0] == c'[':                       # IPv6 literal
        i = 1
        while i < size and (BYTE_CLASS[<uint8_t>at[i]] & B_HEX or at[i] == c':' or at[i] == c'.'):
            i += 1
        if i >= size or at[i] != c']' or i < 3:
            return -1
        i += 1
    else:
        while i < size and BYTE_CLASS[<uint8_t>at[i]] & B_HOST:
            i += 1
        if i == 0:
            return -1
    if i == size:
        return 0
    if at[i] != c':':
        return -1
    port = i + 1
    for i in range(port, size):
        if not BYTE_CLASS[<uint8_t>at[i]] & B_DIGIT:
            return -1
        number = number * 10 + (at[i] - 48)
        if number > 65535:
            return -1
    return 0


cdef size_t host_normal(const char *at, size_t size, char *out) noexcept nogil:
    """The host in lower case, without port and trailing dot, written to out (room for 261 bytes); its length."""
    cdef size_t i, n = size
    cdef char last = c']' if size and at[0] == c'[' else c':'
    for i in range(size):
        out[i] = LOWER[<uint8_t>at[i]]
        if at[i] == last:
            n = i + (last == c']')
            break
    return n - 1 if n and at[n - 1] == c'.' else n


cdef void trim(const Head *h, Field *f) noexcept nogil:
    """Drop optional whitespace behind the value; llhttp leaves it there."""
    while f.value_len and (h.base[f.value + f.value_len - 1] == c' ' or h.base[f.value + f.value_len - 1] == c'\t'):
        f.value_len -= 1


cdef bint never_named(int field) noexcept nogil:
    """Fields that `Connection` cannot take away, since we or the upstream rely on them."""
    return field == F_HOST or field == F_DATE or F_AUTHORIZATION <= field <= F_IDEMPOTENCY_KEY or F_X_FORWARDED_FOR <= field <= F_X_REAL_IP \
        or field == F_VIA or field == F_X_REQUEST_ID or field == F_CONTENT_LENGTH or field == F_TRANSFER_ENCODING


cdef void connection_named(Head *h, const char *name, size_t size) noexcept nogil:
    cdef uint32_t i
    cdef size_t k
    cdef bint same
    for i in range(h.n):
        if h.f[i].name_len != size or never_named(h.f[i].id):
            continue
        same = True
        for k in range(size):
            if LOWER[<uint8_t>h.base[h.f[i].name + k]] != LOWER[<uint8_t>name[k]]:
                same = False
                break
        if same:
            h.f[i].drop = 1


cdef void connection_options(Head *h, const Field *f, bint *close, bint *keep) noexcept nogil:
    cdef const char *item
    cdef size_t pos = 0, n
    while True:
        n = list_next(h.base + f.value, f.value_len, &pos, &item)
        if n == 0:
            return
        if same_word(item, n, b"close", 5):
            close[0] = True
        elif same_word(item, n, b"keep-alive", 10):
            keep[0] = True
        elif same_word(item, n, b"upgrade", 7):
            h.wants_upgrade = 1
        elif not same_word(item, n, b"te", 2):
            connection_named(h, item, n)


cdef int content_length(Head *h, const Field *f) noexcept nogil:
    cdef uint32_t i
    cdef int64_t value = 0
    if h.has_length or f.value_len == 0 or f.value_len > 19:
        return R_BAD_FRAMING
    for i in range(f.value_len):
        if not BYTE_CLASS[<uint8_t>h.base[f.value + i]] & B_DIGIT:
            return R_BAD_FRAMING
        if value > (INT64_MAX - (h.base[f.value + i] - 48)) // 10:
            return R_BAD_FRAMING
        value = value * 10 + (h.base[f.value + i] - 48)
    h.has_length = 1
    h.length = value
    return 0


cdef int transfer_encoding(Head *h, const Field *f) noexcept nogil:
    """Exactly `chunked`, once. Another coding is 501 when it is a plain list of tokens, everything else bad framing."""
    cdef const char *item
    cdef size_t pos = 0, n
    cdef bint other = False
    cdef int chunked = 0
    if h.chunked:
        return R_BAD_FRAMING
    if same_word(h.base + f.value, f.value_len, b"chunked", 7):
        h.chunked = 1
        return 0
    if f.value_len and h.base[f.value] == c',':
        return R_BAD_FRAMING
    while True:
        n = list_next(h.base + f.value, f.value_len, &pos, &item)
        if n == 0:
            break
        if chunked or not all_bytes(item, n, B_TOKEN):
            return R_BAD_FRAMING             # chunked not last, or no token
        if same_word(item, n, b"chunked", 7):
            chunked = 1
        else:
            other = True
    return R_NOT_IMPLEMENTED if other else R_BAD_FRAMING


cdef int fields_check(Head *h) noexcept nogil:
    """Every field, both directions: line form, framing, Connection. 0 or a Reason."""
    cdef uint32_t i, end
    cdef Field *f
    cdef int rc, bad_te = 0
    cdef bint close = False, keep = False
    h.chunked = h.has_length = h.expects_continue = h.te_trailers = h.wants_upgrade = h.has_date = h.has_key = h.has_authorization = 0
    h.length = h.max_forwards = -1
    h.host_field = h.upgrade_field = h.id_field = h.xff_field = h.keep_field = -1
    for i in range(h.n):
        f = &h.f[i]
        if not h.plain:
            end = field_end(h, i)
            if f.value_len == 0:             # llhttp's span of an empty value may stand behind the line
                f.value = f.name + f.name_len + 1
            # a line ends in CR LF and holds no other; a name touches its colon (older llhttp let a space stand between)
            if not BYTE_CLASS[<uint8_t>h.base[f.name + f.name_len - 1]] & B_TOKEN or h.base[f.name + f.name_len] != c':' or end < f.value + f.value_len + 2 or h.base[end - 1] != c'\n' or h.base[end - 2] != c'\r':
                return R_BAD_HEADER
            trim(h, f)
        if f.id == 0:
            continue
        if f.id <= F_HOP_LAST:
            f.drop = 1
            if f.id == F_CONTENT_LENGTH:
                rc = content_length(h, f)
                if rc:
                    return rc
            elif f.id == F_TRANSFER_ENCODING:
                rc = transfer_encoding(h, f)
                if rc == R_BAD_FRAMING:
                    return rc
                if rc:
                    bad_te = rc
            elif f.id == F_KEEP_ALIVE:
                h.keep_field = i
            elif f.id == F_UPGRADE:
                h.upgrade_field = i if h.upgrade_field == -1 else -2
            elif f.id == F_TE and same_word(h.base + f.value, f.value_len, b"trailers", 8):
                h.te_trailers = 1
        elif f.id == F_HOST:
            if h.host_field >= 0 and h.kind == LLHTTP_REQUEST:
                return R_BAD_HOST
            h.host_field = i
        elif f.id == F_X_REQUEST_ID:
            h.id_field = i
        elif f.id == F_X_FORWARDED_FOR:
            h.xff_field = i
        elif f.id == F_DATE:
            h.has_date = 1
        elif f.id == F_AUTHORIZATION:        # who reads the first and who the last would disagree about who asks
            if h.has_authorization:
                return R_BAD_HEADER
            h.has_authorization = 1
        elif f.id == F_MAX_FORWARDS and h.kind == LLHTTP_REQUEST:
            h.max_forwards = decimal(h.base + f.value, f.value_len, 9)
            if h.max_forwards < 0:
                return R_BAD_HEADER
        elif f.id == F_IDEMPOTENCY_KEY:
            h.has_key = 1
        elif f.id == F_EXPECT and h.kind == LLHTTP_REQUEST:
            if h.http10:
                f.drop = 1
            elif same_word(h.base + f.value, f.value_len, b"100-continue", 12):
                h.expects_continue = 1
            else:
                return R_EXPECTATION_FAILED
    for i in range(h.n):                     # after all ids are known: `Connection` may name a field that stood before it
        if h.f[i].id == F_CONNECTION:
            connection_options(h, &h.f[i], &close, &keep)
    h.keep_alive = not close and (keep or not h.http10)
    if (h.chunked or bad_te) and (h.has_length or h.http10):
        return R_BAD_FRAMING
    return bad_te


cdef int target_check(Head *h) noexcept nogil:
    """The request target: which form, where path, query and authority are."""
    cdef const char *url = h.base + h.url
    cdef uint32_t n = h.url_len, a, i
    h.absolute = 0
    h.authority = h.authority_len = 0
    if not h.plain and not all_bytes(url, n, B_TARGET):
        return R_BAD_PATH
    if h.method == M_CONNECT:
        return R_METHOD_NOT_ALLOWED
    if url[0] == c'*':
        if n != 1 or h.method != M_OPTIONS:
            return R_BAD_PATH
        h.path, h.path_len = h.url, 1
        h.query = h.query_len = 0
        return 0
    a = 0
    if url[0] != c'/':
        if n > 7 and same_word(url, 7, b"http://", 7):
            a = 7
        elif n > 8 and same_word(url, 8, b"https://", 8):
            a = 8
        else:
            return R_BAD_PATH
        h.absolute = 1
        h.authority = h.url + a
        while a < n and url[a] != c'/' and url[a] != c'?':
            a += 1
        h.authority_len = h.url + a - h.authority
        if h.authority_len == 0 or host_check(h.base + h.authority, h.authority_len) != 0 or memchr(h.base + h.authority, c'@', h.authority_len) != NULL:
            return R_BAD_HOST
    h.path = h.url + a
    i = a
    while i < n and url[i] != c'?':
        i += 1
    h.path_len = h.url + i - h.path
    if h.path_len == 0:                      # no path is "/" (RFC 9110 4.2.3), and one stands before the authority
        if h.method == M_OPTIONS:
            return R_BAD_PATH                # of the server as a whole, which is asked for with *
        h.path = h.authority - 1
        h.path_len = 1
    h.query = h.url + i + 1 if i < n else 0
    h.query_len = n - i - 1 if i < n else 0
    return 0


cdef int request_check(Head *h) noexcept nogil:
    """Is this complete request head one that we serve? 0, or the Reason why not."""
    cdef const char *line = h.base + h.start
    cdef const char *behind = h.base + h.url + h.url_len
    cdef int rc
    if h.plain:
        h.http10 = 0
        rc = fields_check(h) or target_check(h)
        if rc:
            return rc
        return host_field_check(h)
    # exactly one space between method, target and version
    if h.url < h.start + 2 or h.base[h.url - 1] != c' ' or not all_bytes(line, h.url - 1 - h.start, B_TOKEN):
        return R_BAD_REQUEST
    if h.url + h.url_len + 11 > h.size or memcmp(behind, b" HTTP/", 6) != 0:
        return R_BAD_REQUEST
    if behind[6] != c'1' or behind[7] != c'.' or (behind[8] != c'1' and behind[8] != c'0') or behind[9] != c'\r' or behind[10] != c'\n':
        return R_HTTP_VERSION if BYTE_CLASS[<uint8_t>behind[6]] & B_DIGIT and behind[7] == c'.' and BYTE_CLASS[<uint8_t>behind[8]] & B_DIGIT \
            and behind[9] == c'\r' else R_BAD_REQUEST
    h.http10 = behind[8] == c'0'
    rc = fields_check(h)
    if rc:
        return rc
    rc = target_check(h)
    if rc:
        return rc
    return host_field_check(h)


cdef int host_field_check(Head *h) noexcept nogil:
    """Host is there, well-formed, and what the target says if that says anything."""
    cdef const Field *f
    if h.host_field < 0:
        return 0 if h.http10 or h.absolute else R_BAD_HOST
    f = &h.f[h.host_field]
    if host_check(h.base + f.value, f.value_len) != 0:
        return R_BAD_HOST
    if not h.absolute:
        h.authority, h.authority_len = f.value, f.value_len
    elif not same_host(h.base + h.authority, h.authority_len, h.base + f.value, f.value_len,
                       443 if h.authority - h.url == 8 else 80):
        return R_BAD_HOST
    return 0


cdef uint32_t port_of(const char *at, size_t *size, uint32_t usual) noexcept nogil:
    """The port of a well-formed authority; size[0] becomes the length without it. None, or an empty one, is the scheme's own (RFC 3986 3.2.3)."""
    cdef size_t n = size[0], i
    cdef uint32_t port = 0
    while n and BYTE_CLASS[<uint8_t>at[n - 1]] & B_DIGIT:
        n -= 1
    if n == 0 or at[n - 1] != c':':
        return usual
    for i in range(n, size[0]):
        port = port * 10 + <uint32_t>(at[i] - 48)
    if n == size[0]:
        port = usual
    size[0] = n - 1
    return port


cdef bint same_host(const char *a, size_t n, const char *b, size_t m, uint32_t usual) noexcept nogil:
    """Do two authorities of a scheme, whose usual port is given, name the same place?"""
    cdef size_t i
    if port_of(a, &n, usual) != port_of(b, &m, usual) or n != m:
        return False
    for i in range(n):
        if LOWER[<uint8_t>a[i]] != LOWER[<uint8_t>b[i]]:
            return False
    return True


cdef int response_check(Head *h, bint to_head) noexcept nogil:
    """Is this complete response head one that we pass on? 0, or the Reason why not. Fills status_line."""
    cdef const char *line = h.base
    cdef const char *end
    cdef size_t n
    if h.plain:
        h.http10 = 0
        return R_BAD_RESPONSE if fields_check(h) else 0
    end = <const char *>memchr(line, c'\n', h.size)
    if end == NULL:
        return R_BAD_RESPONSE
    n = end - line + 1
    h.status_line = <unsigned short>n if n < 65535 else 65535
    if n < 14 - 1 or n > 8192 or memcmp(line, b"HTTP/1.", 7) != 0 or (line[7] != c'1' and line[7] != c'0') or line[8] != c' ':
        return R_BAD_RESPONSE
    if not all_bytes(line + 9, 3, B_DIGIT) or line[9] < c'1' or line[9] > c'5' or (line[12] != c' ' and line[12] != c'\r') or line[n - 2] != c'\r':
        return R_BAD_RESPONSE
    if not all_bytes(line + 12, n - 14, B_VALUE):
        return R_BAD_RESPONSE
    h.http10 = line[7] == c'0'
    h.status = (line[9] - 48) * 100 + (line[10] - 48) * 10 + (line[11] - 48)
    if fields_check(h) != 0:
        return R_BAD_RESPONSE
    return 0


cdef int response_body(const Head *h, bint to_head) noexcept nogil:
    """BodyKind of a checked response (RFC 9112 6.3)."""
    if to_head or h.status < 200 or h.status == 204 or h.status == 304:
        return BODY_NONE
    if h.chunked:
        return BODY_CHUNKED
    if h.has_length:
        return BODY_LENGTH if h.length else BODY_NONE
    return BODY_CLOSE


cdef int64_t keep_alive_ms(const Head *h) noexcept nogil:
    """How long the peer lets this connection idle, by its own word (`Keep-Alive: timeout=N`), less a second, for our next request must not
    cross its FIN; half a second when it grants no more than one. -1: it does not say."""
    cdef const Field *f
    cdef const char *item
    cdef size_t pos = 0, n
    cdef int64_t s
    if h.keep_field < 0:
        return -1
    f = &h.f[h.keep_field]
    while True:
        n = list_next(h.base + f.value, f.value_len, &pos, &item)
        if n == 0:
            return -1
        if n > 8 and same_word(item, 8, b"timeout=", 8):
            s = decimal(item + 8, n - 8, 6)
            if s >= 0:
                return (s - 1) * 1000 if s > 1 else s * 500


cdef class RequestProbe:
    """Parser and checks for tests and the micro benchmark."""
    cdef Head h

    def judge(self, bytes text):
        """What becomes of a request head: 'good', 'again' or 'bad'."""
        cdef int rc = self._once(text, len(text))
        return "good" if rc == 0 else "again" if rc == RC_AGAIN else "bad"

    def story(self, bytes text, bint response, bint by_llhttp):
        """All that is known of a head after its checks, read either way: whether it was plain, then what must not depend on it."""
        cdef HeadLimits limits
        cdef Head *h = &self.h
        cdef int rc, reason = 0
        limits.url_bytes, limits.head_bytes, limits.fields = 2000, 4000, 20
        head_init(h, LLHTTP_RESPONSE if response else LLHTTP_REQUEST)
        h.by_llhttp = by_llhttp
        rc = head_feed(h, text, len(text), &limits)
        if rc == RC_OK:
            reason = response_check(h, False) if response else request_check(h)
        elif rc == RC_FAIL:
            reason = h.reason
        if rc != RC_OK or reason:
            return bool(h.plain), (rc, reason)
        fields = [(h.f[i].name, h.f[i].name_len, h.f[i].value, h.f[i].value_len, h.f[i].id, h.f[i].drop) for i in range(h.n)]
        flags = (h.http10, h.keep_alive, h.chunked, h.has_length, h.expects_continue, h.te_trailers, h.wants_upgrade, h.has_date, h.has_key,
                 h.has_authorization, h.length, h.max_forwards, h.host_field, h.upgrade_field, h.id_field, h.xff_field)
        if response:
            return bool(h.plain), (h.size, fields, flags, h.status, h.status_line)
        return bool(h.plain), (h.size, fields, flags, h.start, h.method, h.absolute, h.path, h.path_len, h.query, h.query_len, h.authority, h.authority_len)

    def repeat(self, bytes text, int n):
        """Judge n times without Python in between."""
        cdef const char *at = text
        cdef size_t size = len(text)
        cdef int _i
        for _i in range(n):
            self._once(at, size)

    cdef int _once(self, const char *at, size_t size) noexcept nogil:
        cdef HeadLimits limits
        cdef int rc
        limits.url_bytes, limits.head_bytes, limits.fields = 8192, 32768, 100
        head_init(&self.h, LLHTTP_REQUEST)
        rc = head_feed(&self.h, at, size, &limits)
        return request_check(&self.h) if rc == RC_OK else rc
