# Level 8. The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): who is behind a connection, told in its first bytes.
from gwcore._speedups.conn cimport Conn
from gwcore._speedups.outlist cimport OutList
from gwcore._speedups.types cimport size_t
from libc.stdint cimport uint8_t, uint16_t

cdef struct ProxyPeer:
    uint8_t address[16]
    uint8_t family           # 0: the header names nobody (LOCAL, UNKNOWN): the connection's own peer holds
    uint16_t port

cdef long proxy_parse(const char *at, size_t size, ProxyPeer *out) noexcept nogil
cdef void proxy_write(const Conn *client, OutList *o, int version) noexcept nogil
