"""Strict where the specification lets one be: version 1 to the letter, at most 107 bytes; version 2 with a length that fits its family, at
most 4 KiB with all extensions, which are skipped."""
from libc.stddef cimport size_t
from libc.string cimport memchr, memcmp, memcpy, memset

from gwcore._speedups.address cimport address_of, address_read, address_text
from gwcore._speedups.fields cimport decimal
from gwcore._speedups.outlist cimport out_copy, out_number
from gwcore._speedups.sys cimport getsockname, sockaddr, sockaddr_in6, sockaddr_storage, socklen_t
from gwcore._speedups.types cimport RC_AGAIN, RC_FAIL

cdef enum:
    V1_MAX = 107
    V2_HEAD = 16
    V2_MAX = 4096

cdef const char *SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

cdef long proxy_parse(const char *at, size_t size, ProxyPeer *out) noexcept nogil:
    """Bytes of the header at the beginning of at[:size]; RC_AGAIN: more are needed; RC_FAIL: it is none."""
    cdef size_t n = size if size < 12 else 12
    memset(out, 0, sizeof(ProxyPeer))
    if memcmp(at, SIGNATURE, n) == 0:
        return parse_v2(at, size, out)
    if memcmp(at, b"PROXY ", n if n < 6 else 6) == 0:
        return parse_v1(at, size, out)
    return RC_FAIL


cdef long parse_v2(const char *at, size_t size, ProxyPeer *out) noexcept nogil:
    cdef const uint8_t *b = <const uint8_t *>at
    cdef size_t length
    if size < V2_HEAD:
        return RC_AGAIN
    length = <size_t>b[14] << 8 | b[15]
    if b[12] >> 4 != 2 or (b[12] & 15) > 1 or length + V2_HEAD > V2_MAX:
        return RC_FAIL
    if size < V2_HEAD + length:
        return RC_AGAIN
    if b[12] & 15 == 0:                      # LOCAL: a health check of the proxy itself
        return V2_HEAD + length
    if b[13] == 0x11:
        if length < 12:
            return RC_FAIL
        out.family = 4
        out.address[10] = out.address[11] = 0xff
        memcpy(out.address + 12, at + 16, 4)
        out.port = <uint16_t>(b[24] << 8 | b[25])
    elif b[13] == 0x21:
        if length < 36:
            return RC_FAIL
        out.family = 6
        memcpy(out.address, at + 16, 16)
        out.port = <uint16_t>(b[48] << 8 | b[49])
    elif b[13] != 0 and b[13] != 0x12 and b[13] != 0x22 and b[13] != 0x31 and b[13] != 0x32:
        return RC_FAIL
    return V2_HEAD + length


cdef const char *word(const char **at, const char *end, size_t *n) noexcept nogil:
    """The next word, which a single space ends (or the line)."""
    cdef const char *begin = at[0]
    cdef const char *p = begin
    while p < end and p[0] != c' ':
        p += 1
    n[0] = p - begin
    at[0] = p + 1 if p < end else p
    return begin


cdef int port_of(const char *at, size_t n) noexcept nogil:
    cdef int value = <int>decimal(at, n, 5)
    return value if value < 65536 and not (n > 1 and at[0] == c'0') else -1


cdef long parse_v1(const char *at, size_t size, ProxyPeer *out) noexcept nogil:
    cdef const char *end = <const char *>memchr(at, c'\n', size if size < V1_MAX else V1_MAX)
    cdef const char *p
    cdef const char *item
    cdef size_t n
    cdef int family, port
    cdef uint8_t ignored[16]
    if end == NULL:
        return RC_AGAIN if size < V1_MAX else RC_FAIL
    if end - at < 7 or (end - 1)[0] != c'\r':
        return RC_FAIL
    end -= 1
    p = at + 6
    item = word(&p, end, &n)
    if n == 7 and memcmp(item, b"UNKNOWN", 7) == 0:
        return end + 2 - at
    if n != 4 or memcmp(item, b"TCP", 3) != 0 or (item[3] != c'4' and item[3] != c'6'):
        return RC_FAIL
    family = item[3] - 48
    item = word(&p, end, &n)
    if not address_read(item, n, <uint8_t>family, out.address):
        return RC_FAIL
    item = word(&p, end, &n)
    if not address_read(item, n, <uint8_t>family, ignored):
        return RC_FAIL
    item = word(&p, end, &n)
    port = port_of(item, n)
    item = word(&p, end, &n)
    if port < 0 or port_of(item, n) < 0 or p != end or (end - 1)[0] == c' ':
        return RC_FAIL
    out.family = <uint8_t>family
    out.port = <uint16_t>port
    return end + 2 - at


cdef void proxy_write(const Conn *client, OutList *o, int version) noexcept nogil:
    """The header that tells an upstream of this client; where the client has no address (unix), or is not waiting any more, that there is
    none."""
    cdef sockaddr_storage own
    cdef int family = 0 if client.sink else client.family
    cdef socklen_t size = sizeof(sockaddr_in6) + 100
    cdef uint8_t to[16]
    cdef uint8_t block[52]
    cdef uint16_t port
    cdef size_t n
    cdef char text[48]
    memset(&own, 0, sizeof(own))
    getsockname(client.fd, <sockaddr *>&own, &size)
    address_of(&own, to, &port)
    if version == 1:
        if family == 0:
            out_copy(o, b"PROXY UNKNOWN\r\n", 15)
            return
        # a header names both ends in one family; ours may be the other one behind a balancer of mixed families
        out_copy(o, b"PROXY TCP4 " if family == 4 else b"PROXY TCP6 ", 11)
        out_copy(o, text, address_text(client.peer, family, text))
        out_copy(o, b" ", 1)
        out_copy(o, text, address_text(to, family, text))
        out_copy(o, b" ", 1)
        out_number(o, client.port, 10)
        out_copy(o, b" ", 1)
        out_number(o, port, 10)
        out_copy(o, b"\r\n", 2)
        return
    memcpy(block, SIGNATURE, 12)
    block[12] = 0x21 if family else 0x20
    block[13] = 0x11 if family == 4 else 0x21 if family == 6 else 0
    block[14] = 0
    block[15] = 12 if family == 4 else 36 if family == 6 else 0
    if family == 4:
        memcpy(block + 16, client.peer + 12, 4)
        memcpy(block + 20, to + 12, 4)
    else:
        memcpy(block + 16, client.peer, 16)
        memcpy(block + 32, to, 16)
    n = 16 + block[15]
    if family:
        block[n - 4], block[n - 3] = client.port >> 8, client.port & 255
        block[n - 2], block[n - 1] = port >> 8, port & 255
    out_copy(o, <const char *>block, n)


def parse(bytes text):
    """For tests and fuzzing: (bytes used, family, address, port); None when more is needed. ValueError when it is no PROXY header."""
    cdef ProxyPeer peer
    cdef const char *at = text
    cdef long n = proxy_parse(at, len(text), &peer) if text else RC_AGAIN
    if n == RC_FAIL:
        raise ValueError("not a PROXY header")
    if n == RC_AGAIN:
        return None
    return n, peer.family, (<char *>peer.address)[:16], peer.port
