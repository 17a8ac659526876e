/* Loaded before libc by tests/faults/sweep.py: makes the n-th call of one system call fail, in one thread.
 * Sockets are registered edge-triggered, so a refusal that the kernel did not mean would never be followed by an event: after one
 * (short count, EAGAIN, EINTR) the descriptor is armed again, as the kernel would when it became ready. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, RECV, SEND, SENDMSG, CONNECT, ACCEPT, SOCKET, EPOLL_CTL, SPLICE, PIPE, CALLS };
enum { SHORT = -1 };
#define FDS 4096

long fault_buffers; /* counted down at each buffer taken, in builds with a sanitizer (sys.pxd); the one that makes it 0 is refused */

static int armed_call, armed_fault;      /* which call, and the errno it gets (SHORT: one byte only) */
static long armed_at;                    /* at its so-manieth */
static long calls[CALLS];
static pid_t armed_thread;
static int fd_epoll[FDS];
static struct epoll_event fd_event[FDS];

void fault_arm(int call, int fault, long at, pid_t thread)
{
    memset(calls, 0, sizeof calls);
    armed_call = call, armed_fault = fault, armed_at = at, armed_thread = thread;
}

long fault_calls(int call) { return calls[call]; }

static int (*real_epoll_ctl)(int, int, int, struct epoll_event *);

static int strikes(int call)
{
    if (armed_thread == 0 || (pid_t)syscall(SYS_gettid) != armed_thread)
        return 0;
    return ++calls[call] == armed_at && call == armed_call ? armed_fault : 0;
}

static void again(int fd)
{
    if (fd >= 0 && fd < FDS && fd_epoll[fd])
        real_epoll_ctl(fd_epoll[fd] - 1, EPOLL_CTL_MOD, fd, &fd_event[fd]);
}

#define REAL(name) (__typeof__(&name))dlsym(RTLD_NEXT, #name)

int epoll_ctl(int ep, int op, int fd, struct epoll_event *event)
{
    if (!real_epoll_ctl)
        real_epoll_ctl = REAL(epoll_ctl);
    int fault = op == EPOLL_CTL_ADD ? strikes(EPOLL_CTL) : 0;
    if (fault > 0)
        return errno = fault, -1;
    int rc = real_epoll_ctl(ep, op, fd, event);
    if (rc == 0 && op == EPOLL_CTL_ADD && fd < FDS && event->events & EPOLLET)
        fd_epoll[fd] = ep + 1, fd_event[fd] = *event;
    return rc;
}

int close(int fd)
{
    static int (*real)(int);
    if (!real)
        real = REAL(close);
    if (fd >= 0 && fd < FDS)
        fd_epoll[fd] = 0;
    return real(fd);
}

#define MOVING(call, name, Buffer)                             \
    ssize_t name(int fd, Buffer buf, size_t size, int flags)    \
    {                                                           \
        static ssize_t (*real)(int, Buffer, size_t, int);       \
        if (!real)                                              \
            real = REAL(name);                                  \
        int fault = strikes(call);                              \
        if (!fault)                                             \
            return real(fd, buf, size, flags);                  \
        ssize_t n = fault == SHORT ? real(fd, buf, 1, flags) : -1; \
        again(fd);                                              \
        if (fault > 0)                                          \
            errno = fault;                                      \
        return n;                                               \
    }

MOVING(RECV, recv, void *)
MOVING(SEND, send, const void *)

ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
    static ssize_t (*real)(int, const struct msghdr *, int);
    if (!real)
        real = REAL(sendmsg);
    int fault = strikes(SENDMSG);
    if (fault == SHORT && msg->msg_iovlen) {
        struct iovec one = {msg->msg_iov[0].iov_base, 1};
        struct msghdr less = {.msg_iov = &one, .msg_iovlen = 1};
        ssize_t n = real(fd, &less, flags);
        again(fd);
        return n;
    }
    if (fault) {
        again(fd);
        return errno = fault, -1;
    }
    return real(fd, msg, flags);
}

#define REFUSING(call, type, name, params, args) \
    type name params                             \
    {                                            \
        static type(*real) params;               \
        if (!real)                               \
            real = REAL(name);                   \
        int fault = strikes(call);               \
        if (fault > 0)                           \
            return errno = fault, -1;            \
        return real args;                        \
    }

REFUSING(CONNECT, int, connect, (int fd, const struct sockaddr *to, socklen_t size), (fd, to, size))
REFUSING(ACCEPT, int, accept4, (int fd, struct sockaddr *from, socklen_t *size, int flags), (fd, from, size, flags))
REFUSING(SOCKET, int, socket, (int domain, int kind, int protocol), (domain, kind, protocol))
REFUSING(PIPE, int, pipe2, (int fds[2], int flags), (fds, flags))

ssize_t splice(int in, off64_t *in_off, int out, off64_t *out_off, size_t size, unsigned flags)
{
    static ssize_t (*real)(int, off64_t *, int, off64_t *, size_t, unsigned);
    if (!real)
        real = REAL(splice);
    int fault = strikes(SPLICE);
    if (fault == SHORT || fault > 0) {
        ssize_t n = fault == SHORT ? real(in, in_off, out, out_off, 1, flags) : -1;
        again(in);
        again(out);
        if (fault > 0)
            errno = fault;
        return n;
    }
    return real(in, in_off, out, out_off, size, flags);
}
