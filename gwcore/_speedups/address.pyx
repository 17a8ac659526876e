"""Addresses of peers, in the one form that comparisons, hashes and logs use."""
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen

from gwcore._speedups.sys cimport AF_INET, AF_INET6, inet_ntop, inet_pton, ntohs, sockaddr_in, sockaddr_in6


cdef size_t put_number(char *out, uint32_t n) noexcept nogil:
    cdef size_t i = 0
    if n >= 100:
        out[i] = 48 + n // 100
        i += 1
    if n >= 10:
        out[i] = 48 + n // 10 % 10
        i += 1
    out[i] = 48 + n % 10
    return i + 1


cdef size_t address_text(const uint8_t *address, uint8_t family, char *out) noexcept nogil:
    """An address, without port, written to out (room for 48 bytes); its length. "unix" for a local socket."""
    cdef size_t n = 0
    cdef int i
    if family == 4:
        for i in range(12, 16):
            n += put_number(out + n, address[i])
            if i < 15:
                out[n] = c'.'
                n += 1
        return n
    if family == 6 and inet_ntop(AF_INET6, address, out, 48) != NULL:
        return strlen(out)
    memcpy(out, b"unix", 4)
    return 4


cdef bint address_read(const char *at, size_t size, uint8_t family, uint8_t *out) noexcept nogil:
    """An address of that family (4 or 6) in text, to the 16 bytes at out. False when it is none."""
    cdef char text[48]
    if size == 0 or size >= sizeof(text):
        return False
    memcpy(text, at, size)
    text[size] = 0
    memset(out, 0, 16)
    if family == 6:
        return inet_pton(AF_INET6, text, out) == 1
    out[10] = out[11] = 0xff
    return inet_pton(AF_INET, text, out + 12) == 1


cdef uint8_t address_of(const sockaddr_storage *s, uint8_t *out, uint16_t *port) noexcept nogil:
    """The address and port of a socket name, and its family; 0 (and zeros) when it has none."""
    cdef const sockaddr_in *v4 = <const sockaddr_in *>s
    cdef const sockaddr_in6 *v6 = <const sockaddr_in6 *>s
    memset(out, 0, 16)
    port[0] = 0
    if s.ss_family == AF_INET:
        out[10] = out[11] = 0xff
        memcpy(out + 12, &v4.sin_addr, 4)
        port[0] = ntohs(v4.sin_port)
        return 4
    if s.ss_family != AF_INET6:
        return 0
    memcpy(out, &v6.sin6_addr, 16)
    port[0] = ntohs(v6.sin6_port)
    # a mapped IPv4 address on a dual-stack socket
    return 4 if out[10] == 0xff and out[11] == 0xff and (<uint64_t *>out)[0] == 0 and out[8] == 0 and out[9] == 0 else 6
