# Level 2. Letters about copies, to who asks Redis.
from gwcore._speedups.buffer cimport Buf, BufPool
from gwcore._speedups.types cimport size_t, uint32_t, uint64_t

cdef enum CopyLetterKind:    # gwcore.copies_redis has the same
    COPY_ASK                 # a request waits for a copy; by whom: a handle of its client connection
    COPY_KEEP                # a copy was stored
    COPY_GONE                # a copy was dropped

cdef struct CopyLetter:
    uint64_t handle
    uint64_t epoch           # of copy_epoch, when the request was looked at
    Buf *key
    uint32_t kind

cdef struct CopyMail:
    CopyLetter letters[256]
    uint32_t written
    uint32_t taken
    bint open                # somebody writes to Redis
    bint asks                # and Redis may be asked: it answered of late

cdef bint copymail_put(CopyMail *m, BufPool *p, uint32_t kind, uint64_t handle, uint64_t epoch, const char *key, size_t size) noexcept nogil
cdef bint copymail_take(CopyMail *m, CopyLetter *out) noexcept nogil

cdef inline bint copymail_waits(const CopyMail *m) noexcept nogil:
    return m.written != m.taken
