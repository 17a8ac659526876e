"""X-Forwarded-* and Forwarded (RFC 7239). What a stranger says is replaced; what a trusted proxy says is believed and appended to. The client
is the right-most address that is not itself a trusted proxy; an element that is no address ends the search."""
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from gwcore._speedups.address cimport address_read, address_text
from gwcore._speedups.fields cimport B_DIGIT, BYTE_CLASS, F_FORWARDED, F_X_FORWARDED_FOR, F_X_FORWARDED_HOST, F_X_FORWARDED_PROTO, same_word
from gwcore._speedups.outlist cimport out_copy, out_some
from gwcore._speedups.plan cimport plan_trusts

cdef bint address_parse(const char *at, size_t size, Origin *out) noexcept nogil:
    """`1.2.3.4`, `1.2.3.4:80`, `2001:db8::1`, `[2001:db8::1]:80`, each also in quotes. False when it is no address."""
    cdef size_t i, colons = 0
    if size >= 2 and at[0] == c'"' and at[size - 1] == c'"':
        at += 1
        size -= 2
    if size == 0:
        return False
    if at[0] == c'[':
        i = 1
        while i < size and at[i] != c']':
            i += 1
        if i == size or not port_only(at + i + 1, size - i - 1):
            return False
        at, size = at + 1, i - 1
        colons = 2
    else:
        for i in range(size):
            colons += at[i] == c':'
        if colons == 1:
            i = 0
            while at[i] != c':':
                i += 1
            if not port_only(at + i, size - i):
                return False
            size = i
    out.family = 6 if colons >= 2 else 4
    return address_read(at, size, out.family, out.address)


cdef bint port_only(const char *at, size_t size) noexcept nogil:
    """Nothing, or a colon and digits."""
    cdef size_t i
    if size == 0:
        return True
    if at[0] != c':' or size > 6 or size < 2:
        return False
    for i in range(1, size):
        if not BYTE_CLASS[<uint8_t>at[i]] & B_DIGIT:
            return False
    return True


cdef bint element(const char *at, size_t size, bint forwarded, Origin *out) noexcept nogil:
    """The address in one list element: the element itself, or the for= parameter of one of Forwarded."""
    cdef size_t i = 0, end
    while size and (at[size - 1] == c' ' or at[size - 1] == c'\t'):
        size -= 1
    while i < size and (at[i] == c' ' or at[i] == c'\t'):
        i += 1
    if not forwarded:
        return address_parse(at + i, size - i, out)
    while i < size:
        end = i
        while end < size and at[end] != c';':
            end += 1
        if end - i > 4 and same_word(at + i, 4, b"for=", 4):
            return address_parse(at + i + 4, end - i - 4, out)
        i = end + 1
        while i < size and at[i] == c' ':
            i += 1
    return False


cdef bint search(const PlanHead *p, const Head *h, int field, Origin *out) noexcept nogil:
    """Walk the elements of all lines of the field from the right. True: the search is over, out is the client."""
    cdef Origin hop
    cdef size_t end, begin
    cdef const char *value
    cdef uint32_t i = h.n
    while i:
        i -= 1
        if h.f[i].id != field:
            continue
        value, end = h.base + h.f[i].value, h.f[i].value_len
        while True:
            begin = end
            while begin and value[begin - 1] != c',':
                begin -= 1
            if not element(value + begin, end - begin, field == F_FORWARDED, &hop):
                return True
            out[0] = hop
            if not plan_trusts(p, hop.address):
                return True
            if begin == 0:
                break
            end = begin - 1
    return False


cdef void origin_find(const PlanHead *p, const Conn *c, const Head *h, Origin *out) noexcept nogil:
    """The client of this request: for log, limits and balance."""
    memcpy(out.address, c.peer, 16)
    out.family = c.family
    if c.trusted:
        if h.xff_field >= 0:
            search(p, h, F_X_FORWARDED_FOR, out)
        else:
            search(p, h, F_FORWARDED, out)


cdef void forwarded_lines(const Conn *c, Head *h, OutList *o) noexcept nogil:
    """X-Forwarded-For, -Proto, -Host, and Forwarded where a trusted proxy began one. The lines of h that they replace are dropped already,
    but for X-Forwarded-Proto and -Host of a trusted proxy, which stay as they are."""
    cdef char peer[48]
    cdef size_t n = address_text(c.peer, c.family, peer)
    cdef uint32_t i
    cdef bint proto = False, host = False, forwarded = False
    out_copy(o, b"X-Forwarded-For: ", 17)
    if c.trusted:
        for i in range(h.n):
            if h.f[i].id == F_X_FORWARDED_FOR and h.f[i].value_len:
                out_some(o, h.base + h.f[i].value, h.f[i].value_len)
                out_copy(o, b", ", 2)
            elif h.f[i].id == F_X_FORWARDED_PROTO:
                proto = True
            elif h.f[i].id == F_X_FORWARDED_HOST:
                host = True
            elif h.f[i].id == F_FORWARDED:
                forwarded = True
    out_copy(o, peer, n)
    out_copy(o, b"\r\n", 2)
    if not proto:
        if c.tls.ssl != NULL or c.sealed:
            out_copy(o, b"X-Forwarded-Proto: https\r\n", 26)
        else:
            out_copy(o, b"X-Forwarded-Proto: http\r\n", 25)
    if not host and h.authority_len:
        out_copy(o, b"X-Forwarded-Host: ", 18)
        out_some(o, h.base + h.authority, h.authority_len)
        out_copy(o, b"\r\n", 2)
    if forwarded:
        out_copy(o, b"Forwarded: ", 11)
        for i in range(h.n):
            if h.f[i].id == F_FORWARDED and h.f[i].value_len:
                out_some(o, h.base + h.f[i].value, h.f[i].value_len)
                out_copy(o, b", ", 2)
        if c.family == 6:
            out_copy(o, b'for="[', 6)
            out_copy(o, peer, n)
            out_copy(o, b']"', 2)
        else:
            out_copy(o, b"for=", 4)
            out_copy(o, peer, n)
        if c.tls.ssl != NULL or c.sealed:
            out_copy(o, b";proto=https\r\n", 14)
        else:
            out_copy(o, b";proto=http\r\n", 13)


def origin_of(bytes text):
    """For tests: (family, 16 bytes) of an address as it stands in X-Forwarded-For; None when it is none."""
    cdef Origin out
    cdef const char *at = text
    if not address_parse(at, len(text), &out):
        return None
    return out.family, (<char *>out.address)[:16]
