"""An answer that may be kept is copied to buffers of the worker while it passes. What becomes too large, or finds no memory, is let go, and
the client notices nothing of it."""
from libc.string cimport memcpy, memset

from gwcore._speedups.buffer cimport buf_give, buf_take, queue_add, queue_clear
from gwcore._speedups.copies cimport copy_epoch, copy_key
from gwcore._speedups.leases cimport lease_give
from gwcore._speedups.types cimport RC_OK


cdef Keep *keep_open(Worker *w, Exchange *x, uint32_t key_len, uint32_t url_at, const char *asked, uint32_t asked_len) noexcept nogil:
    """Remember the key, which is in w.key, and the request's fields, for when the answer comes. NULL: no memory, and nothing will be kept."""
    cdef Keep *k
    cdef CopyKey key
    x.copying = buf_take(&w.bufs, sizeof(Keep) + key_len + asked_len)
    k = keep_of(x)
    if k == NULL:
        return NULL
    memset(k, 0, sizeof(Keep))
    k.key_len, k.url_at, k.asked_len = key_len, url_at, asked_len
    memcpy(k + 1, w.key, key_len)
    memcpy(<char *>(k + 1) + key_len, asked, asked_len)
    keep_key(w, k, &key)
    k.epoch = copy_epoch(w.copies, &key)
    return k


cdef void keep_key(Worker *w, const Keep *k, CopyKey *out) noexcept nogil:
    copy_key(w.copies, out, <const char *>(k + 1), k.key_len)


cdef void collect(Worker *w, Exchange *x, const char *at, size_t size) noexcept nogil:
    """A piece of the body."""
    cdef Keep *k = keep_of(x)
    if k.body.bytes + size > x.route.cache_object or queue_add(&w.bufs, &k.body, at, size) != RC_OK:
        collect_stop(w, x)


cdef void collect_stop(Worker *w, Exchange *x) noexcept nogil:
    """It is not kept."""
    cdef Keep *k = keep_of(x)
    x.collecting = 0
    queue_clear(&w.bufs, &k.head)
    queue_clear(&w.bufs, &k.tags)
    queue_clear(&w.bufs, &k.body)


cdef void keep_close(Worker *w, Exchange *x) noexcept nogil:
    """Give everything back. May be called twice."""
    cdef Keep *k = keep_of(x)
    cdef CopyKey key
    if k == NULL:
        return
    collect_stop(w, x)
    if k.lease and w.copies != NULL:
        keep_key(w, k, &key)
        lease_give(w.copies, &key)
    buf_give(&w.bufs, x.copying)
    x.copying = NULL
