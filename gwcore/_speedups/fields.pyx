"""Field names and byte classes: which bytes may stand where, and a switch from a name to its id."""
from libc.string cimport memcmp, memcpy, strlen

from gwcore._speedups.types cimport size_t
from libc.stdint cimport uint8_t


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
                         | (B_VALUE if i == 9 or (i >= 32 and i != 127) else 0))

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


cdef struct Name:
    const char *text
    int id

# by first letter, so that a usual name meets two or three comparisons of lengths
cdef Name[29] NAMES
NAMES[0] = Name(b"authorization", F_AUTHORIZATION)
NAMES[1] = Name(b"connection", F_CONNECTION)
NAMES[2] = Name(b"content-length", F_CONTENT_LENGTH)
NAMES[3] = Name(b"content-type", F_CONTENT)
NAMES[4] = Name(b"content-encoding", F_CONTENT)
NAMES[5] = Name(b"content-range", F_CONTENT)
NAMES[6] = Name(b"cookie", F_COOKIE)
NAMES[7] = Name(b"date", F_DATE)
NAMES[8] = Name(b"expect", F_EXPECT)
NAMES[9] = Name(b"forwarded", F_FORWARDED)
NAMES[10] = Name(b"host", F_HOST)
NAMES[11] = Name(b"http2-settings", F_HTTP2_SETTINGS)
NAMES[12] = Name(b"idempotency-key", F_IDEMPOTENCY_KEY)
NAMES[13] = Name(b"keep-alive", F_KEEP_ALIVE)
NAMES[14] = Name(b"max-forwards", F_MAX_FORWARDS)
NAMES[15] = Name(b"proxy", F_PROXY)
NAMES[16] = Name(b"proxy-connection", F_PROXY_CONNECTION)
NAMES[17] = Name(b"server", F_SERVER)
NAMES[18] = Name(b"set-cookie", F_SET_COOKIE)
NAMES[19] = Name(b"te", F_TE)
NAMES[20] = Name(b"trailer", F_TRAILER)
NAMES[21] = Name(b"transfer-encoding", F_TRANSFER_ENCODING)
NAMES[22] = Name(b"upgrade", F_UPGRADE)
NAMES[23] = Name(b"via", F_VIA)
NAMES[24] = Name(b"x-forwarded-for", F_X_FORWARDED_FOR)
NAMES[25] = Name(b"x-forwarded-proto", F_X_FORWARDED_PROTO)
NAMES[26] = Name(b"x-forwarded-host", F_X_FORWARDED_HOST)
NAMES[27] = Name(b"x-forwarded-port", F_X_FORWARDED_PORT)
NAMES[28] = Name(b"x-real-ip", F_X_REAL_IP)

cdef uint8_t[29] NAME_SIZE
cdef uint8_t[257] FIRST          # first letter -> first row; FIRST[c + 1] need not follow, rows are sorted
cdef uint8_t[256] ROWS

cdef void names_index() noexcept:
    cdef int i
    for i in range(29):
        NAME_SIZE[i] = <uint8_t>strlen(NAMES[i].text)
        if ROWS[<uint8_t>NAMES[i].text[0]] == 0:
            FIRST[<uint8_t>NAMES[i].text[0]] = i
        ROWS[<uint8_t>NAMES[i].text[0]] += 1

names_index()


cdef int x_field(const char *name, size_t size) noexcept nogil:
    """Names beginning with x, and underscore aliases of those that we set: WSGI and CGI cannot tell the two apart."""
    cdef char low[20]
    cdef size_t i
    cdef bint alias = False
    if size >= 9 and same_word(name, 9, b"x-gwcore-", 9):
        return F_X_GWCORE
    if size > sizeof(low):
        return F_OTHER
    for i in range(size):
        low[i] = LOWER[<uint8_t>name[i]]
        if low[i] == c'_':
            low[i] = c'-'
            alias = True
    for i in range(24, 29):
        if NAME_SIZE[i] == size and memcmp(low, NAMES[i].text, size) == 0:
            return F_ALIAS if alias else NAMES[i].id
    if size == 12 and memcmp(low, <const char *>b"x-request-id", 12) == 0:
        return F_ALIAS if alias else F_X_REQUEST_ID
    if size >= 9 and memcmp(low, <const char *>b"x-gwcore-", 9) == 0:
        return F_ALIAS
    return F_OTHER


cdef int field_id(const char *name, size_t size) noexcept nogil:
    """The id of a field name, whatever its case; F_OTHER for a stranger."""
    cdef uint8_t first
    cdef int i, row
    if size == 0:
        return F_OTHER
    first = LOWER[<uint8_t>name[0]]
    if first == c'x':
        return x_field(name, size)
    row = FIRST[first]
    for i in range(row, row + ROWS[first]):
        if NAME_SIZE[i] == size and same_word(name, size, NAMES[i].text, size):
            return NAMES[i].id
    return F_CONTENT if size > 8 and first == c'c' and same_word(name, 8, b"content-", 8) else F_OTHER


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
