"""Message heads by llhttp. What llhttp lets pass and HTTP does not is refused in http1.pyx."""
from libc.stddef cimport size_t
from libc.string cimport memchr, memcmp

from gwcore._speedups.cllhttp cimport (
    HPE_INVALID_CONTENT_LENGTH, HPE_INVALID_HEADER_TOKEN, HPE_INVALID_METHOD, HPE_INVALID_TRANSFER_ENCODING, HPE_INVALID_VERSION,
    HPE_OK, HPE_PAUSED, HPE_UNEXPECTED_CONTENT_LENGTH, LLHTTP_REQUEST, llhttp_t,
)
from gwcore._speedups.fields cimport B_DIGIT, B_TOKEN, BYTE_CLASS, all_bytes, field_id
from gwcore._speedups.llhttp cimport HeadSettings, llhttp, settings_fill
from gwcore._speedups.reasons cimport (
    R_BAD_FRAMING, R_BAD_HEADER, R_BAD_REQUEST, R_BAD_RESPONSE, R_HEADERS_TOO_LARGE, R_HTTP_VERSION, R_NOT_IMPLEMENTED,
    R_TOO_MANY_HEADERS, R_URI_TOO_LONG,
)
from gwcore._speedups.types cimport RC_AGAIN, RC_FAIL, RC_OK, uint32_t
from libc.stdint cimport uint8_t

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
    llhttp.init(&h.p, kind, &SETTINGS)
    h.p.data = h
    h.kind = kind
    h.n = h.size = h.start = h.url = h.url_len = 0
    h.reason = 0
    h.in_value = 0


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
    rc = llhttp.execute(&h.p, base, fed) if fed else HPE_OK
    if rc == HPE_PAUSED:
        h.size = <uint32_t>(llhttp.error_pos(&h.p) - base)
        if h.url_len > limits.url_bytes:
            h.reason = R_URI_TOO_LONG
            return RC_FAIL
        if h.size > limits.head_bytes:
            h.reason = R_HEADERS_TOO_LARGE
            return RC_FAIL
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
