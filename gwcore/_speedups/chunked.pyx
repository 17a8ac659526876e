"""Chunked bodies (RFC 9112 7.1). Sizes are 1 to 16 hex digits up to 2^63-1, lines end in CR LF, extensions are skipped within a limit,
trailers are checked within a limit and handed out for those who want them."""
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from gwcore._speedups.fields cimport B_HEX, B_TOKEN, B_VALUE, BYTE_CLASS
from gwcore._speedups.types cimport RC_AGAIN, RC_DONE, RC_FAIL, RC_OK

cdef enum State:
    SIZE, EXTENSION, SIZE_LF, DATA, DATA_CR, DATA_LF, TRAILER, TRAILER_NAME, TRAILER_VALUE, TRAILER_LF, END_LF, END

cdef enum:
    EXTENSIONS_MAX = 16384   # of one body, all lines together


cdef void chunked_init(Chunked *c, uint32_t ext_max, uint32_t trailer_max) noexcept nogil:
    c.left = 0
    c.line = c.extensions = 0
    c.digits = 0
    c.state = SIZE
    c.ext_max = ext_max
    c.trailer_max = trailer_max


cdef int chunked_next(Chunked *c, const char *at, size_t size, size_t *used, const char **data, size_t *n) noexcept nogil:
    """Read on at `at`; used[0] says how many bytes were taken.

    RC_OK: data[0], n[0] is a slice of the body, call again. CHUNK_TRAILER: the same of the trailer section, whose lines end in CR LF.
    RC_AGAIN: all bytes are used, more are needed.
    RC_DONE: the body and its trailers ended. RC_FAIL: not chunked coding, or over a limit.
    """
    cdef size_t i = 0, trailer = 0
    cdef uint8_t b
    n[0] = 0
    while i < size:
        b = <uint8_t>at[i]
        if c.state == DATA:
            n[0] = size - i if size - i < c.left else <size_t>c.left
            data[0] = at + i
            c.left -= n[0]
            if c.left == 0:
                c.state = DATA_CR
            used[0] = i + n[0]
            return RC_OK
        i += 1
        if c.state == SIZE:
            c.line += 1
            if c.line > c.ext_max + 18:
                break
            if BYTE_CLASS[b] & B_HEX:
                c.digits += 1
                if c.digits > 16 or c.left >> 59:
                    break
                c.left = c.left * 16 + <uint64_t>(b - 48 if b <= 57 else (b | 32) - 87)
            elif c.digits and b == c'\r':
                c.state = SIZE_LF
            elif c.digits and b == c';':
                c.state = EXTENSION
            else:
                break
        elif c.state == EXTENSION:
            c.line += 1
            c.extensions += 1
            if c.line > c.ext_max or c.extensions > EXTENSIONS_MAX:
                break
            if b == c'\r':
                c.state = SIZE_LF
            elif not BYTE_CLASS[b] & B_VALUE:
                break
        elif c.state == SIZE_LF:
            if b != c'\n':
                break
            c.state = DATA if c.left else TRAILER
            c.line = c.digits = 0
            trailer = i
        elif c.state == DATA_CR:
            if b != c'\r':
                break
            c.state = DATA_LF
        elif c.state == DATA_LF:
            if b != c'\n':
                break
            c.state = SIZE
        elif c.state == END_LF:
            if b != c'\n':
                break
            c.state = END
            used[0] = i
            return RC_DONE
        else:
            c.line += 1
            if c.line > c.trailer_max:
                break
            if c.state == TRAILER:
                if b == c'\r':
                    c.state = END_LF
                    if i - 1 > trailer:
                        return trailer_slice(at, trailer, i - 1, i, used, data, n)
                elif BYTE_CLASS[b] & B_TOKEN:
                    c.state = TRAILER_NAME
                else:
                    break
            elif c.state == TRAILER_NAME:
                if b == c':':
                    c.state = TRAILER_VALUE
                elif not BYTE_CLASS[b] & B_TOKEN:
                    break
            elif c.state == TRAILER_VALUE:
                if b == c'\r':
                    c.state = TRAILER_LF
                elif not BYTE_CLASS[b] & B_VALUE:
                    break
            elif c.state == TRAILER_LF:
                if b != c'\n':
                    break
                c.state = TRAILER
            else:
                break
    else:
        if c.state >= TRAILER and c.state < END_LF and size > trailer:
            return trailer_slice(at, trailer, size, size, used, data, n)
        used[0] = size
        return RC_AGAIN
    used[0] = i
    return RC_FAIL


cdef uint64_t chunk_due(const Chunked *c) noexcept nogil:
    """Bytes that the present chunk is still to bring; 0 until its size line is whole, or how it is split would decide what is wrong with it."""
    return c.left if c.state == DATA else 0


cdef inline int trailer_slice(const char *at, size_t begin, size_t end, size_t taken, size_t *used, const char **data, size_t *n) noexcept nogil:
    data[0], n[0], used[0] = at + begin, end - begin, taken
    return CHUNK_TRAILER


cdef class ChunkedProbe:
    """The decoder for tests: feed(bytes) -> (outcome, body bytes, bytes used) with outcome 'again', 'done' or 'fail'. `trailers` has
    the bytes of the trailer section so far."""
    cdef Chunked c
    cdef readonly bytes trailers

    def __cinit__(self, uint32_t ext_max=256, uint32_t trailer_max=4096):
        chunked_init(&self.c, ext_max, trailer_max)
        self.trailers = b""

    def feed(self, bytes text):
        cdef const char *data = NULL
        cdef size_t used = 0, n = 0, at = 0, size = len(text)
        cdef const char *start = text
        cdef int rc
        out = b""
        while True:
            rc = chunked_next(&self.c, start + at, size - at, &used, &data, &n)
            at += used
            if rc == RC_OK:
                out += data[:n]
                continue
            if rc == CHUNK_TRAILER:
                self.trailers += data[:n]
                continue
            return ({RC_AGAIN: "again", RC_DONE: "done", RC_FAIL: "fail"}[rc], out, at)
