"""splice(2): the kernel hands pages from one socket to another through a pipe. From 64 KiB on it costs less than reading and writing
(bench/micro/bench_splice.py). A pipe is state: one that is not known to be empty is closed, or the next client would get its bytes."""
from libc.stddef cimport size_t

from gwcore._speedups.buffer cimport queue_add
from gwcore._speedups.conn cimport SCRATCH_BYTES
from gwcore._speedups.sys cimport (
    EAGAIN, EINTR, F_SETPIPE_SZ, MSG_DONTWAIT, MSG_PEEK, O_CLOEXEC, O_NONBLOCK, SPLICE_F_MOVE, SPLICE_F_NONBLOCK, close, errno, fcntl,
    pipe2, read, recv, splice,
)
from gwcore._speedups.types cimport RC_AGAIN, RC_DONE, RC_FAIL, RC_OK

cdef enum:
    PIPE_BYTES = 1 << 20     # what an unprivileged process may ask for
    PIPE_LEAST = 1 << 16     # what it has without asking
    ROUNDS = 4               # of filling and emptying, before others get their turn


cdef bint pipe_take(Worker *w, uint32_t *pipe) noexcept nogil:
    """An empty pipe (its number + 1); False when all are in use or the kernel refuses one."""
    cdef int fds[2]
    cdef int i
    for i in range(w.pipes_max):
        if w.pipes[i].busy:
            continue
        if w.pipes[i].bytes == 0:
            if pipe2(fds, O_NONBLOCK | O_CLOEXEC) != 0:
                return False
            w.pipes[i].out, w.pipes[i].into = fds[0], fds[1]
            w.pipes[i].bytes = PIPE_BYTES if fcntl(fds[1], F_SETPIPE_SZ, PIPE_BYTES) >= PIPE_BYTES else PIPE_LEAST
        w.pipes[i].busy = True
        pipe[0] = i + 1
        return True
    return False


cdef void pipe_give(Worker *w, uint32_t *pipe, size_t held) noexcept nogil:
    """Give a pipe back, with so many bytes still in it. Giving back twice is harmless."""
    if pipe[0] == 0:
        return
    if held:
        pipe_close(w, pipe[0] - 1)
    w.pipes[pipe[0] - 1].busy = False
    pipe[0] = 0


cdef void pipe_close(Worker *w, int i) noexcept nogil:
    if w.pipes[i].bytes:
        close(w.pipes[i].out)
        close(w.pipes[i].into)
        w.pipes[i].bytes = 0


cdef void pipes_close(Worker *w) noexcept nogil:
    cdef int i
    for i in range(w.pipes_max):
        pipe_close(w, i)


cdef int splice_move(Worker *w, uint32_t pipe, Conn *source, Conn *to, uint64_t left, size_t held, Moved *moved) noexcept nogil:
    """Move bytes, of which the source is to give `left` more and the pipe holds `held`. RC_OK: look at moved; the rest follows when the
    source is readable or the target writable. RC_AGAIN: the same, but there is more to do at once. RC_FAIL: source.broken or to.broken."""
    cdef int into = w.pipes[pipe - 1].into, out = w.pipes[pipe - 1].out, rounds = 0
    cdef size_t room = w.pipes[pipe - 1].bytes, want
    cdef ssize_t n
    moved.taken = moved.given = 0
    moved.ended = False
    while True:
        if left > moved.taken and source.readable and held < room:
            want = room - held
            if want > left - moved.taken:
                want = left - moved.taken
            n = splice(source.fd, NULL, into, NULL, want, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
            if n > 0:
                moved.taken += n
                held += n
            elif n == 0:
                source.readable = 0
                source.ended = 2
                moved.ended = True
            elif errno == EAGAIN:
                if held == 0:                # else the pipe may be out of slots: empty it, then ask again
                    source.readable = 0
            elif errno != EINTR:
                source.broken = 1
                return RC_FAIL
        if held and to.writable:
            n = splice(out, NULL, to.fd, NULL, held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
            if n > 0:
                moved.given += n
                held -= n
            elif n == 0 or errno == EAGAIN:
                to.writable = 0
            elif errno != EINTR:
                to.broken = 1
                return RC_FAIL
        if moved.ended or (held and not to.writable) or (held == 0 and (left == moved.taken or not source.readable)):
            return RC_OK
        rounds += 1
        if rounds == ROUNDS:
            return RC_AGAIN


cdef int splice_through(Worker *w, Conn *source, Conn *to, uint64_t most, Moved *moved) noexcept nogil:
    """Move up to `most` bytes between two plain connections, of which the target has nothing queued, by a pipe that is empty before and
    after: what the target does not take is queued for it, and counts as given. RC_OK: look at moved. RC_DONE: there is no pipe, copy.
    RC_FAIL: source.broken or to.broken."""
    cdef uint32_t pipe = 0
    cdef size_t held
    cdef ssize_t n = 1
    cdef int rc
    if not pipe_take(w, &pipe):
        return RC_DONE
    rc = splice_move(w, pipe, source, to, most, 0, moved)
    held = moved.taken - moved.given
    while held and n > 0 and not to.broken:
        n = read(w.pipes[pipe - 1].out, w.scratch, held if held < SCRATCH_BYTES else SCRATCH_BYTES)
        if n > 0:
            held -= n
            if queue_add(&w.bufs, &to.output, w.scratch, n) != RC_OK:
                to.broken = 1
    if held and n <= 0:
        to.broken = 1
    pipe_give(w, &pipe, held)
    moved.given = moved.taken
    return RC_FAIL if rc == RC_FAIL or to.broken else RC_OK


cdef bint conn_dry(Conn *c) noexcept nogil:
    """After exactly so many bytes were taken: is there not one more? Then the connection may be used again."""
    cdef char byte
    cdef ssize_t n
    if c.watched and not c.readable:
        return True
    n = recv(c.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT)
    if n == -1 and errno == EAGAIN:
        c.readable = 0
        return True
    if n == 0:
        c.ended = 2
    elif n == -1:
        c.broken = 1
    return n == 0
