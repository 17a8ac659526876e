"""A crew of threads for handshakes. A step takes its session with it, so that connection and thread share nothing: when the connection ends
meanwhile, nobody waits for the step, and it is dropped when it comes back. The queue has a bound; whoever meets it full is shed, because
a handshake nobody waits for any more costs as much as one that matters. Threads run at a lower priority than live traffic."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from gwcore._speedups.sys cimport close
from gwcore._speedups.tls cimport TlsIo, tls_adopt, tls_end, tls_io_close, tls_io_open, tls_step
from gwcore._speedups.types cimport RC_AGAIN, RC_FAIL, size_t

cdef extern from * nogil:
    """
    #include <pthread.h>
    #include <signal.h>
    #include <sys/eventfd.h>
    #include <sys/resource.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static int crew_eventfd(void) { return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }
    static void crew_wake(int fd) { unsigned long long one = 1; if (write(fd, &one, 8) < 0) {} }
    static void crew_nice(int n) { setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), n); }
    static int crew_thread(pthread_t *out, void *(*run)(void *), void *arg) {
        sigset_t all, old; int rc;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        rc = pthread_create(out, 0, run, arg);
        pthread_sigmask(SIG_SETMASK, &old, 0);
        return rc;
    }
    """
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *m, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *m)
    int pthread_mutex_unlock(pthread_mutex_t *m)
    int pthread_cond_init(pthread_cond_t *c, void *attributes)
    int pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
    int pthread_cond_signal(pthread_cond_t *c)
    int pthread_cond_broadcast(pthread_cond_t *c)
    int pthread_join(pthread_t t, void **out)
    int crew_eventfd()
    void crew_wake(int fd)
    void crew_nice(int n)
    int crew_thread(pthread_t *out, void *(*run)(void *) noexcept nogil, void *arg)

cdef enum:
    THREADS_MOST = 64
    NICE = 5

cdef struct Inside:
    pthread_mutex_t lock
    pthread_cond_t more
    Step *first              # waiting, oldest first
    Step *last
    Step *done               # newest first
    Crew *crew
    bint stop
    uint32_t begun
    pthread_t[64] threads
    TlsIo[64] ios            # steps that nobody took refer to them, when the threads have ended


cdef void step_run(Step *s, TlsIo *io) noexcept nogil:
    """In a thread: one step over what came, collecting what is to be sent."""
    cdef char *grown
    io.in_at, io.in_left = s.bytes, s.size
    tls_adopt(io, &s.tls)
    while True:
        io.out_used = 0
        s.rc = tls_step(io, &s.tls)
        if io.out_used:
            grown = <char *>realloc(s.out, s.out_size + io.out_used)
            if grown == NULL:
                s.rc = RC_FAIL
                return
            s.out = grown
            memcpy(s.out + s.out_size, io.out, io.out_used)
            s.out_size += io.out_used
        if s.rc != RC_AGAIN or io.in_left == 0:
            s.left = io.in_left
            return


cdef void *crew_run(void *arg) noexcept nogil:
    cdef Inside *n = <Inside *>arg
    cdef Step *s
    cdef TlsIo *io
    cdef bint quiet
    pthread_mutex_lock(&n.lock)
    io = &n.ios[n.begun]
    n.begun += 1
    pthread_mutex_unlock(&n.lock)
    if not tls_io_open(io):
        return NULL
    crew_nice(NICE)
    pthread_mutex_lock(&n.lock)
    while True:
        while n.first == NULL and not n.stop:
            pthread_cond_wait(&n.more, &n.lock)
        if n.stop:
            break
        s = n.first
        n.first = s.next
        if n.first == NULL:
            n.last = NULL
        n.crew.waiting -= 1
        pthread_mutex_unlock(&n.lock)
        step_run(s, io)
        pthread_mutex_lock(&n.lock)
        quiet = n.done == NULL
        s.next = n.done
        n.done = s
        if quiet:
            crew_wake(n.crew.wake_fd)
    pthread_mutex_unlock(&n.lock)
    return NULL


cdef Crew *crew_start(uint32_t threads, uint32_t limit) noexcept nogil:
    """Start threads (1 to 64), of which at most `limit` steps wait; NULL when the system refuses the first. After the fork only."""
    cdef Crew *c = <Crew *>calloc(1, sizeof(Crew))
    cdef Inside *n = <Inside *>calloc(1, sizeof(Inside))
    if c == NULL or n == NULL:
        free(c)
        free(n)
        return NULL
    c.inside, c.limit, n.crew = n, limit, c
    c.wake_fd = crew_eventfd()
    pthread_mutex_init(&n.lock, NULL)
    pthread_cond_init(&n.more, NULL)
    while c.wake_fd >= 0 and c.threads < threads and c.threads < THREADS_MOST and crew_thread(&n.threads[c.threads], crew_run, n) == 0:
        c.threads += 1
    if c.threads == 0:
        crew_stop(c)
        return NULL
    return c


cdef void crew_stop(Crew *c) noexcept nogil:
    """End the threads and drop what they have not done; the caller has taken what it wants (crew_take) before."""
    cdef Inside *n
    cdef Step *s
    cdef uint32_t i
    if c == NULL:
        return
    n = <Inside *>c.inside
    pthread_mutex_lock(&n.lock)
    n.stop = True
    pthread_cond_broadcast(&n.more)
    pthread_mutex_unlock(&n.lock)
    for i in range(c.threads):
        pthread_join(n.threads[i], NULL)
    while n.first != NULL:
        s = n.first
        n.first = s.next
        step_free(s)
    while n.done != NULL:
        s = n.done
        n.done = s.next
        step_free(s)
    for i in range(c.threads):
        tls_io_close(&n.ios[i])
    if c.wake_fd >= 0:
        close(c.wake_fd)
    free(n)
    free(c)


cdef bint crew_full(Crew *c) noexcept nogil:
    cdef Inside *n = <Inside *>c.inside
    cdef bint full
    pthread_mutex_lock(&n.lock)
    full = c.waiting >= c.limit
    pthread_mutex_unlock(&n.lock)
    return full


cdef bint crew_give(Crew *c, uint64_t handle, Tls *t, void *plan, const char *bytes, size_t size) noexcept nogil:
    """Let a thread go on with the handshake of t over these bytes. The session and the hold on plan move to the step; t keeps nothing but
    `due`. False when memory is out, and then nothing has moved."""
    cdef Inside *n = <Inside *>c.inside
    cdef Step *s = <Step *>calloc(1, sizeof(Step))
    if s != NULL:
        s.bytes = <char *>malloc(size if size else 1)
    if s == NULL or s.bytes == NULL:
        free(s)
        return False
    memcpy(s.bytes, bytes, size)
    s.size, s.handle, s.plan = size, handle, plan
    s.tls = t[0]
    s.tls.sealed = NULL                      # the connection's to give back
    t.ssl = NULL
    t.server = NULL
    pthread_mutex_lock(&n.lock)
    if n.last == NULL:
        n.first = s
    else:
        n.last.next = s
    n.last = s
    c.waiting += 1
    pthread_cond_signal(&n.more)
    pthread_mutex_unlock(&n.lock)
    return True


cdef Step *crew_take(Crew *c) noexcept nogil:
    """Everything that is done, as a list; the caller's from here on."""
    cdef Inside *n = <Inside *>c.inside
    cdef Step *s
    pthread_mutex_lock(&n.lock)
    s = n.done
    n.done = NULL
    pthread_mutex_unlock(&n.lock)
    return s


cdef void step_free(Step *s) noexcept nogil:
    """With whatever session it still has. The hold on the plan is the caller's to give back."""
    tls_end(&s.tls)
    free(s.bytes)
    free(s.out)
    free(s)
