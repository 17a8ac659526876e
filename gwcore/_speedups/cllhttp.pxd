# Level 0. The part of llhttp's C interface that we use. Our own declaration: the struct is opaque but for `data`, and it is
# read through llhttp's accessor functions, so its layout may change between versions.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef struct llhttp_t:
    int32_t index
    void *span_pos
    void *span_cb
    int32_t error
    const char *reason
    const char *error_pos
    void *data               # ours; the self-test proves that llhttp leaves it alone and hands it back
    uint64_t rest[16]        # the remaining private fields, with room to spare

ctypedef int (*llhttp_cb)(llhttp_t *p) noexcept nogil
ctypedef int (*llhttp_span_cb)(llhttp_t *p, const char *at, size_t size) noexcept nogil

cdef enum:
    HPE_OK = 0
    HPE_INVALID_METHOD = 6
    HPE_INVALID_URL = 7
    HPE_INVALID_CONSTANT = 8
    HPE_INVALID_VERSION = 9
    HPE_INVALID_HEADER_TOKEN = 10
    HPE_INVALID_CONTENT_LENGTH = 11
    HPE_UNEXPECTED_CONTENT_LENGTH = 4
    HPE_INVALID_TRANSFER_ENCODING = 15
    HPE_PAUSED = 21
    LLHTTP_REQUEST = 1
    LLHTTP_RESPONSE = 2
    SETTINGS_SLOTS = 32      # more pointers than any version reads
