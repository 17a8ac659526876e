# Level 12. How exchanges and client connections end, in whatever phase.
from gwcore._speedups.conn cimport Conn, Worker
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport uint32_t

cdef void exchange_move(Worker *w, Exchange *x, int to) noexcept nogil
cdef void exchange_end(Worker *w, Exchange *x) noexcept nogil
cdef void exchange_complete(Worker *w, Exchange *x) noexcept nogil
cdef void exchange_fail(Worker *w, Exchange *x, int reason, bint close) noexcept nogil
cdef void answered(Worker *w, Exchange *x, int rc) noexcept nogil
cdef void discard(Worker *w, Exchange *x) noexcept nogil
cdef void head_refuse(Worker *w, Conn *c, int reason) noexcept nogil
cdef void client_end(Worker *w, Conn *c, bint abort) noexcept nogil
cdef void client_left(Worker *w, Exchange *x) noexcept nogil
cdef bint client_admit(Worker *w, Conn *c) noexcept nogil
cdef void proxy_refuse(Worker *w, Conn *c) noexcept nogil
cdef void tls_refuse(Worker *w, Conn *c, int reason) noexcept nogil
cdef void client_settle(Worker *w, Conn *c) noexcept nogil
cdef void client_linger(Worker *w, Conn *c) noexcept nogil
cdef void linger_read(Worker *w, Conn *c) noexcept nogil
cdef uint32_t client_write_ms(const Exchange *x) noexcept nogil
cdef void twin_part(Worker *w, Exchange *x) noexcept nogil
