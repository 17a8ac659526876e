# Level 10. An answer that is collected on its way to the client, to be kept.
from gwcore._speedups.buffer cimport ByteQueue
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.copies cimport CopyKey, CopyMeta
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t
from libc.stdint cimport uint8_t

cdef enum:
    VARY_BYTES = 400

cdef struct Keep:            # behind it: the base key, then the request's fields as they came
    CopyMeta meta            # of the answer
    ByteQueue head           # of the answer, as its copy has it
    ByteQueue tags
    ByteQueue body
    uint64_t epoch           # of the base key when the request came
    uint32_t key_len
    uint32_t url_at          # of the key: scheme, host, path and query
    uint32_t asked_len
    uint8_t lease            # others wait for this answer
    uint8_t unsafe           # the request may change what the key names
    uint8_t secret           # it carried credentials
    uint8_t fallback         # a copy may stand in for an error
    uint8_t varies           # the answer differs by the fields of `vary`
    uint32_t vary_len
    char vary[400]           # their names in lower case, a comma behind each

cdef Keep *keep_open(Worker *w, Exchange *x, uint32_t key_len, uint32_t url_at, const char *asked, uint32_t asked_len) noexcept nogil
cdef void keep_key(Worker *w, const Keep *k, CopyKey *out) noexcept nogil
cdef void collect(Worker *w, Exchange *x, const char *at, size_t size) noexcept nogil
cdef void collect_stop(Worker *w, Exchange *x) noexcept nogil
cdef void keep_close(Worker *w, Exchange *x) noexcept nogil

cdef inline Keep *keep_of(const Exchange *x) noexcept nogil:
    return <Keep *>(x.copying + 1) if x.copying != NULL else NULL

cdef inline const char *keep_asked(const Keep *k) noexcept nogil:
    return <const char *>(k + 1) + k.key_len
