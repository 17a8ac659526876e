# Level 8. Who a request comes from, when trusted proxies stand between; and what is told of it to the next.
from gwcore._speedups.conn cimport Conn
from gwcore._speedups.head cimport Head
from gwcore._speedups.outlist cimport OutList
from gwcore._speedups.plan cimport PlanHead
from gwcore._speedups.types cimport size_t
from libc.stdint cimport uint8_t

cdef struct Origin:
    uint8_t address[16]      # IPv4 as ::ffff:a.b.c.d
    uint8_t family           # 4, 6 or 0 (unix)

cdef void origin_find(const PlanHead *p, const Conn *c, const Head *h, Origin *out) noexcept nogil
cdef bint address_parse(const char *at, size_t size, Origin *out) noexcept nogil
cdef void forwarded_lines(const Conn *c, Head *h, OutList *o) noexcept nogil
