# Level 0. The system calls of the data plane, declarations only.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.types cimport off_t

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t

cdef extern from "<errno.h>" nogil:
    int errno
    enum: EAGAIN, EINTR, EINPROGRESS, ECONNREFUSED, ETIMEDOUT, EMFILE, ENFILE, ECONNABORTED, EPIPE, ECONNRESET, ENOBUFS, ENOMEM, EADDRNOTAVAIL

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int fd, const iovec *iov, int n)

cdef extern from "<netinet/in.h>" nogil:
    ctypedef uint32_t socklen_t
    cdef struct sockaddr:
        uint16_t sa_family
    cdef struct in_addr:
        uint32_t s_addr
    cdef struct in6_addr:
        uint8_t s6_addr[16]
    cdef struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    cdef struct sockaddr_in6:
        uint16_t sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
    cdef struct sockaddr_storage:
        uint16_t ss_family
    enum: AF_INET, AF_INET6, AF_UNIX, SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET, SO_ERROR, SO_LINGER, IPPROTO_TCP, SHUT_WR, SHUT_RDWR
    enum: MSG_NOSIGNAL, MSG_DONTWAIT, MSG_MORE, MSG_PEEK, SO_KEEPALIVE
    uint16_t ntohs(uint16_t n)
    uint16_t htons(uint16_t n)

cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int family, const void *src, char *out, uint32_t size)
    int inet_pton(int family, const char *text, void *out)

cdef extern from "<netinet/tcp.h>" nogil:
    enum: TCP_NODELAY, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_INFO
    cdef struct tcp_info:
        uint32_t tcpi_rtt        # microseconds
        uint32_t tcpi_rttvar

cdef extern from "<sys/socket.h>" nogil:
    cdef struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    int socket(int domain, int kind, int protocol)
    int connect(int fd, const sockaddr *addr, socklen_t size)
    int accept4(int fd, sockaddr *addr, socklen_t *size, int flags)
    int shutdown(int fd, int how)
    int getsockname(int fd, sockaddr *addr, socklen_t *size)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *size)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
    ssize_t recv(int fd, void *buf, size_t size, int flags)
    ssize_t send(int fd, const void *buf, size_t size, int flags)
    ssize_t sendmsg(int fd, const msghdr *msg, int flags)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    int dup(int fd)
    ssize_t read(int fd, void *buf, size_t size)
    ssize_t write(int fd, const void *buf, size_t size)
    int fdatasync(int fd)
    int ftruncate(int fd, off_t size)
    int getpid()
    int getpagesize()
    ssize_t pread(int fd, void *buf, size_t size, off_t offset)
    int pipe2(int *fds, int flags)

cdef extern from "<signal.h>" nogil:
    enum: SIGKILL
    int kill(int pid, int signal)

cdef extern from "<fcntl.h>" nogil:
    enum: F_DUPFD_CLOEXEC, F_SETPIPE_SZ, O_NONBLOCK, O_CLOEXEC, O_RDONLY
    int open(const char *path, int flags, ...)
    unsigned int SPLICE_F_MOVE, SPLICE_F_NONBLOCK
    ssize_t splice(int source, off_t *source_off, int to, off_t *to_off, size_t size, unsigned int flags)
    int fcntl(int fd, int cmd, ...)

cdef extern from "<sys/ioctl.h>" nogil:
    enum: FIONREAD
    int ioctl(int fd, unsigned long what, void *value)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    enum: EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC
    enum: EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP
    cdef uint32_t EPOLLET
    int epoll_create1(int flags)
    int epoll_ctl(int ep, int op, int fd, epoll_event *event)
    int epoll_wait(int ep, epoll_event *events, int n, int timeout_ms)

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    cdef struct itimerspec:
        timespec it_interval
        timespec it_value
    enum: CLOCK_MONOTONIC, CLOCK_REALTIME
    int clock_gettime(int clock, timespec *out)

cdef extern from "<sys/timerfd.h>" nogil:
    enum: TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *new, itimerspec *old)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *addr, size_t size, int prot, int flags, int fd, off_t offset)
    int munmap(void *addr, size_t size)
    enum: PROT_NONE, PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE
    void *MAP_FAILED

cdef extern from *:
    """
    #if defined(__SANITIZE_ADDRESS__)
    #include <sanitizer/asan_interface.h>
    #define gw_poison(p, n) ASAN_POISON_MEMORY_REGION(p, n)
    #define gw_unpoison(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
    extern long fault_buffers __attribute__((weak));    /* tests/faults/shim.c, where it is loaded: the so-manieth buffer is refused */
    #define gw_fault() (&fault_buffers != 0 && fault_buffers > 0 && --fault_buffers == 0)
    #else
    #define gw_fault() 0
    #define gw_poison(p, n) ((void)0)
    #define gw_unpoison(p, n) ((void)0)
    #endif
    """
    void gw_poison(void *p, size_t n) nogil
    void gw_unpoison(void *p, size_t n) nogil
    int gw_fault() nogil
