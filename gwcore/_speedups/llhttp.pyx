"""llhttp, borrowed from httptools: its parser extension exports the llhttp functions, we call them through pointers.

The order of the callbacks in llhttp's settings has changed between versions. It is found out at import by parsing a known
request and a known response with each known order; when none gives the expected story, import fails and says which versions work.
"""
from libc.string cimport memcmp, memset

from gwcore._speedups.cllhttp cimport (
    HPE_INVALID_HEADER_TOKEN, HPE_INVALID_METHOD, HPE_PAUSED, LLHTTP_REQUEST, LLHTTP_RESPONSE, llhttp_cb, llhttp_span_cb, llhttp_t,
)

SUPPORTED = "httptools 0.6.1 to 0.9.x"

cdef extern from "<dlfcn.h>" nogil:
    enum: RTLD_NOW, RTLD_NOLOAD
    void *dlopen(const char *path, int flags)
    void *dlsym(void *lib, const char *name)

# slots of on_url, on_header_field, on_header_value, on_headers_complete: llhttp 9.3, 8 to 9.2, 6
ORDERS = ((2, 6, 7, 10), (1, 5, 6, 9), (1, 3, 4, 5))
cdef int[4] ORDER


cdef void settings_fill(HeadSettings *s, llhttp_span_cb on_url, llhttp_span_cb on_field, llhttp_span_cb on_value, llhttp_cb on_head) noexcept nogil:
    """Put our callbacks where this llhttp looks for them. on_head returns HPE_PAUSED, so parsing stops right behind the head."""
    memset(s, 0, sizeof(HeadSettings))
    s.slot[ORDER[0]] = <void *>on_url
    s.slot[ORDER[1]] = <void *>on_field
    s.slot[ORDER[2]] = <void *>on_value
    s.slot[ORDER[3]] = <void *>on_head


cdef void *need(void *lib, str name) except NULL:
    cdef bytes symbol = name.encode()
    cdef void *f = dlsym(lib, symbol)
    if f == NULL:
        raise ImportError(f"httptools lacks the function {name}; install {SUPPORTED}")
    return f


cdef void resolve() except *:
    import httptools.parser.parser as extension
    cdef bytes path = extension.__file__.encode()
    cdef void *lib = dlopen(path, RTLD_NOW | RTLD_NOLOAD)
    if lib == NULL:
        raise ImportError(f"cannot open the httptools extension {extension.__file__}; reinstall {SUPPORTED}")
    llhttp.init = <void (*)(llhttp_t *, int, const void *) noexcept nogil>need(lib, "llhttp_init")
    llhttp.execute = <int (*)(llhttp_t *, const char *, size_t) noexcept nogil>need(lib, "llhttp_execute")
    llhttp.error_pos = <const char *(*)(const llhttp_t *) noexcept nogil>need(lib, "llhttp_get_error_pos")
    llhttp.method = <int (*)(const llhttp_t *) noexcept nogil>need(lib, "llhttp_get_method")
    llhttp.status = <int (*)(const llhttp_t *) noexcept nogil>need(lib, "llhttp_get_status_code")


# ---- self-test: what the callbacks told, as text ------------------------------------------------------------------

cdef struct Story:
    const char *text         # the input; a pointer outside of it is not followed
    size_t size
    char said[256]
    int used


cdef int tell(llhttp_t *p, char kind, const char *at, size_t size) noexcept nogil:
    cdef Story *s = <Story *>p.data
    cdef size_t i
    if at < s.text or at > s.text + s.size or size > <size_t>(s.text + s.size - at) or s.used + size + 2 > sizeof(s.said):
        return -1
    s.said[s.used] = kind
    s.used += 1
    for i in range(size):
        s.said[s.used] = at[i]
        s.used += 1
    return 0

cdef int say_url(llhttp_t *p, const char *at, size_t size) noexcept nogil:
    return tell(p, c'u', at, size)

cdef int say_field(llhttp_t *p, const char *at, size_t size) noexcept nogil:
    return tell(p, c'f', at, size)

cdef int say_value(llhttp_t *p, const char *at, size_t size) noexcept nogil:
    return tell(p, c'v', at, size)

cdef int say_head(llhttp_t *p) noexcept nogil:
    return HPE_PAUSED


cdef bint tells(bytes text, int kind, bytes story, int method_or_status):
    cdef HeadSettings settings
    cdef llhttp_t p
    cdef Story s
    cdef int rc
    memset(&p, 0, sizeof(p))
    memset(&s, 0, sizeof(s))
    settings_fill(&settings, say_url, say_field, say_value, say_head)
    llhttp.init(&p, kind, &settings)
    p.data = &s
    s.text = text
    s.size = len(text)
    rc = llhttp.execute(&p, s.text, s.size)
    if rc != HPE_PAUSED or p.data != <void *>&s or s.used != len(story) or memcmp(s.said, <const char *>story, s.used) != 0:
        return False
    if llhttp.error_pos(&p) != s.text + len(text) - 4:       # four body bytes follow the head
        return False
    return (llhttp.method(&p) if kind == LLHTTP_REQUEST else llhttp.status(&p)) == method_or_status


cdef bint refuses(bytes text, int error):
    cdef HeadSettings settings
    cdef llhttp_t p
    cdef Story s
    memset(&p, 0, sizeof(p))
    memset(&s, 0, sizeof(s))
    settings_fill(&settings, say_url, say_field, say_value, say_head)
    llhttp.init(&p, LLHTTP_REQUEST, &settings)
    p.data = &s
    s.text = text
    s.size = len(text)
    return llhttp.execute(&p, s.text, s.size) == error


def self_test():
    """Find the callback order and prove it; ImportError when this llhttp does not behave as ours must."""
    cdef int i
    for order in ORDERS:
        for i in range(4):
            ORDER[i] = order[i]
        if (tells(b"POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody", LLHTTP_REQUEST, b"u/a?bfHostvxfContent-Lengthv4", 3)
                and tells(b"HTTP/1.1 503 No\r\nA: b\r\nContent-Length: 4\r\n\r\nbody", LLHTTP_RESPONSE, b"fAvbfContent-Lengthv4", 503)
                and refuses(b"NOPE / HTTP/1.1\r\n", HPE_INVALID_METHOD)
                and refuses(b"GET / HTTP/1.1\r\nA(: b\r\n", HPE_INVALID_HEADER_TOKEN)):
            return order
    import httptools
    raise ImportError(f"the llhttp in httptools {httptools.__version__} does not behave as expected; install {SUPPORTED}")


resolve()
self_test()
