"""Path normalisation (RFC 3986 6.2.2): dot segments removed, escapes of unreserved bytes decoded, %2F and %5C left as data.

Refused: broken escapes, %00, climbing above the root, and dot segments hidden behind an encoded separator (`..%2f`).
"""
from gwcore._speedups.fields cimport B_HEX, B_UNRESERVED, BYTE_CLASS, LOWER
from gwcore._speedups.types cimport size_t
from libc.stdint cimport uint8_t


cdef inline int hex_value(uint8_t c) noexcept nogil:
    return c - 48 if c <= 57 else (c | 32) - 87


cdef int path_kind(const char *p, size_t size) noexcept nogil:
    """PathKind of an absolute path. One pass, no writes."""
    cdef size_t i
    cdef uint8_t c
    if size == 0 or p[0] != c'/':
        return PATH_BAD
    for i in range(size):
        c = <uint8_t>p[i]
        if c == c'%' or (c == c'.' and i and p[i - 1] == c'/'):
            return PATH_CHANGES         # perhaps: path_normalise decides
    return PATH_PLAIN


cdef bint hidden_dots(const char *seg, size_t size) noexcept nogil:
    """Does the segment hold '..' between separators, encoded ones counted (`..%2f`, `a%5c..`)?"""
    cdef size_t i = 0, dots = 0
    cdef bint only = True               # nothing but dots since the last separator
    cdef bint seen = False              # an encoded separator was there
    while i < size:
        if seg[i] == c'%' and i + 2 < size and ((seg[i + 1] == c'2' and LOWER[<uint8_t>seg[i + 2]] == c'f')
                                                or (seg[i + 1] == c'5' and LOWER[<uint8_t>seg[i + 2]] == c'c')):
            if only and dots == 2:
                return True
            seen = True
            only = True
            dots = 0
            i += 3
            continue
        if seg[i] == c'.':
            dots += 1
        else:
            only = False
        i += 1
    return seen and only and dots == 2


cdef long path_normalise(const char *p, size_t size, char *out) noexcept nogil:
    """Write the normal form of p to out (room for size bytes); its length, or -1 when the path is refused."""
    cdef size_t i = 0, n = 0, seg
    cdef int value
    if size == 0 or p[0] != c'/':
        return -1
    while i < size:                     # p[i] is a slash
        out[n] = c'/'
        n += 1
        i += 1
        seg = n
        while i < size and p[i] != c'/':
            if p[i] != c'%':
                out[n] = p[i]
                n += 1
                i += 1
                continue
            if i + 2 >= size or not BYTE_CLASS[<uint8_t>p[i + 1]] & B_HEX or not BYTE_CLASS[<uint8_t>p[i + 2]] & B_HEX:
                return -1
            value = hex_value(<uint8_t>p[i + 1]) * 16 + hex_value(<uint8_t>p[i + 2])
            if value == 0:
                return -1
            if BYTE_CLASS[value] & B_UNRESERVED:
                out[n] = <char>value
                n += 1
            else:
                out[n] = c'%'
                out[n + 1] = p[i + 1]
                out[n + 2] = p[i + 2]
                n += 3
            i += 3
        if n - seg == 1 and out[seg] == c'.':
            n = seg if i >= size else seg - 1
        elif n - seg == 2 and out[seg] == c'.' and out[seg + 1] == c'.':
            if seg == 1:
                return -1               # above the root
            n = seg - 2                 # before the slash that ends the parent
            while out[n] != c'/':
                n -= 1
            if i >= size:
                n += 1
        elif hidden_dots(out + seg, n - seg):
            return -1
    if n == 0:
        out[0] = c'/'
        n = 1
    return <long>n


def normalise(bytes path):
    """The normal form of a path (bytes), or None when it is refused. For tests and `explain`."""
    cdef bytearray out = bytearray(len(path) + 1)
    cdef long n
    if path_kind(path, len(path)) == PATH_PLAIN:
        return path
    n = path_normalise(path, len(path), out)
    return None if n < 0 else bytes(out[:n])
