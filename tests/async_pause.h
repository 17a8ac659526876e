/* Work that is done "elsewhere": a thread that takes GWCORE_ENGINE_MS milliseconds, while the job that asked for it is paused. What a crypto
   accelerator does, without one. For async_engine.c and async_provider.c. */
#include <openssl/async.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static void *elsewhere(void *arg) {
    unsigned long long one = 1;
    long ms = atol(getenv("GWCORE_ENGINE_MS") ? getenv("GWCORE_ENGINE_MS") : "5");
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
    if (write((int)(long)arg, &one, sizeof one) != sizeof one) abort();
    return NULL;
}

static void forget(ASYNC_WAIT_CTX *ctx, const void *k, OSSL_ASYNC_FD fd, void *data) { close(fd); }

/* key: an address that is the caller's alone. 0 = it could not be. Outside of a job nothing waits. */
static int pause_here(const void *key) {
    ASYNC_JOB *job = ASYNC_get_current_job();
    ASYNC_WAIT_CTX *ctx;
    unsigned long long n;
    OSSL_ASYNC_FD fd;
    void *data;
    pthread_t t;
    if (!job) return 1;
    ctx = ASYNC_get_wait_ctx(job);
    if (!ASYNC_WAIT_CTX_get_fd(ctx, key, &fd, &data)) {
        fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (fd < 0 || !ASYNC_WAIT_CTX_set_wait_fd(ctx, key, fd, NULL, forget)) return 0;
    }
    if (pthread_create(&t, NULL, elsewhere, (void *)(long)fd)) return 0;
    do ASYNC_pause_job(); while (read(fd, &n, sizeof n) != sizeof n);
    pthread_join(t, NULL);
    return 1;
}
