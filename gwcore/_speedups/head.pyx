"""Message heads. The plainest ones, nearly all, are read by head_plain in one pass; it takes a strict part of what llhttp takes and leaves
every other head, good or bad, to llhttp. What llhttp lets pass and HTTP does not is refused in http1.pyx."""
from libc.stddef cimport size_t
from libc.string cimport memchr, memcmp, memcpy

from gwcore._speedups.cllhttp cimport (
    HPE_INVALID_CONTENT_LENGTH, HPE_INVALID_HEADER_TOKEN, HPE_INVALID_METHOD, HPE_INVALID_TRANSFER_ENCODING, HPE_INVALID_VERSION,
    HPE_OK, HPE_PAUSED, HPE_UNEXPECTED_CONTENT_LENGTH, LLHTTP_REQUEST, llhttp_t,
)
from gwcore._speedups.fields cimport (
    B_DIGIT, B_TARGET, B_TOKEN, BYTE_CLASS, F_CONNECTION, F_CONTENT_LENGTH, F_HOP_LAST, F_KEEP_ALIVE, METHODS, METHOD_SIZE,
    M_DELETE, M_GET, M_HEAD, M_OPTIONS, M_PATCH, M_POST, M_PUT, all_bytes, field_id,
)
from gwcore._speedups.llhttp cimport HeadSettings, llhttp, settings_fill
from gwcore._speedups.reasons cimport (
    R_BAD_FRAMING, R_BAD_HEADER, R_BAD_REQUEST, R_BAD_RESPONSE, R_HEADERS_TOO_LARGE, R_HTTP_VERSION, R_NOT_IMPLEMENTED,
    R_TOO_MANY_HEADERS, R_URI_TOO_LONG,
)
from gwcore._speedups.types cimport RC_AGAIN, RC_FAIL, RC_OK, uint32_t, uint64_t
from libc.stdint cimport uint8_t, uint16_t

cdef HeadSettings SETTINGS


cdef int on_url(llhttp_t *p, const char *at, size_t size) noexcept nogil:
    cdef Head *h = <Head *>p.data
    if h.url == 0:
        h.url = <uint32_t>(at - h.base)
    h.url_len = <uint32_t>(at + size - h.base) - h.url
    return 0


cdef int on_field(llhttp_t *p, const char *at, size_t size) noexcept nogil:
    cdef Head *h = <Head *>p.data
    cdef Field *f
    if h.n == 0 or h.in_value:
        if h.n >= h.fields_max:
            h.reason = R_TOO_MANY_HEADERS
            return -1
        f = &h.f[h.n]
        h.n += 1
        h.in_value = 0
        f.name = <uint32_t>(at - h.base)
        f.value = f.value_len = 0
    else:
        f = &h.f[h.n - 1]
    size = <size_t>(at + size - h.base) - f.name
    if size > 0xffff:                       # a length that does not fit is a refusal, never a shorter length
        h.reason = R_HEADERS_TOO_LARGE
        return -1
    f.name_len = <uint32_t>size
    return 0


cdef int on_value(llhttp_t *p, const char *at, size_t size) noexcept nogil:
    cdef Head *h = <Head *>p.data
    cdef Field *f = &h.f[h.n - 1]
    cdef uint32_t off = <uint32_t>(at - h.base)
    if not h.in_value:
        f.value = off
        h.in_value = 1
    elif off != f.value + f.value_len:      # a folded line: RFC 9112 5.2
        h.reason = R_BAD_HEADER
        return -1
    f.value_len = off + <uint32_t>size - f.value
    return 0


cdef int on_head(llhttp_t *p) noexcept nogil:
    return HPE_PAUSED

settings_fill(&SETTINGS, on_url, on_field, on_value, on_head)


cdef void head_init(Head *h, int kind) noexcept nogil:
    """Ready for the first byte of a message. Only the part before the fields is touched."""
    h.kind = kind
    h.n = h.size = h.start = h.url = h.url_len = 0
    h.reason = 0
    h.in_value = h.plain = h.tidy = h.by_llhttp = 0


# ---- plain heads --------------------------------------------------------------------------------------------------

cdef extern from *:
    """
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "the first byte of a word is taken for its lowest"
    #endif
    static inline int gw_first_byte(unsigned long long v) { return __builtin_ctzll(v) >> 3; }
    """
    int gw_first_byte(uint64_t v) noexcept nogil


cdef inline size_t value_end(const char *at, size_t i, size_t size) noexcept nogil:
    """The first byte from i on that is a control character; size when there is none."""
    cdef uint64_t v
    while i + 8 <= size:                    # eight bytes at once; 0x7e and 0x7f behind 0xff give a wrong alarm, which costs time only
        memcpy(&v, at + i, 8)
        v = (v - <uint64_t>0x2020202020202020 | v + <uint64_t>0x0101010101010101) & ~v & <uint64_t>0x8080808080808080
        if v:
            i += gw_first_byte(v)
            break
        i += 8
    while i < size and <uint8_t>at[i] >= 32 and at[i] != 127:
        i += 1
    return i


cdef inline size_t class_end(const char *at, size_t i, size_t size, uint8_t wanted) noexcept nogil:
    """The first byte from i on that is not of this class; size when there is none. Four steps for each look at the size."""
    while i + 4 <= size:
        if not BYTE_CLASS[<uint8_t>at[i]] & wanted:
            return i
        if not BYTE_CLASS[<uint8_t>at[i + 1]] & wanted:
            return i + 1
        if not BYTE_CLASS[<uint8_t>at[i + 2]] & wanted:
            return i + 2
        if not BYTE_CLASS[<uint8_t>at[i + 3]] & wanted:
            return i + 3
        i += 4
    while i < size and BYTE_CLASS[<uint8_t>at[i]] & wanted:
        i += 1
    return i


cdef size_t request_line_plain(Head *h, const char *at, size_t size) noexcept nogil:
    """`METHOD /target HTTP/1.1 CR LF` with a usual method; where the next line begins, 0 when it is not that."""
    cdef int m
    cdef size_t i
    if size < 20:
        return 0
    if at[0] == c'G': m = M_GET
    elif at[0] == c'P': m = M_POST if at[1] == c'O' else M_PUT if at[1] == c'U' else M_PATCH
    elif at[0] == c'H': m = M_HEAD
    elif at[0] == c'D': m = M_DELETE
    elif at[0] == c'O': m = M_OPTIONS
    else: return 0
    i = METHOD_SIZE[m]
    if memcmp(at, METHODS[m], i) != 0 or at[i] != c' ' or at[i + 1] != c'/':
        return 0
    i += 1
    h.url = <uint32_t>i
    i = class_end(at, i, size, B_TARGET)
    h.url_len = <uint32_t>i - h.url
    if i + 11 > size or memcmp(at + i, b" HTTP/1.1\r\n", 11) != 0:
        return 0
    h.method = <uint8_t>m
    return i + 11


cdef size_t status_line_plain(Head *h, const char *at, size_t size) noexcept nogil:
    """`HTTP/1.1 200 Words CR LF`; where the next line begins, 0 when it is not that."""
    cdef size_t i
    if size < 17 or memcmp(at, b"HTTP/1.1 ", 9) != 0 or at[9] < c'1' or at[9] > c'5' or at[12] != c' ' \
            or not BYTE_CLASS[<uint8_t>at[10]] & BYTE_CLASS[<uint8_t>at[11]] & B_DIGIT:
        return 0
    i = value_end(at, 13, size)
    if i + 2 > size or at[i] != c'\r' or at[i + 1] != c'\n' or i > 8000:
        return 0
    h.status = (at[9] - 48) * 100 + (at[10] - 48) * 10 + (at[11] - 48)
    h.status_line = <uint16_t>(i + 2)
    return i + 2


cdef bint head_plain(Head *h, const char *at, size_t size) noexcept nogil:
    """Is at[:size] a whole head, or more, in which nothing is out of the ordinary? Then h is as llhttp would have left it, fields classified
    and values trimmed, and http1 has less to look at. False: it is not for us to say what it is."""
    cdef size_t begin, value, i = request_line_plain(h, at, size) if h.kind == LLHTTP_REQUEST else status_line_plain(h, at, size)
    cdef uint32_t n = 0, lengths = 0
    cdef Field *f
    if i == 0:
        return False
    h.tidy = 1
    while True:
        if i + 2 > size:
            return False
        if at[i] == c'\r':
            if at[i + 1] != c'\n':
                return False
            h.size = <uint32_t>(i + 2)
            h.n = n
            h.plain = 1
            return True
        begin = i
        i = class_end(at, i, size, B_TOKEN)
        if i == begin or i - begin > 0xffff or i + 3 > size or at[i] != c':' or at[i + 1] != c' ' or n == h.fields_max:
            return False
        f = &h.f[n]
        f.name = <uint32_t>begin
        f.name_len = <uint16_t>(i - begin)
        value = i + 2
        i = value_end(at, value, size)
        if i == value or at[value] == c' ' or i + 2 > size or at[i] != c'\r' or at[i + 1] != c'\n':
            return False
        i += 2
        f.value = <uint32_t>value
        f.value_len = <uint32_t>(i - 2 - value)
        while at[value + f.value_len - 1] == c' ':
            f.value_len -= 1
            h.tidy = 0
        f.id = <uint8_t>field_id(at + begin, f.name_len)
        f.drop = 0
        if 0 < f.id <= F_HOP_LAST and f.id != F_CONNECTION and f.id != F_KEEP_ALIVE:
            lengths += 1                    # of framing we know one Content-Length, in digits
            if f.id != F_CONTENT_LENGTH or lengths > 1 or f.value_len > 18 or not all_bytes(at + value, f.value_len, B_DIGIT):
                return False
        n += 1


# ---- the others ---------------------------------------------------------------------------------------------------

cdef int why_refused(const Head *h, int error, size_t size) noexcept nogil:
    """The reason word of an llhttp error; the first line is read again where the word depends on it."""
    cdef const char *at = h.base + h.start
    cdef const char *end
    cdef const char *p
    if h.kind != LLHTTP_REQUEST:
        return R_BAD_RESPONSE
    end = <const char *>memchr(at, c'\n', size - h.start)
    if end == NULL:
        end = h.base + size
    if error == HPE_INVALID_METHOD:
        p = <const char *>memchr(at, c' ', end - at)
        return R_NOT_IMPLEMENTED if p != NULL and p > at and p - at < 32 and all_bytes(at, p - at, B_TOKEN) else R_BAD_REQUEST
    if error == HPE_INVALID_VERSION:
        p = end - 9                         # "HTTP/d.d\r" before the line feed; it may not all be there yet
        if p > at and (p - 1)[0] == c' ' and memcmp(p, b"HTTP/", 5) == 0 and BYTE_CLASS[<uint8_t>p[5]] & B_DIGIT and p[6] == c'.' \
                and BYTE_CLASS[<uint8_t>p[7]] & B_DIGIT and p[8] == c'\r':
            return R_HTTP_VERSION
        return R_BAD_REQUEST
    if error == HPE_INVALID_CONTENT_LENGTH or error == HPE_UNEXPECTED_CONTENT_LENGTH or error == HPE_INVALID_TRANSFER_ENCODING:
        return R_BAD_FRAMING
    if error == HPE_INVALID_HEADER_TOKEN or h.n:
        return R_BAD_HEADER
    return R_BAD_REQUEST


cdef int head_feed(Head *h, const char *base, size_t size, const HeadLimits *limits) noexcept nogil:
    """Parse base[:size], from its beginning, into a fresh h.

    RC_OK: the head is complete, h.size bytes long, fields classified. RC_AGAIN: more is needed. RC_FAIL: h.reason says why not.
    """
    cdef int rc
    cdef uint32_t i
    cdef size_t fed = size
    h.base = base
    h.fields_max = limits.fields
    if h.kind == LLHTTP_REQUEST and size >= 2 and base[0] == c'\r' and base[1] == c'\n':
        h.start = 2                         # RFC 9112 2.2: one empty line is forgiven
    if fed > limits.head_bytes + 4:
        fed = limits.head_bytes + 4         # look no further than a legal head reaches
    if not h.by_llhttp and head_plain(h, base, fed):
        rc = HPE_PAUSED
    else:
        h.url = h.url_len = h.n = h.tidy = 0
        llhttp.init(&h.p, h.kind, &SETTINGS)
        h.p.data = h
        rc = llhttp.execute(&h.p, base, fed) if fed else HPE_OK
    if rc == HPE_PAUSED:
        if not h.plain:
            h.size = <uint32_t>(llhttp.error_pos(&h.p) - base)
        if h.url_len > limits.url_bytes:
            h.reason = R_URI_TOO_LONG
            return RC_FAIL
        if h.size > limits.head_bytes:
            h.reason = R_HEADERS_TOO_LARGE
            return RC_FAIL
        if h.plain:
            return RC_OK
        if h.kind == LLHTTP_REQUEST:
            h.method = <uint8_t>llhttp.method(&h.p)
        for i in range(h.n):
            h.f[i].id = <uint8_t>field_id(base + h.f[i].name, h.f[i].name_len)
            h.f[i].drop = 0
        return RC_OK
    if rc != HPE_OK:
        if h.reason == 0:
            h.reason = why_refused(h, rc, fed)
        return RC_FAIL
    if h.url_len > limits.url_bytes:
        h.reason = R_URI_TOO_LONG
        return RC_FAIL
    if size >= limits.head_bytes:
        h.reason = R_URI_TOO_LONG if h.kind == LLHTTP_REQUEST and h.n == 0 else R_HEADERS_TOO_LARGE
        return RC_FAIL
    if h.kind == LLHTTP_REQUEST and h.url and h.url + h.url_len < size and (base[h.url + h.url_len] == c'\r' or base[h.url + h.url_len] == c'\n'):
        h.reason = R_BAD_REQUEST            # the line ends without a version: HTTP/0.9, whose end no head marks
        return RC_FAIL
    return RC_AGAIN
