"""Regular expressions of routes: PCRE2, compiled by the JIT, bounded by a match limit so that no path can make a worker hang."""
from libc.stdint cimport uint32_t
from libc.string cimport memset

from gwcore._speedups.types cimport size_t

cdef enum:
    MATCH_LIMIT = 100000     # backtracking steps; a usual route needs tens

cdef extern from * nogil:
    """
    #define PCRE2_CODE_UNIT_WIDTH 8
    #include <pcre2.h>
    """
    enum: PCRE2_JIT_COMPLETE, PCRE2_NO_AUTO_CAPTURE, PCRE2_ERROR_NOMATCH
    void *pcre2_compile(const unsigned char *pattern, size_t size, uint32_t options, int *error, size_t *at, void *context)
    int pcre2_jit_compile(void *code, uint32_t options)
    void *pcre2_match_data_create(uint32_t n, void *context)
    void *pcre2_match_context_create(void *context)
    int pcre2_set_match_limit(void *context, uint32_t limit)
    int pcre2_match(const void *code, const unsigned char *text, size_t size, size_t start, uint32_t options, void *data, void *context)
    void pcre2_code_free(void *code)
    void pcre2_match_data_free(void *data)
    void pcre2_match_context_free(void *context)
    int pcre2_get_error_message(int error, unsigned char *out, size_t size)


cdef int regex_compile(Regex *r, const char *text, size_t size, char *error, size_t error_size) noexcept nogil:
    """0, or the offset + 1 of what is wrong, with a message in error. The caller frees with regex_free."""
    cdef int code = 0
    cdef size_t at = 0
    memset(r, 0, sizeof(Regex))
    r.code = pcre2_compile(<const unsigned char *>text, size, PCRE2_NO_AUTO_CAPTURE, &code, &at, NULL)
    if r.code == NULL:
        pcre2_get_error_message(code, <unsigned char *>error, error_size)
        return <int>at + 1
    pcre2_jit_compile(r.code, PCRE2_JIT_COMPLETE)        # without JIT support the interpreter does the same, slower
    r.match = pcre2_match_data_create(1, NULL)
    r.context = pcre2_match_context_create(NULL)
    pcre2_set_match_limit(r.context, MATCH_LIMIT)
    return 0


cdef int regex_search(const Regex *r, const char *text, size_t size) noexcept nogil:
    """1 = found, 0 = not found, -1 = the match limit struck (counts as not found)."""
    cdef int rc = pcre2_match(r.code, <const unsigned char *>text, size, 0, 0, r.match, r.context)
    return 1 if rc >= 0 else 0 if rc == PCRE2_ERROR_NOMATCH else -1


cdef void regex_free(Regex *r) noexcept nogil:
    if r.code != NULL:
        pcre2_code_free(r.code)
        pcre2_match_data_free(r.match)
        pcre2_match_context_free(r.context)
    memset(r, 0, sizeof(Regex))


def check(pattern: str) -> str | None:
    """None when the pattern compiles, else what is wrong with it and where."""
    cdef Regex r
    cdef char error[256]
    cdef bytes text = pattern.encode()
    cdef int at = regex_compile(&r, text, len(text), error, sizeof(error))
    if at:
        return f"{error.decode()} at character {at}"
    regex_free(&r)
    return None
