"""The store of copies as Python sees it: made by the supervisor, given to every worker, purged and counted by the admin interface."""
import fcntl
import os
import time

from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from gwcore._speedups.copies cimport (
    COPY_MAIN, COPY_RESULTS, COPY_SMALL, Copy, CopyKey, CopyLane, CopyMeta, CopyRing, CopyStore_, CopyText, copies_bytes, copies_format,
    copies_epoch, copies_lane, copies_map, copies_retire, copies_tables, copies_turn_begin, copies_turn_end, copies_unmap, copy_at, copy_body, copy_drop, copy_epoch, copy_find,
    copy_head, copy_indexed, copy_key, copy_named, copy_search, copy_tags, copy_text,
)
from gwcore._speedups.copyput cimport copy_put
from gwcore._speedups.copypurge cimport PURGE_PREFIX, PURGE_TAG, PURGE_URL, Purge, purge_begin, purge_some
from gwcore._speedups.leases cimport lease_give, lease_held, lease_retire, lease_take
from gwcore._speedups.sys cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, iovec, mmap, munmap
from gwcore._speedups.types cimport RC_OK

RESULT_WORDS = ("stored", "large", "busy", "wait", "outdated")           # CopyResult
REDIS_WORDS = ("hits", "misses", "bad", "errors", "skipped", "written", "dropped", "us")    # us: the time of look-ups
LEASE_WORDS = ("taken", "held", "full")
META = ("stored_ms", "fresh_ms", "revalidate_ms", "error_ms", "usable_ms", "keep_ms", "salt", "age_s", "flags", "status", "variants", "unused", "url",
        "etag", "last_modified", "vary")
PURGE_KINDS = {"url": PURGE_URL, "prefix": PURGE_PREFIX, "tag": PURGE_TAG}
PURGE_PAUSE_S = 0.0002
PURGE_MOST_S = 10.0


cdef uint64_t now_ms():
    return time.monotonic_ns() // 1_000_000


cdef CopyText one(bytes text, iovec *at):
    """A text in one piece; `text` must outlive it."""
    cdef CopyText out
    at.iov_base, at.iov_len = <char *>text, len(text)
    out.iov, out.n, out.bytes = at, 1, len(text)
    return out


cdef make_key(CopyStore s, CopyKey *k, bytes key, hash_):
    copy_key(&s.own, k, key, len(key))
    if hash_ is not None:
        k.hash = hash_


cdef dict found(const Copy *c):
    return {"key": copy_text(c)[:c.key_len], "head": copy_head(c)[:c.head_len], "tags": copy_tags(c)[:c.tags_len],
            "body": copy_body(c)[:c.body_len], "uses": c.uses, **c.meta}


cdef class CopyStore:
    """`create` in the supervisor, `attach` in the workers. Not thread-safe."""

    @staticmethod
    def create(size: int, workers: int) -> CopyStore:
        """A new, empty store of `size` bytes in all, for so many workers (1 to 1024); its own process number is `workers`. ValueError when the size is
        too small for them, OSError when memory is refused."""
        cdef uint64_t secret[2]
        cdef size_t bytes_
        cdef void *at
        if not 1 <= workers <= 1024:
            raise ValueError("workers must be from 1 to 1024")
        bytes_ = copies_bytes(size, workers)
        if bytes_ == 0:
            raise ValueError(f"cache.size: {size} bytes are too few for {workers} workers")
        secret[0], secret[1] = int.from_bytes(os.urandom(8), "little"), int.from_bytes(os.urandom(8), "little")
        fd = os.memfd_create("gwcore-copies", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, bytes_)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            at = mmap(NULL, copies_tables(bytes_, workers + 1), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
            if at == MAP_FAILED:
                raise OSError("cannot map the store of copies")
            copies_format(at, bytes_, workers, secret)
            munmap(at, copies_tables(bytes_, workers + 1))
            s = CopyStore.attach(fd, workers)
        except BaseException:
            os.close(fd)
            raise
        (<CopyStore>s).fd = fd
        return s

    @staticmethod
    def attach(fd: int, process: int) -> CopyStore:
        """Map the store behind fd (which stays the caller's) for the worker of that number."""
        cdef CopyStore s = CopyStore()
        s.fd, s.process = -1, process
        if not copies_map(&s.own, fd, process):
            raise OSError("cannot map the store of copies: another build made it, it has no lane for this worker, or there is no memory")
        return s

    def close(self) -> None:
        """Unmap it, and close what `create` opened. Nothing may be called afterwards."""
        copies_unmap(&self.own)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __dealloc__(self):
        copies_unmap(&self.own)

    # ---- copies ----

    def put(self, key: bytes, body: bytes = b"", head: bytes = b"", tags: bytes = b"", *, url: tuple[int, int] = (0, 0), status: int = 200,
            keep_ms: int = 0, epoch: int | None = None, now: int | None = None, hash: int | None = None) -> str:
        """Keep an answer; url: where the key's text has its address (offset, length); hash: another than the key's own, for tests. A word of RESULT_WORDS."""
        cdef CopyKey k
        cdef CopyMeta meta
        cdef CopyText texts[3]
        cdef iovec iov[3]
        cdef uint64_t since
        memset(&meta, 0, sizeof(meta))
        make_key(self, &k, key, hash)
        meta.stored_ms = now_ms() if now is None else now
        meta.keep_ms, meta.status = keep_ms, status
        meta.url.off, meta.url.len = url
        texts[0], texts[1], texts[2] = one(head, &iov[0]), one(tags, &iov[1]), one(body, &iov[2])
        since = copy_epoch(&self.own, &k) if epoch is None else epoch
        return RESULT_WORDS[copy_put(&self.own, &k, &meta, &texts[0], &texts[1], &texts[2], since, meta.stored_ms)]

    def find(self, key: bytes, hold: bool = False, *, hash: int | None = None) -> dict | None:
        """What is kept under a key; hold: the turn stays open, as if a worker still sent it, and the body is a view of the store's own bytes."""
        cdef CopyKey k
        cdef const Copy *c
        make_key(self, &k, key, hash)
        c = copy_find(&self.own, &k)
        out = None
        if c != NULL:
            out = found(c)
            if hold:
                out["body"] = PyMemoryView_FromMemory(<char *>copy_body(c), c.body_len, PyBUF_READ)
        if not hold:
            copies_turn_end(&self.own)
        return out

    def look(self, key: bytes) -> dict | None:
        """As `find`, but it is no use."""
        cdef CopyKey k
        cdef uint64_t word
        cdef bint reading = self.own.reading
        copy_key(&self.own, &k, key, len(key))
        copies_turn_begin(&self.own)
        out = None
        if copy_search(&self.own, &k, &word) != NULL:
            out = found(copy_named(&self.own, word))
        if not reading:
            copies_turn_end(&self.own)
        return out

    def keep(self, given: dict, epoch: int, now: int) -> str:
        """Keep what `look` found, here or elsewhere, under its key."""
        cdef CopyKey k
        cdef CopyText texts[3]
        cdef iovec iov[3]
        cdef CopyMeta meta = {name: given[name] for name in META}
        key = given["key"]
        copy_key(&self.own, &k, <bytes>key, len(<bytes>key))
        texts[0], texts[1], texts[2] = one(given["head"], &iov[0]), one(given["tags"], &iov[1]), one(given["body"], &iov[2])
        return RESULT_WORDS[copy_put(&self.own, &k, &meta, &texts[0], &texts[1], &texts[2], epoch, now)]

    def current(self, epoch: int) -> bool:
        """Was nothing purged since that epoch was read that may be of its key?"""
        return copies_epoch(&self.own, <uint64_t>epoch >> 54) == <uint64_t>epoch

    def count_redis(self, what: str, n: int = 1) -> None:
        """Count what became of a look-up, or of a copy to be written: a word of REDIS_WORDS."""
        self.own.lane.redis[<int>REDIS_WORDS.index(what)] += n

    def turn(self, begin: bool) -> None:
        """Begin a turn, or end it."""
        if begin:
            copies_turn_begin(&self.own)
        else:
            copies_turn_end(&self.own)

    def epoch(self, key: bytes) -> int:
        """For `put`, when the fetch takes a while."""
        cdef CopyKey k
        copy_key(&self.own, &k, key, len(key))
        return copy_epoch(&self.own, &k)

    def drop(self, key: bytes) -> bool:
        """Forget what is kept under a key."""
        cdef CopyKey k
        copy_key(&self.own, &k, key, len(key))
        return copy_drop(&self.own, &k)

    def purge(self, kind: str, text: bytes) -> int:
        """Forget all copies of an address ("url": scheme, host, path and query), of those that begin with a text ("prefix"), or with a tag ("tag"); how many
        there were. TimeoutError when others write all the time."""
        cdef Purge p
        cdef int rc
        purge_begin(&self.own, &p, PURGE_KINDS[kind], text, len(text))
        since = time.monotonic()
        while True:
            with nogil:
                rc = purge_some(&self.own, &p)
            if rc == RC_OK:
                return p.purged
            if time.monotonic() - since > PURGE_MOST_S:
                raise TimeoutError("the store of copies is written to without a pause")
            time.sleep(PURGE_PAUSE_S)

    # ---- leases ----

    def lease(self, key: bytes, due_ms: int, now: int) -> str:
        """Take the lease of a key; a word of LEASE_WORDS."""
        cdef CopyKey k
        copy_key(&self.own, &k, key, len(key))
        return LEASE_WORDS[lease_take(&self.own, &k, due_ms, now)]

    def give(self, key: bytes) -> None:
        cdef CopyKey k
        copy_key(&self.own, &k, key, len(key))
        lease_give(&self.own, &k)

    def leased(self, key: bytes, now: int) -> bool:
        cdef CopyKey k
        copy_key(&self.own, &k, key, len(key))
        return lease_held(&self.own, &k, now)

    # ---- life ----

    def retire(self, process: int) -> None:
        """The worker of that number died."""
        if not 0 <= process < self.own.mem.processes:
            raise IndexError(process)
        copies_retire(&self.own, process)
        lease_retire(&self.own, process)

    # ---- for tests and benches ----

    def repeat_find(self, keys: list[bytes], times: int) -> float:
        """Nanoseconds of a look-up, over so many rounds over the keys."""
        cdef CopyKey *made = <CopyKey *>malloc(len(keys) * sizeof(CopyKey))
        cdef uint32_t n = len(keys), i, _k, rounds = times
        if made == NULL:
            raise MemoryError
        for i, key in enumerate(keys):
            made[i].text, made[i].len = <const char *>(<bytes>key), len(key)
        since = time.perf_counter_ns()
        with nogil:
            for _k in range(rounds):
                for i in range(n):
                    copy_key(&self.own, &made[i], made[i].text, made[i].len)
                    copy_find(&self.own, &made[i])
                    copies_turn_end(&self.own)
        spent = time.perf_counter_ns() - since
        free(made)
        return spent / (n * rounds)

    def repeat_put(self, keys: list[bytes], body: bytes, head: bytes) -> float:
        """Nanoseconds of a put, with the making of its arguments."""
        cdef CopyKey k
        cdef CopyMeta meta
        cdef CopyText texts[2]
        cdef iovec iov[2]
        memset(&meta, 0, sizeof(meta))
        texts[0], texts[1] = one(head, &iov[0]), one(body, &iov[1])
        since = time.perf_counter_ns()
        for key in keys:
            copy_key(&self.own, &k, <bytes>key, len(<bytes>key))
            copy_put(&self.own, &k, &meta, &texts[0], NULL, &texts[1], copy_epoch(&self.own, &k), 0)
        return (time.perf_counter_ns() - since) / len(keys)

    def die_in(self, steps: int) -> None:
        """This process is killed at so manieth step of writing from here."""
        self.own.dies_in = steps

    def audit(self) -> tuple[list[bytes], int]:
        """The keys that can be found, and how many answers in the rings cannot. AssertionError when the store is not whole. Nobody may be writing."""
        cdef CopyStore_ *m = self.own.mem
        cdef const CopyRing *r
        cdef const Copy *c
        cdef uint64_t at, words = 0, i
        cdef uint32_t k
        keys, lost = [], 0
        for k in range(2):
            r = &m.rings[k]
            assert r.freed <= r.pending <= r.tail <= r.head <= r.freed + r.size, (k, dict(r[0]))
            at = r.tail
            while at < r.head:
                c = copy_at(&self.own, k, at)
                assert sizeof(Copy) <= c.size <= r.head - at and c.size % 16 == 0, (k, at, c.size)
                assert sizeof(Copy) + c.key_len + c.head_len + c.tags_len + <uint64_t>c.body_len <= c.size, (k, at)
                if copy_indexed(&self.own, k, at):
                    keys.append(copy_text(c)[:c.key_len])
                else:
                    lost += 1
                at += c.size
        for i in range(m.buckets * 8):
            words += (<const uint64_t *>(self.own.base + m.index_off))[i] != 0
        assert words == len(keys), (words, len(keys))
        return keys, lost

    # ---- figures ----

    def figures(self) -> dict:
        """Counts over all processes, and how full it is."""
        cdef CopyStore_ *m = self.own.mem
        cdef const CopyLane *lane
        cdef const uint64_t *index = <const uint64_t *>(self.own.base + m.index_off)
        cdef uint64_t i, copies = 0
        cdef uint32_t p, k
        out = dict.fromkeys(("stored_bytes", "replaced", "ghosts", "promoted", "kept", "evicted", "evicted_small", "expired", "crowded", "dropped", "leases",
                             "copied_bytes"), 0)
        results = dict.fromkeys(RESULT_WORDS, 0)
        redis = dict.fromkeys(REDIS_WORDS, 0)
        for p in range(m.processes):
            lane = copies_lane(&self.own, p)
            for k, word in enumerate(REDIS_WORDS):
                redis[word] += lane.redis[k]
            for k in range(COPY_RESULTS):
                results[RESULT_WORDS[k]] += lane.results[k]
            for key, n in (("stored_bytes", lane.stored_bytes), ("replaced", lane.replaced), ("ghosts", lane.ghosts), ("promoted", lane.promoted),
                           ("kept", lane.kept), ("evicted", lane.evicted[COPY_MAIN]), ("evicted_small", lane.evicted[COPY_SMALL]), ("expired", lane.expired),
                           ("crowded", lane.crowded), ("dropped", lane.dropped), ("leases", lane.leases), ("copied_bytes", lane.copied_bytes)):
                out[key] += n
        for i in range(m.buckets * 8):
            copies += index[i] != 0
        rings = {}
        for k, word in enumerate(("small", "main")):
            rings[word] = {"size": m.rings[k].size, "bytes": m.rings[k].head - m.rings[k].tail, "waiting": m.rings[k].tail - m.rings[k].freed}
        return {"size": m.bytes, "copies": copies, "bytes": rings["small"]["bytes"] + rings["main"]["bytes"], "rings": rings, "results": results, "redis": redis,
                "locked": m.lock != 0, **out}
