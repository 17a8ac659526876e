# Level 1. TLS sessions that all workers of a machine share: a table in shared memory whose readers never wait.
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t
from libc.stdint cimport uint8_t

cdef enum:
    SESSION_ID = 32          # bytes of a session's name
    SESSION_BYTES = 2048     # of the longest that is kept: one with a client's certificate
    SESSION_USUAL = 512      # of one without
    STORE_WAYS = 8

cdef struct StoreSlot:
    uint64_t lock            # odd: being written, by the worker in bits 1 to 15. Above: how often it was written
    uint64_t used_ms         # of the wall clock, like due_ms
    uint64_t due_ms          # its end; 0 = empty
    uint32_t size
    uint32_t epoch
    uint8_t id[32]

cdef struct Shelf:           # entries of one size: slots, and behind them their bytes
    uint64_t off             # from the Store
    uint32_t sets            # of STORE_WAYS
    uint32_t bytes           # of one entry

cdef struct Store:
    uint32_t epoch           # entries of another are no more
    uint32_t entries
    Shelf shelves[2]

cdef size_t store_bytes(uint32_t entries) noexcept nogil
cdef void store_init(Store *s, uint32_t entries) noexcept nogil
cdef int store_put(Store *s, uint32_t worker, const uint8_t *id, const uint8_t *at, uint32_t size, uint64_t due_ms, uint64_t now_ms) noexcept nogil
cdef uint32_t store_get(Store *s, const uint8_t *id, uint8_t *out, uint64_t now_ms, uint64_t *due_ms) noexcept nogil
cdef bint store_take(Store *s, uint32_t worker, const uint8_t *id, uint64_t now_ms) noexcept nogil
cdef void store_extend(Store *s, uint32_t worker, const uint8_t *id, uint64_t due_ms, uint64_t now_ms) noexcept nogil
cdef void store_retire(Store *s, uint32_t worker) noexcept nogil
cdef void store_forget(Store *s) noexcept nogil
cdef uint32_t store_count(const Store *s, uint64_t now_ms) noexcept nogil
