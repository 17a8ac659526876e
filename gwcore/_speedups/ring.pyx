"""The log ring. A record goes in whole or not at all; the thread writes whole records, to a pipe at most 4096 bytes at once, so that
lines of several workers never mix. The thread starts after the fork, blocks all signals and never touches Python."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from gwcore._speedups.sys cimport close, dup, read, write
from gwcore._speedups.types cimport size_t

cdef extern from * nogil:
    """
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <sys/eventfd.h>
    #include <sys/stat.h>
    #define ring_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define ring_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define ring_swap(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
    static int ring_poll(int fd, int ms) { struct pollfd p = {fd, POLLIN, 0}; return poll(&p, 1, ms); }
    static int ring_is_file(int fd) { struct stat s; return fstat(fd, &s) == 0 && S_ISREG(s.st_mode); }
    static int ring_eventfd(void) { return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }
    static int ring_start(unsigned long *out, void *(*run)(void *), void *arg) {
        sigset_t all, old; pthread_t t; int rc;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        rc = pthread_create(&t, 0, run, arg);
        pthread_sigmask(SIG_SETMASK, &old, 0);
        *out = (unsigned long)t;
        return rc;
    }
    static void ring_join(unsigned long t) { pthread_join((pthread_t)t, 0); }
    """
    size_t ring_load(const size_t *p)
    void ring_store(size_t *p, size_t v)
    int ring_load_int "ring_load"(const int *p)
    uint32_t ring_load_u32 "ring_load"(const uint32_t *p)
    void ring_store_u32 "ring_store"(uint32_t *p, uint32_t v)
    int ring_swap(int *p, int v)
    int ring_poll(int fd, int ms)
    int ring_is_file(int fd)
    int ring_eventfd()
    int ring_start(unsigned long *out, void *(*run)(void *) noexcept nogil, void *arg)
    void ring_join(unsigned long t)

cdef enum:
    RING_BYTES = 1 << 20
    PIPE_ATOMIC = 4096       # POSIX PIPE_BUF on Linux


cdef size_t whole_records(const char *at, size_t size, size_t most) noexcept nogil:
    """How many of the bytes to write at once: whole lines, `most` bytes at the most, but at least one line."""
    cdef size_t i, end = 0
    for i in range(size):
        if at[i] == c'\n':
            if i + 1 > most and end:
                return end
            end = i + 1
            if end >= most:
                return end
    return end if end else size


cdef void ring_flush(Ring *r, char *flat) noexcept nogil:
    cdef size_t head = ring_load(&r.head), tail = r.tail, n, first, at
    cdef ssize_t done
    cdef int fd = ring_load_int(&r.fd)
    cdef size_t most = RING_BYTES if ring_is_file(fd) else PIPE_ATOMIC
    while tail != head:
        n = head - tail
        first = r.size - (tail & (r.size - 1))
        if first > n:
            first = n
        memcpy(flat, r.mem + (tail & (r.size - 1)), first)
        memcpy(flat + first, r.mem, n - first)
        at = 0
        while at < n:
            first = whole_records(flat + at, n - at, most)
            done = write(fd, flat + at, first)
            if done < <ssize_t>first:           # a full disk or a reader gone must not stop traffic
                r.lost += first - (<size_t>done if done > 0 else 0)
            at += first
        tail += n
        ring_store(&r.tail, tail)
        head = ring_load(&r.head)


cdef void *ring_run(void *arg) noexcept nogil:
    cdef Ring *r = <Ring *>arg
    cdef char *flat = <char *>malloc(r.size)
    cdef uint64_t token
    if flat == NULL:
        return NULL
    while not ring_load_u32(&r.stop):
        ring_poll(r.wake_fd, -1)                # something came
        read(r.wake_fd, &token, sizeof(token))
        if not ring_load_u32(&r.stop) and ring_load(&r.head) - r.tail < r.wake_at:
            ring_poll(r.wake_fd, r.flush_ms)    # let more come, up to the flush time or the flush size
            read(r.wake_fd, &token, sizeof(token))
        ring_flush(r, flat)
    ring_flush(r, flat)
    free(flat)
    return NULL


cdef Ring *ring_open(int fd, size_t flush_bytes, uint32_t flush_ms) noexcept nogil:
    """Start logging to (a duplicate of) fd; NULL when memory or a thread is refused."""
    cdef Ring *r = <Ring *>calloc(1, sizeof(Ring))
    if r == NULL:
        return NULL
    r.size = RING_BYTES
    r.mem = <char *>malloc(r.size)
    r.wake_fd = ring_eventfd()
    r.fd = dup(fd)
    r.wake_at = flush_bytes if flush_bytes < RING_BYTES // 2 else RING_BYTES // 2
    r.flush_ms = flush_ms
    if r.mem == NULL or r.wake_fd < 0 or r.fd < 0 or ring_start(&r.thread, ring_run, r) != 0:
        if r.wake_fd >= 0:
            close(r.wake_fd)
        if r.fd >= 0:
            close(r.fd)
        free(r.mem)
        free(r)
        return NULL
    return r


cdef void ring_wake(Ring *r) noexcept nogil:
    cdef uint64_t one = 1
    write(r.wake_fd, &one, sizeof(one))


cdef void ring_close(Ring *r) noexcept nogil:
    """Flush, end the thread, free."""
    if r == NULL:
        return
    ring_store_u32(&r.stop, 1)
    ring_wake(r)
    ring_join(r.thread)
    close(r.wake_fd)
    close(r.fd)
    free(r.mem)
    free(r)


cdef void ring_swap_fd(Ring *r, int fd) noexcept nogil:
    """Log to (a duplicate of) another descriptor from now on. The old one is closed by the next swap or the end, so that a write
    under way never meets a reused number: here dup2 keeps the number and changes the file."""
    dup_onto(fd, r.fd)


cdef extern from "<unistd.h>" nogil:
    int dup_onto "dup2"(int old, int new)


cdef size_t ring_room(const Ring *r) noexcept nogil:
    return r.size - (r.head - ring_load(&r.tail))


cdef bint ring_put(Ring *r, const char *at, size_t size) noexcept nogil:
    """Append a record; False (and counted) when there is no room for the whole of it."""
    cdef size_t waiting = r.head - ring_load(&r.tail), first
    if waiting + size > r.size:
        r.dropped += 1
        ring_wake(r)
        return False
    first = r.size - (r.head & (r.size - 1))
    if first > size:
        first = size
    memcpy(r.mem + (r.head & (r.size - 1)), at, first)
    memcpy(r.mem, at + first, size - first)
    ring_store(&r.head, r.head + size)
    if waiting == 0 or (waiting < r.wake_at and waiting + size >= r.wake_at):
        ring_wake(r)
    return True
