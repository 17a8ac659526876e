"""Letters are written in the data plane and taken when its turn is over. What does not fit is not sent: a request then goes on without, and Redis
lacks a copy."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from gwcore._speedups.buffer cimport buf_room, buf_take

cdef enum:
    LETTERS = 256


cdef bint copymail_put(CopyMail *m, BufPool *p, uint32_t kind, uint64_t handle, uint64_t epoch, const char *key, size_t size) noexcept nogil:
    """False: nobody reads it, it is full, or there is no memory."""
    cdef CopyLetter *l = &m.letters[m.written % LETTERS]
    if not (m.asks if kind == COPY_ASK else m.open) or m.written - m.taken == LETTERS:
        return False
    l.key = buf_take(p, size)
    if l.key == NULL:
        return False
    memcpy(buf_room(l.key), key, size)
    l.key.len = <uint32_t>size
    l.kind, l.handle, l.epoch = kind, handle, epoch
    m.written += 1
    return True


cdef bint copymail_take(CopyMail *m, CopyLetter *out) noexcept nogil:
    """The next letter, whose key is the caller's to give back. False: there is none."""
    if m.written == m.taken:
        return False
    out[0] = m.letters[m.taken % LETTERS]
    m.taken += 1
    return True
