"""The journal: one file a worker, to which requests are appended before they are answered statically. gwcore.compensation reads it.

What write(2) took outlives the process; a machine that loses power may lose it, unless compensation.sync says otherwise."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stddef cimport size_t
from libc.string cimport memcpy

from gwcore._speedups.buffer cimport buf_bytes
from gwcore._speedups.deadline cimport queue_part
from gwcore._speedups.outlist cimport OutList, out_add, out_reset
from gwcore._speedups.plan cimport PlanHead, plan_text, plan_upstream
from gwcore._speedups.shm cimport gw_atomic_add, gw_atomic_load
from gwcore._speedups.sys cimport fdatasync, ftruncate, off_t, writev

cdef enum:
    PLAIN_BYTES = 12         # magic, size and sum are not summed themselves

cdef struct Record:          # little endian; behind it id, route, upstream and the request
    char magic[4]
    uint32_t size            # bytes behind `sum`
    uint32_t sum             # CRC-32 of them
    uint32_t ttl_ms
    uint64_t wall_ms
    uint16_t id_len
    uint16_t route_len
    uint16_t upstream_len
    uint8_t method
    uint8_t tier

cdef uint32_t[256] CRC


cdef void crc_table() noexcept nogil:
    cdef uint32_t i, n, _bit
    for i in range(256):
        n = i
        for _bit in range(8):
            n = (n >> 1) ^ (<uint32_t>0xEDB88320 if n & 1 else <uint32_t>0)
        CRC[i] = n


crc_table()


cdef uint32_t crc_of(const OutList *o) noexcept nogil:
    """CRC-32 (that of zlib) of what o holds behind the plain bytes, all of which stand in its first slice."""
    cdef uint32_t crc = 0xFFFFFFFF
    cdef const uint8_t *at
    cdef size_t k
    cdef int i
    for i in range(o.n):
        at = <const uint8_t *>o.iov[i].iov_base
        for k in range(<size_t>PLAIN_BYTES if i == 0 else 0, o.iov[i].iov_len):
            crc = CRC[(crc ^ at[k]) & 255] ^ (crc >> 8)
    return crc ^ <uint32_t>0xFFFFFFFF


cdef bint journal_add(Worker *w, Exchange *x) noexcept nogil:
    """Append a request, all of which is in x.replay. False: it was not, which is counted. Uses w.out."""
    cdef const PlanHead *p = x.plan.head
    cdef OutList *o = &w.out
    cdef Record r
    cdef int fd = w.journal - 1
    cdef uint32_t *owed = &w.segment.owed[x.upstream.slot]
    cdef bint written
    if gw_atomic_load(owed) >= x.ladder.queue:
        w.lane.worker.compensations_overflow += 1
        return False
    memcpy(r.magic, b"gwj1", 4)
    r.ttl_ms = x.ladder.compensate_ttl_ms
    r.wall_ms = w.wall_ms
    r.id_len = <uint16_t>x.note_id_len
    r.route_len = <uint16_t>x.route.name.len
    r.upstream_len = <uint16_t>plan_upstream(p, x.hash_target).name.len
    r.method, r.tier = x.method, x.tier
    out_reset(o)
    out_add(o, <const char *>&r, sizeof(Record))
    out_add(o, buf_bytes(x.note) + x.note_path_len, r.id_len)
    out_add(o, plan_text(p, x.route.name), r.route_len)
    out_add(o, plan_text(p, plan_upstream(p, x.hash_target).name), r.upstream_len)
    queue_part(&x.replay, 0, x.head_at, o)
    queue_part(&x.replay, x.head_at + x.head_skip, x.replay.bytes, o)        # without the lines of one attempt
    written = fd >= 0 and not o.failed and o.spill.bytes == 0
    if written:
        r.size = <uint32_t>(o.bytes - PLAIN_BYTES)
        r.sum = crc_of(o)
        written = writev(fd, o.iov, o.n) == <ssize_t>o.bytes and (not w.journal_sync or fdatasync(fd) == 0)
        if written:
            w.journal_bytes += o.bytes
        else:
            ftruncate(fd, <off_t>w.journal_bytes)        # no half of a record between others
    out_reset(o)
    if not written:
        w.lane.worker.compensations_lost += 1
        return False
    gw_atomic_add(owed, 1)
    w.lane.worker.compensations += 1
    return True
