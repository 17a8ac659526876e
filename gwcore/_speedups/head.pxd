# Level 5. One message head, parsed by llhttp into offsets: nothing is copied.
from gwcore._speedups.cllhttp cimport llhttp_t
from gwcore._speedups.fields cimport same_word
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t
from libc.stdint cimport int64_t, uint8_t, uint16_t

cdef enum:
    FIELDS_MAX = 256

cdef struct Field:           # offsets from the first byte of the message
    uint32_t name
    uint32_t value
    uint32_t value_len
    uint16_t name_len
    uint8_t id               # FieldId
    uint8_t drop             # not sent on

cdef struct HeadLimits:
    uint32_t url_bytes
    uint32_t head_bytes
    uint32_t fields

cdef struct Head:
    llhttp_t p
    const char *base         # first byte of the message; good within one turn, set again by head_feed
    uint32_t n               # fields seen
    uint32_t size            # bytes of the whole head, once it is complete
    uint32_t start           # 2 when an empty line stood before the request line
    uint32_t url
    uint32_t url_len
    uint32_t fields_max
    uint16_t reason          # Reason, when parsing failed
    uint8_t kind             # LLHTTP_REQUEST or LLHTTP_RESPONSE
    uint8_t in_value         # the last callback was a value's
    uint8_t by_llhttp        # tests only: no head is plain
    uint8_t plain            # head_plain read it
    uint8_t tidy             # ... and every line is `Name: value CR LF` to the letter
    # what http1 read from it
    uint8_t method           # llhttp's number
    uint8_t http10
    uint8_t keep_alive
    uint8_t chunked
    uint8_t has_length
    uint8_t expects_continue
    uint8_t te_trailers
    uint8_t wants_upgrade    # Connection: upgrade was said
    uint8_t has_date
    uint8_t has_key          # Idempotency-Key
    uint8_t has_authorization
    uint8_t absolute         # target in absolute-form
    uint16_t status
    uint16_t status_line     # response: bytes of the status line with its CRLF
    uint32_t path            # of the target: offsets, query excluded
    uint32_t path_len
    uint32_t query           # from behind the '?'
    uint32_t query_len
    uint32_t authority       # of Host, or of an absolute target
    uint32_t authority_len
    int64_t max_forwards     # -1 = none
    int64_t length           # Content-Length; -1 = none
    int host_field           # index, -1 = none
    int upgrade_field        # the same; -2 = more than one
    int id_field
    int keep_field           # Keep-Alive
    int xff_field            # the last one
    Field f[256]

cdef void head_init(Head *h, int kind) noexcept nogil
cdef int head_feed(Head *h, const char *base, size_t size, const HeadLimits *limits) noexcept nogil

cdef inline uint32_t field_end(const Head *h, uint32_t i) noexcept nogil:
    """Where the line of field i ends, CRLF included."""
    return h.f[i + 1].name if i + 1 < h.n else h.size - 2

cdef inline bint field_is(const Head *h, const Field *f, const char *lower, size_t n) noexcept nogil:
    """Has the field this name, which is given in lower case?"""
    return f.name_len == n and same_word(h.base + f.name, n, lower, n)
