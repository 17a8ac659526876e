# Level 15. A request that goes to an upstream: its exchange, and the first attempt.
from gwcore._speedups.conn cimport Conn, Worker
from gwcore._speedups.head cimport Head
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport size_t

cdef Exchange *exchange_new(Worker *w, Conn *c, const Head *h) noexcept nogil
cdef void begin_refuse(Worker *w, Exchange *x, const char *at, size_t size, int reason) noexcept nogil
cdef void begin_proxy(Worker *w, Exchange *x, const char *at, size_t size, const char *path, size_t path_len) noexcept nogil
