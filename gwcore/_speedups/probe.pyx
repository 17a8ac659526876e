"""For tests and fuzzing only: the codecs behind plain functions, bytes in, tuples out. The bytes lie in a block of exactly their size, so that an
address sanitizer sees every read beyond them."""
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from gwcore._speedups.chunked cimport CHUNK_TRAILER, Chunked, chunked_init, chunked_next
from gwcore._speedups.cllhttp cimport LLHTTP_REQUEST, LLHTTP_RESPONSE
from gwcore._speedups.head cimport Head, HeadLimits, head_feed, head_init
from gwcore._speedups.http1 cimport request_check, response_body, response_check
from gwcore._speedups.proxyproto cimport ProxyPeer, proxy_parse
from gwcore._speedups.types cimport RC_AGAIN, RC_DONE, RC_FAIL, RC_OK, size_t, uint32_t

cdef dict WORDS = {RC_OK: "whole", RC_AGAIN: "again", RC_FAIL: "fail", RC_DONE: "done"}


cdef char *exactly(bytes text) except NULL:
    cdef size_t size = len(text)
    cdef char *at = <char *>malloc(size if size else 1)
    if at == NULL:
        raise MemoryError
    memcpy(at, <const char *>text, size)
    return at


cdef tuple part(const Head *h, uint32_t at, uint32_t size):
    """A slice of the head as offsets; the assertion is the point of it."""
    assert at <= h.size and size <= h.size - at, f"bytes {at} to {at + size} of a head of {h.size}"
    return at, size


def head(bytes text, bint response, bint to_head=False):
    """(verdict, reason, bytes of the head, parts): 'whole', 'again', 'fail' from the parser, 'bad' from the checks behind it. parts of
    a whole head: method or status, the target's slices, (name, value, dropped) of each field, framing."""
    cdef Head h
    cdef HeadLimits limits
    cdef size_t size = len(text)
    cdef char *at = exactly(text)
    cdef uint32_t i
    cdef int rc
    limits.url_bytes, limits.head_bytes, limits.fields = 8192, 32768, 200 if response else 100
    try:
        head_init(&h, LLHTTP_RESPONSE if response else LLHTTP_REQUEST)
        rc = head_feed(&h, at, size, &limits)
        if rc != RC_OK:
            return WORDS[rc], h.reason if rc == RC_FAIL else 0, 0, ()
        rc = response_check(&h, to_head) if response else request_check(&h)
        if rc:
            return "bad", rc, h.size, ()
        assert h.size <= size
        lines = [(part(&h, h.f[i].name, h.f[i].name_len), part(&h, h.f[i].value, h.f[i].value_len), h.f[i].drop) for i in range(h.n)]
        first = h.status if response else h.method
        target = () if response else (part(&h, h.path, h.path_len), part(&h, h.query, h.query_len), part(&h, h.authority, h.authority_len))
        framing = (h.keep_alive, h.chunked, h.has_length, h.length, response_body(&h, to_head) if response else 0)
        return "whole", 0, h.size, (first, target, lines, framing)
    finally:
        free(at)


def chunks(list pieces, uint32_t ext_max=256, uint32_t trailer_max=4096):
    """(outcome, body, trailers, bytes used of all pieces together): 'again', 'done' or 'fail'."""
    cdef Chunked c
    cdef const char *data = NULL
    cdef size_t used = 0, n = 0, at, size, total = 0
    cdef char *start
    cdef int rc = RC_AGAIN
    body, trailers = b"", b""
    chunked_init(&c, ext_max, trailer_max)
    for piece in pieces:
        start, at, size = exactly(piece), 0, len(piece)
        try:
            while True:
                rc = chunked_next(&c, start + at, size - at, &used, &data, &n)
                assert used <= size - at
                at += used
                if rc != RC_OK and rc != CHUNK_TRAILER:
                    break
                assert data >= start and data + n <= start + size
                if rc == RC_OK:
                    body += data[:n]
                else:
                    trailers += data[:n]
        finally:
            free(start)
        total += at
        if rc != RC_AGAIN:
            break
    return WORDS[rc], body, trailers, total


def proxy(bytes text):
    """(verdict, bytes used, family, address, port) of a PROXY header: 'whole', 'again' or 'fail'."""
    cdef ProxyPeer peer
    cdef char *at = exactly(text)
    cdef long n
    try:
        n = proxy_parse(at, len(text), &peer) if text else RC_AGAIN
    finally:
        free(at)
    if n < 0:
        return WORDS[n], 0, 0, b"", 0
    return "whole", n, peer.family, (<char *>peer.address)[:16], peer.port
