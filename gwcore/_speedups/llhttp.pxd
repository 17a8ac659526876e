# Level 1. llhttp as function pointers out of the imported httptools extension (see llhttp.pyx for how and why).
from gwcore._speedups.cllhttp cimport llhttp_cb, llhttp_span_cb, llhttp_t

cdef struct Llhttp:
    void (*init)(llhttp_t *p, int kind, const void *settings) noexcept nogil
    int (*execute)(llhttp_t *p, const char *at, size_t size) noexcept nogil
    const char *(*error_pos)(const llhttp_t *p) noexcept nogil
    int (*method)(const llhttp_t *p) noexcept nogil
    int (*status)(const llhttp_t *p) noexcept nogil

cdef struct HeadSettings:            # llhttp's settings: an array of callbacks, most of them unused
    void *slot[32]

cdef Llhttp llhttp
cdef void settings_fill(HeadSettings *s, llhttp_span_cb on_url, llhttp_span_cb on_field, llhttp_span_cb on_value, llhttp_cb on_head) noexcept nogil
