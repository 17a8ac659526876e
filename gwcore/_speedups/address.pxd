# Level 1. IP addresses: 16 bytes (IPv4 as ::ffff:a.b.c.d) and a family, 4, 6 or 0 for none (unix sockets); from and to text and sockaddr.
from gwcore._speedups.sys cimport sockaddr_storage
from gwcore._speedups.types cimport size_t
from libc.stdint cimport uint8_t, uint16_t

cdef size_t address_text(const uint8_t *address, uint8_t family, char *out) noexcept nogil
cdef bint address_read(const char *at, size_t size, uint8_t family, uint8_t *out) noexcept nogil
cdef uint8_t address_of(const sockaddr_storage *s, uint8_t *out, uint16_t *port) noexcept nogil
