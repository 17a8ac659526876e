"""Field names and byte classes: which bytes may stand where, and a switch from a name to its id."""
from libc.string cimport memchr, memcmp, memcpy, memset, strlen

from gwcore._speedups.types cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef void tables_fill():
    cdef int i
    token = b"!#$%&'*+-.^_`|~"
    refused = b'"<>\\^`{|}#'                # RFC 3986 has no place for these in a target; a fragment is never sent
    for i in range(256):
        letter = 65 <= i <= 90 or 97 <= i <= 122
        digit = 48 <= i <= 57
        LOWER[i] = i + 32 if 65 <= i <= 90 else i
        BYTE_CLASS[i] = ((B_TOKEN if letter or digit or i in token else 0)
                         | (B_TARGET if 0x21 <= i <= 0x7e and i not in refused else 0)
                         | (B_DIGIT if digit else 0)
                         | (B_HEX if digit or chr(i) in "abcdefABCDEF" else 0)
                         | (B_UNRESERVED if letter or digit or i in b"-._~" else 0)
                         | (B_VALUE if i == 9 or (i >= 32 and i != 127) else 0)
                         | (B_HOST if letter or digit or i in b"!$%&'()*+-.;=_~" else 0))

tables_fill()


cdef bint same_word(const char *a, size_t n, const char *lower, size_t m) noexcept nogil:
    """ASCII case-insensitive; lower is in lower case already."""
    cdef size_t i
    if n != m:
        return False
    for i in range(n):
        if LOWER[<uint8_t>a[i]] != <uint8_t>lower[i]:
            return False
    return True


cdef bint all_bytes(const char *at, size_t size, uint8_t wanted) noexcept nogil:
    cdef size_t i
    for i in range(size):
        if not BYTE_CLASS[<uint8_t>at[i]] & wanted:
            return False
    return True


cdef int64_t decimal(const char *at, size_t size, size_t most) noexcept nogil:
    """The number that at[:size] writes with 1 to `most` digits (18 at the most) and nothing else; -1 when it does not."""
    cdef int64_t n = 0
    cdef size_t i
    if size == 0 or size > most or not all_bytes(at, size, B_DIGIT):
        return -1
    for i in range(size):
        n = n * 10 + (at[i] - 48)
    return n


cdef struct Word:            # a name of up to 16 bytes in two loads that may overlap, for one comparison without a loop
    uint64_t a
    uint64_t b

cdef struct Name:
    const char *text
    uint32_t size
    int id
    Word low                 # in lower case
    Word case                # 0x20 where a letter stands


cdef inline void word_read(const char *at, size_t size, Word *w) noexcept nogil:
    cdef uint32_t low, high
    if size >= 8:
        memcpy(&w.a, at, 8)
        memcpy(&w.b, at + (size - 8), 8)
    elif size >= 4:
        memcpy(&low, at, 4)
        memcpy(&high, at + (size - 4), 4)
        w.a = <uint64_t>high << 32 | low
        w.b = 0
    else:
        w.a = <uint64_t><uint8_t>at[0] << 16 | <uint64_t><uint8_t>at[size // 2] << 8 | <uint8_t>at[size - 1]
        w.b = 0


cdef Name name(const char *text, int id_) noexcept:
    cdef Name n
    cdef char[32] letters
    cdef size_t i, size = strlen(text)
    n.text, n.id, n.size = text, id_, <uint32_t>size
    for i in range(size):
        letters[i] = 0x20 if text[i] >= c'a' else 0
    word_read(text, size, &n.low)
    word_read(letters, size, &n.case)
    return n

cdef Name[31] NAMES
NAMES[0] = name(b"authorization", F_AUTHORIZATION)
NAMES[1] = name(b"connection", F_CONNECTION)
NAMES[2] = name(b"content-length", F_CONTENT_LENGTH)
NAMES[3] = name(b"content-type", F_CONTENT)
NAMES[4] = name(b"content-encoding", F_CONTENT)
NAMES[5] = name(b"content-range", F_CONTENT)
NAMES[6] = name(b"cookie", F_COOKIE)
NAMES[7] = name(b"date", F_DATE)
NAMES[8] = name(b"expect", F_EXPECT)
NAMES[9] = name(b"forwarded", F_FORWARDED)
NAMES[10] = name(b"host", F_HOST)
NAMES[11] = name(b"http2-settings", F_HTTP2_SETTINGS)
NAMES[12] = name(b"idempotency-key", F_IDEMPOTENCY_KEY)
NAMES[13] = name(b"keep-alive", F_KEEP_ALIVE)
NAMES[14] = name(b"max-forwards", F_MAX_FORWARDS)
NAMES[15] = name(b"proxy", F_PROXY)
NAMES[16] = name(b"proxy-connection", F_PROXY_CONNECTION)
NAMES[17] = name(b"server", F_SERVER)
NAMES[18] = name(b"set-cookie", F_SET_COOKIE)
NAMES[19] = name(b"te", F_TE)
NAMES[20] = name(b"trailer", F_TRAILER)
NAMES[21] = name(b"transfer-encoding", F_TRANSFER_ENCODING)
NAMES[22] = name(b"upgrade", F_UPGRADE)
NAMES[23] = name(b"via", F_VIA)
NAMES[24] = name(b"x-forwarded-for", F_X_FORWARDED_FOR)
NAMES[25] = name(b"x-forwarded-proto", F_X_FORWARDED_PROTO)
NAMES[26] = name(b"x-forwarded-host", F_X_FORWARDED_HOST)
NAMES[27] = name(b"x-forwarded-port", F_X_FORWARDED_PORT)
NAMES[28] = name(b"x-real-ip", F_X_REAL_IP)
NAMES[29] = name(b"x-request-id", F_X_REQUEST_ID)
NAMES[30] = name(b"early-data", F_EARLY_DATA)

cdef enum: SLOTS = 128
cdef uint8_t[SLOTS] SLOT         # row + 1 by slot of the hash; 0 = none
cdef uint64_t MULTIPLIER         # found at import: with it no two names share a slot


cdef inline uint32_t slot_of(const Word *w, uint64_t multiplier) noexcept nogil:
    return <uint32_t>(((w.a | <uint64_t>0x2020202020202020) ^ (w.b | <uint64_t>0x2020202020202020) * 3) * multiplier >> 57)


cdef void names_index() noexcept:
    global MULTIPLIER
    cdef int i, rows = 31
    cdef uint32_t slot
    cdef uint64_t multiplier = <uint64_t>0x9e3779b97f4a7c15
    while True:
        multiplier = multiplier * <uint64_t>0x5851f42d4c957f2d + 2
        memset(SLOT, 0, sizeof(SLOT))
        for i in range(rows):
            slot = slot_of(&NAMES[i].low, multiplier)
            if SLOT[slot]:
                break
            SLOT[slot] = <uint8_t>(i + 1)
        else:
            MULTIPLIER = multiplier
            return

names_index()


cdef int x_field(const char *name, size_t size) noexcept nogil:
    """Underscore aliases of the names beginning with x that we set: WSGI and CGI cannot tell the two apart."""
    cdef char low[20]
    cdef size_t i, n = size if size < sizeof(low) else sizeof(low)
    if size >= 9 and same_word(name, 9, b"x-gwcore-", 9):
        return F_X_GWCORE
    if memchr(name, c'_', size) == NULL:
        return F_OTHER
    for i in range(n):
        low[i] = c'-' if name[i] == c'_' else <char>LOWER[<uint8_t>name[i]]
    if n >= 9 and memcmp(low, <const char *>b"x-gwcore-", 9) == 0:
        return F_ALIAS                       # whatever its length
    return F_ALIAS if n == size and field_id(low, size) != F_OTHER else F_OTHER


cdef int field_id(const char *name, size_t size) noexcept nogil:
    """The id of a field name, whatever its case; F_OTHER for a stranger."""
    cdef Word w
    cdef const Name *n
    cdef uint8_t row
    if size == 0:
        return F_OTHER
    word_read(name, size, &w)
    row = SLOT[slot_of(&w, MULTIPLIER)]
    if row:
        n = &NAMES[row - 1]
        if n.size == size and w.a | n.case.a == n.low.a and w.b | n.case.b == n.low.b and (size <= 16 or same_word(name, size, n.text, size)):
            return n.id
    if name[0] | 32 == c'x':
        return x_field(name, size)
    return F_CONTENT if name[0] | 32 == c'c' and size > 8 and same_word(name, 8, b"content-", 8) else F_OTHER


METHOD_NAMES = ("DELETE GET HEAD POST PUT CONNECT OPTIONS TRACE COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND UNBIND ACL "
                "REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PATCH PURGE MKCALENDAR LINK UNLINK SOURCE PRI DESCRIBE "
                "ANNOUNCE SETUP PLAY PAUSE TEARDOWN GET_PARAMETER SET_PARAMETER REDIRECT RECORD FLUSH QUERY").split()     # in llhttp's order

cdef void methods_fill():
    cdef bytes b
    cdef int i
    for i, name in enumerate(METHOD_NAMES):
        b = name.encode()
        memcpy(METHODS[i], <const char *>b, len(b))
        METHOD_SIZE[i] = len(b)

methods_fill()


def field_id_of(bytes name):
    """For tests: the id of a field name."""
    return field_id(name, len(name))
