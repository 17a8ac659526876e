/* What the kernel asks for relaying a request, by epoll and by io_uring: one upstream connection for each client connection, nothing parsed.
 * `epoll`: wait, read, write. `uring`: one multishot receive a connection into a ring of provided buffers, registered files, and all sends of a
 * turn submitted together by the system call that also waits. Usage: relay PORT BACKEND_PORT epoll|uring. See bench_uring.py. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/resource.h>
#include <unistd.h>

enum { SQ = 4096, CQ = 16384, BUFS = 4096, BUF_SIZE = 4096, FILES = 16384 };
enum { ACCEPT = 1, RECV, SEND, CLOSE };

static int peer[FILES], ring, enter_fd;
static unsigned *sq_head, *sq_tail, *sq_array, *cq_head, *cq_tail, tail, sq_mask, cq_mask;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;
static struct io_uring_buf_ring *br;
static char *bufs;
static unsigned short br_tail;
static unsigned given[BUFS], n_given; /* buffers whose send is submitted: free again once io_uring_enter returned */

static int enter(unsigned submit, unsigned want)
{
    return syscall(__NR_io_uring_enter, enter_fd, submit, want, IORING_ENTER_GETEVENTS | IORING_ENTER_REGISTERED_RING, NULL, 0);
}

static void flush(unsigned want)
{
    atomic_store_explicit((_Atomic unsigned *)sq_tail, tail, memory_order_release);
    if (enter(tail - *sq_head, want) < 0 && errno != EINTR && errno != EBUSY) {
        perror("io_uring_enter");
        exit(1);
    }
    for (unsigned i = 0; i < n_given; i++) {
        struct io_uring_buf *b = &br->bufs[br_tail++ & (BUFS - 1)];
        b->addr = (unsigned long)(bufs + (size_t)given[i] * BUF_SIZE), b->len = BUF_SIZE, b->bid = given[i];
    }
    if (n_given)
        atomic_store_explicit((_Atomic unsigned short *)&br->tail, br_tail, memory_order_release);
    n_given = 0;
}

static struct io_uring_sqe *sqe(int op, int fd, int kind)
{
    if (tail - atomic_load_explicit((_Atomic unsigned *)sq_head, memory_order_acquire) == SQ)
        flush(0);
    struct io_uring_sqe *s = &sqes[tail++ & sq_mask];
    memset(s, 0, sizeof *s);
    s->opcode = op, s->fd = fd, s->user_data = (unsigned long)kind << 32 | fd;
    return s;
}

static void file_set(int slot, int fd)
{
    struct io_uring_files_update u = {.offset = slot, .fds = (unsigned long)&fd};
    if (syscall(__NR_io_uring_register, ring, IORING_REGISTER_FILES_UPDATE, &u, 1) < 0)
        perror("files_update"), exit(1);
}

static void arm(int fd)
{
    struct io_uring_sqe *s = sqe(IORING_OP_RECV, fd, RECV);
    s->ioprio = IORING_RECV_MULTISHOT | IORING_RECVSEND_POLL_FIRST;
    s->flags = IOSQE_BUFFER_SELECT | IOSQE_FIXED_FILE;
    s->buf_group = 0;
}

static int upstream(int c, struct sockaddr_in *up)
{
    int one = 1, u = socket(AF_INET, SOCK_STREAM, 0);
    if (c >= FILES || u >= FILES || connect(u, (void *)up, sizeof *up)) {
        close(u), close(c);
        return -1;
    }
    setsockopt(u, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    peer[c] = u, peer[u] = c;
    return u;
}

static void by_epoll(int srv, struct sockaddr_in *up)
{
    static char buf[1 << 17];
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = srv}, evs[512];
    int ep = epoll_create1(0);
    epoll_ctl(ep, EPOLL_CTL_ADD, srv, &ev);
    for (;;) {
        int n = epoll_wait(ep, evs, 512, -1);
        for (int i = 0; i < n; i++) {
            int fd = evs[i].data.fd;
            if (fd == srv) {
                int c = accept4(srv, 0, 0, SOCK_NONBLOCK), u = c < 0 ? -1 : upstream(c, up);
                if (u < 0)
                    continue;
                ev.data.fd = c, epoll_ctl(ep, EPOLL_CTL_ADD, c, &ev);
                ev.data.fd = u, epoll_ctl(ep, EPOLL_CTL_ADD, u, &ev);
                continue;
            }
            if (peer[fd] < 0)
                continue;
            ssize_t r = recv(fd, buf, sizeof buf, MSG_DONTWAIT), w = 0;
            for (ssize_t k; w < r; w += k > 0 ? k : 0) /* a full socket is waited for by spinning: a yardstick, not a proxy */
                if ((k = send(peer[fd], buf + w, r - w, MSG_NOSIGNAL | MSG_DONTWAIT)) < 0 && errno != EAGAIN)
                    break;
            if ((r > 0 && w == r) || (r < 0 && errno == EAGAIN))
                continue;
            int other = peer[fd];
            close(fd), close(other);
            peer[fd] = peer[other] = -1;
        }
    }
}

static void by_uring(int srv, struct sockaddr_in *up)
{
    struct io_uring_params p = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL, .cq_entries = CQ};
    ring = syscall(__NR_io_uring_setup, SQ, &p);
    if (ring < 0) {
        perror("io_uring_setup");
        exit(1);
    }
    size_t size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), size2 = p.sq_off.array + p.sq_entries * 4;
    char *m = mmap(0, size > size2 ? size : size2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    sqes = mmap(0, p.sq_entries * sizeof *sqes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
    sq_head = (void *)(m + p.sq_off.head), sq_tail = (void *)(m + p.sq_off.tail), sq_array = (void *)(m + p.sq_off.array);
    cq_head = (void *)(m + p.cq_off.head), cq_tail = (void *)(m + p.cq_off.tail), cqes = (void *)(m + p.cq_off.cqes);
    sq_mask = p.sq_entries - 1, cq_mask = p.cq_entries - 1;
    for (unsigned i = 0; i < p.sq_entries; i++)
        sq_array[i] = i;
    struct io_uring_rsrc_update reg = {.offset = -1U, .data = ring};
    if (syscall(__NR_io_uring_register, ring, IORING_REGISTER_RING_FDS, &reg, 1) != 1)
        perror("ring_fds"), exit(1);
    enter_fd = reg.offset;
    struct io_uring_rsrc_register rr = {.nr = FILES, .flags = IORING_RSRC_REGISTER_SPARSE};
    if (syscall(__NR_io_uring_register, ring, IORING_REGISTER_FILES2, &rr, sizeof rr) < 0)
        perror("files"), exit(1);
    br = mmap(0, BUFS * sizeof(struct io_uring_buf), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    bufs = mmap(0, (size_t)BUFS * BUF_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    struct io_uring_buf_reg breg = {.ring_addr = (unsigned long)br, .ring_entries = BUFS, .bgid = 0};
    if (syscall(__NR_io_uring_register, ring, IORING_REGISTER_PBUF_RING, &breg, 1) < 0)
        perror("pbuf"), exit(1);
    for (int i = 0; i < BUFS; i++)
        given[n_given++] = i;
    struct io_uring_sqe *s = sqe(IORING_OP_ACCEPT, srv, ACCEPT);
    s->ioprio = IORING_ACCEPT_MULTISHOT;
    for (;;) {
        flush(1);
        unsigned head = *cq_head, end = atomic_load_explicit((_Atomic unsigned *)cq_tail, memory_order_acquire);
        for (; head != end; head++) {
            struct io_uring_cqe *c = &cqes[head & cq_mask];
            int kind = c->user_data >> 32, fd = (int)c->user_data, res = c->res;
            unsigned flags = c->flags;
            if (kind == ACCEPT) {
                int u = res < 0 ? -1 : upstream(res, up);
                if (u >= 0) {
                    file_set(res, res), file_set(u, u);
                    arm(res), arm(u);
                }
                if (!(flags & IORING_CQE_F_MORE))
                    sqe(IORING_OP_ACCEPT, srv, ACCEPT)->ioprio = IORING_ACCEPT_MULTISHOT;
            } else if (kind == RECV) {
                if (res > 0) {
                    unsigned bid = flags >> IORING_CQE_BUFFER_SHIFT;
                    if (peer[fd] >= 0) {
                        s = sqe(IORING_OP_SEND, peer[fd], SEND);
                        s->addr = (unsigned long)(bufs + (size_t)bid * BUF_SIZE), s->len = res;
                        s->msg_flags = MSG_NOSIGNAL | MSG_DONTWAIT;
                        s->flags = IOSQE_CQE_SKIP_SUCCESS | IOSQE_FIXED_FILE;
                    }
                    given[n_given++] = bid;
                    if (!(flags & IORING_CQE_F_MORE) && peer[fd] >= 0)
                        arm(fd);
                } else if (res == -ENOBUFS) {
                    arm(fd);
                } else if (peer[fd] >= 0) {
                    int other = peer[fd];
                    peer[fd] = peer[other] = -1;
                    flush(0); /* what is queued for them leaves first */
                    shutdown(other, SHUT_RDWR);
                    file_set(fd, -1), close(fd);
                    file_set(other, -1), close(other);
                }
            } else if (kind == SEND && res < 0 && res != -EPIPE && res != -ECONNRESET) {
                fprintf(stderr, "send %d: %s\n", fd, strerror(-res));
            }
        }
        atomic_store_explicit((_Atomic unsigned *)cq_head, head, memory_order_release);
    }
}

int main(int argc, char **argv)
{
    int one = 1, srv = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in me = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, up = me;
    struct rlimit lim;
    if (argc != 4)
        return 2;
    me.sin_port = htons(atoi(argv[1])), up.sin_port = htons(atoi(argv[2]));
    getrlimit(RLIMIT_NOFILE, &lim), lim.rlim_cur = lim.rlim_max, setrlimit(RLIMIT_NOFILE, &lim);
    signal(SIGPIPE, SIG_IGN);
    setsockopt(srv, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(srv, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(srv, (void *)&me, sizeof me) || listen(srv, 4096)) {
        perror("listen");
        return 1;
    }
    (strcmp(argv[3], "uring") ? by_epoll : by_uring)(srv, &up);
}
