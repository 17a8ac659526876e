"""The store of copies: what is kept, what goes, and what is left when processes die."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
import zlib
from collections.abc import Callable, Iterator

import pytest
from gwcore._speedups.copystore import CopyStore

SIZE = 1 << 20
WORKERS = 4


@pytest.fixture
def store() -> Iterator[CopyStore]:
    s = CopyStore.create(SIZE, WORKERS)
    yield s
    s.close()


def sealed(key: bytes, n: int, r: random.Random) -> bytes:
    """A body of n bytes or more that says whether it is whole and whose."""
    text = key + bytes([r.randrange(256)]) * n
    return zlib.crc32(text).to_bytes(4, "big") + text


def whole(key: bytes, found: dict) -> bool:
    body = bytes(found["body"])
    return found["key"] == key and body[4:].startswith(key) and int.from_bytes(body[:4], "big") == zlib.crc32(body[4:])


def child(work: Callable[[], None]) -> int:
    """`work` in a process of its own; its pid."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- one process ----


def test_what_was_put_is_found(store):
    assert store.find(b"k") is None
    assert store.put(b"k", b"body", b"head", b"t1 t2", status=203) == "stored"
    found = store.find(b"k")
    assert (found["key"], found["head"], found["tags"], found["body"], found["status"]) == (b"k", b"head", b"t1 t2", b"body", 203)
    assert store.find(b"K") is None
    assert store.put(b"k") == "stored"
    assert store.find(b"k")["body"] == b""
    assert store.audit() == ([b"k"], 1)
    assert store.figures()["replaced"] == 1


def test_uses_are_counted_up_to_seven(store):
    store.put(b"k")
    assert [store.find(b"k")["uses"] for _ in range(5)] == [1, 2, 3, 4, 5]
    assert [store.find(b"k")["uses"] for _ in range(4)] == [6, 7, 7, 7]


def test_a_refreshed_answer_keeps_its_place_and_its_uses(store):
    store.put(b"k", b"1")
    store.find(b"k")
    store.find(b"k")
    store.put(b"k", b"2")
    assert store.find(b"k")["uses"] == 3


def test_dropped_is_gone(store):
    store.put(b"k")
    assert store.drop(b"k") and not store.drop(b"k")
    assert store.find(b"k") is None and store.figures()["dropped"] == 1


def test_collisions_of_whole_hashes_are_told_apart_by_the_key(store):
    for i in range(10):
        assert store.put(b"k%d" % i, b"%d" % i, hash=77) == "stored"
    for i in range(10):
        assert store.find(b"k%d" % i, hash=77)["body"] == b"%d" % i
    assert store.find(b"k10", hash=77) is None


def test_a_full_bucket_loses_the_least_used(store):
    for i in range(16):
        store.put(b"k%d" % i, hash=77)
    for i in range(15):
        store.find(b"k%d" % i, hash=77)
    buckets = {i for i in range(16) if store.find(b"k%d" % i, hash=77)}
    assert store.put(b"one more", hash=77) == "stored"
    assert store.find(b"one more", hash=77)
    left = {i for i in buckets if store.find(b"k%d" % i, hash=77)}
    assert len(buckets - left) == store.figures()["crowded"] == 1
    store.audit()


def test_too_large_is_refused_and_large_goes_to_the_main_ring(store):
    main, small = (store.figures()["rings"][x]["size"] for x in ("main", "small"))
    assert store.put(b"k", bytes(main // 4)) == "large"
    assert store.find(b"k") is None
    assert store.put(b"k", bytes(small)) == "stored"
    assert store.figures()["rings"]["small"]["bytes"] == 0
    assert store.figures()["rings"]["main"]["bytes"] > small


def test_rings_go_round(store):
    r = random.Random(1)
    for i in range(20_000):
        key = b"key %d" % r.randrange(3000)
        found = store.find(key)
        if found:
            assert whole(key, found)
        else:
            assert store.put(key, sealed(key, r.randrange(1200), r)) == "stored"
        if i % 1000 == 0:
            store.audit()
    f = store.figures()
    assert f["stored_bytes"] + f["copied_bytes"] > 5 * SIZE
    assert f["promoted"] and f["kept"] and f["evicted"] and f["evicted_small"] and f["ghosts"] and not f["crowded"]
    assert f["rings"]["main"]["bytes"] > 0.9 * f["rings"]["main"]["size"]


def test_sizes_of_all_kinds_never_get_stuck(store):
    """A large answer at the end of the main ring, used often, for which there is no room at its head."""
    r = random.Random(1)
    for _ in range(20_000):
        key = b"key %d" % min(r.randrange(2000), r.randrange(2000))
        if store.find(key) is None:
            assert store.put(key, bytes(min(int(r.lognormvariate(7, 1.5)), SIZE // 8))) == "stored"
    assert store.figures()["kept"] > 1000


def test_a_scan_does_not_wash_out_what_is_used(store):
    hot = [b"hot %d" % i for i in range(200)]
    for _ in range(4):
        for key in hot:
            if store.find(key) is None:
                store.put(key, bytes(1000))
        for _ in range(300):
            store.put(b"warm up %d" % random.randrange(1 << 60), bytes(1000))
    for i in range(5000):
        store.put(b"scan %d" % i, bytes(1000))
        store.find(hot[i % 200])
    assert sum(store.find(key) is not None for key in hot) == 200


def test_what_is_over_goes_first_and_has_no_second_chance(store):
    store.put(b"k", bytes(1000), keep_ms=2000, now=1000)
    for _ in range(3):
        store.find(b"k")
    for i in range(200):
        store.put(b"%d" % i, bytes(1000), now=3000)
    assert store.find(b"k") is None and store.figures()["expired"] == 1


# ---- purges and epochs ----

URLS = [b"http://a/", b"http://a/x", b"http://a/x?y=1", b"http://a/xy", b"http://b/x"]


def fill(store):
    for i, url in enumerate(URLS):
        for variant in (b"", b"\0de"):
            key = b"route\0" + url + variant
            assert store.put(key, b"", b"", b"all n%d site-%s" % (i, url[7:8]), url=(6, len(url))) == "stored"


def left(store):
    return [url for url in URLS if store.find(b"route\0" + url) and store.find(b"route\0" + url + b"\0de")]


def test_purge_by_url_takes_all_variants(store):
    fill(store)
    assert store.purge("url", b"http://a/x") == 2
    assert left(store) == [u for u in URLS if u != b"http://a/x"]
    assert store.purge("url", b"http://a/x") == store.purge("url", b"") == 0


def test_purge_by_prefix(store):
    fill(store)
    assert store.purge("prefix", b"http://a/x") == 6
    assert left(store) == [b"http://a/", b"http://b/x"]
    assert store.purge("prefix", b"") == 4
    assert left(store) == []


def test_purge_by_tag_takes_whole_tags(store):
    fill(store)
    assert store.purge("tag", b"site") == store.purge("tag", b"") == store.purge("tag", b"all n1") == 0
    assert store.purge("tag", b"n1") == 2
    assert store.purge("tag", b"site-a") == 6
    assert left(store) == [b"http://b/x"]


def test_purges_look_at_both_rings_however_large(store):
    for i in range(6000):
        key = b"http://a/%d" % i
        store.put(key, bytes(20), url=(0, len(key)))
        store.find(key)
        store.find(key)
    keys, _ = store.audit()
    assert len(keys) > 2100
    assert store.figures()["rings"]["main"]["bytes"] > SIZE / 2
    assert store.purge("prefix", b"http://a/") == len(keys)
    assert store.audit()[0] == []


def test_what_was_fetched_before_a_purge_is_not_kept_after_it(store):
    before = store.epoch(b"k")
    store.purge("url", b"http://elsewhere/")
    assert store.put(b"k", epoch=before) == "outdated"
    before = store.epoch(b"k")
    store.drop(b"k")
    assert store.put(b"k", epoch=before) == "outdated"
    assert store.find(b"k") is None
    assert store.put(b"k", epoch=store.epoch(b"k")) == "stored"


def test_a_drop_leaves_the_fetches_of_other_keys_alone(store):
    others = [b"%d" % i for i in range(300)]
    epochs = [store.epoch(k) for k in others]
    store.drop(b"k")
    outdated = [k for k, e in zip(others, epochs, strict=True) if store.put(k, epoch=e) != "stored"]
    assert len(outdated) <= 6


# ---- several processes ----


def test_no_process_ever_sees_a_torn_answer(store):
    """Writers and readers of the same keys in all processes, with purges beside."""

    def work(number: int) -> None:
        s, r = CopyStore.attach(store.fd, number), random.Random(number)
        for _ in range(15_000):
            key = b"key %d" % min(r.randrange(400), r.randrange(400))
            found = s.find(key, hold=True)
            if found:
                assert whole(key, found)
            if not found or r.random() < 0.02:
                s.put(key, sealed(key, r.randrange(3000), r), url=(0, len(key)))
                if found:
                    assert whole(key, found)  # it was replaced, and is still there to the end of the turn
            if r.random() < 0.01:
                s.drop(key)
            s.turn(False)

    pids = [child(lambda n=n: work(n)) for n in range(WORKERS)]
    for _ in range(5):
        time.sleep(0.05)
        store.purge("prefix", b"key 1")
    assert [ended(pid) for pid in pids] == [0] * WORKERS
    store.audit()
    f = store.figures()
    assert f["results"]["outdated"] or f["dropped"]
    assert f["results"]["stored"] > 500


def test_what_a_reader_holds_is_not_written_over(store):
    a, b = (CopyStore.attach(store.fd, i) for i in (0, 1))
    a.put(b"held", b"held" * 100)
    body = a.find(b"held", hold=True)["body"]
    words = [b.put(b"%d" % i, bytes(500)) for i in range(5000)]
    assert b.find(b"held") is None
    assert bytes(body) == b"held" * 100
    assert words.count("wait") > 1000 and words[0] == "stored"  # nobody waits for the reader: others are not kept
    a.turn(False)
    assert [b.put(b"%d" % i, bytes(500)) for i in range(5000)].count("stored") == 5000
    assert bytes(body) != b"held" * 100
    store.audit()


def test_a_reader_that_dies_holds_nothing_any_more(store):
    store.put(b"held", bytes(100))

    def work() -> None:
        s = CopyStore.attach(store.fd, 2)
        s.find(b"held", hold=True)
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(child(work)) == -signal.SIGKILL
    assert [store.put(b"%d" % i, bytes(500)) for i in range(5000)].count("wait")
    store.retire(2)
    assert {store.put(b"%d" % i, bytes(500)) for i in range(5000)} == {"stored"}


def test_a_successor_holds_nothing_either(store):
    store.put(b"held", bytes(100))
    before = CopyStore.attach(store.fd, 2)
    before.find(b"held", hold=True)
    CopyStore.attach(store.fd, 2)
    assert {store.put(b"%d" % i, bytes(500)) for i in range(5000)} == {"stored"}


def life(s: CopyStore, r: random.Random, n: int) -> None:
    """n requests with all that can happen to answers."""
    for _ in range(n):
        key = b"key %d" % min(r.randrange(200), r.randrange(200))
        if s.find(key) is None or r.random() < 0.2:
            s.put(key, sealed(key, r.randrange(4000), r))
        if r.random() < 0.2:
            s.find(key)
            s.find(key)


LIFE = ("promoted", "kept", "evicted", "evicted_small", "replaced", "ghosts")


def test_a_writer_may_die_at_any_step():
    seen: set[str] = set()
    for steps in range(1, 2000):
        store, r = CopyStore.create(300_000, 2), random.Random(5)
        writer = CopyStore.attach(store.fd, 0)
        life(writer, r, 600)
        before = writer.figures()

        def work(writer: CopyStore = writer, r: random.Random = r, steps: int = steps) -> None:
            writer.die_in(steps)
            life(writer, r, 50)

        status = ended(child(work))
        after = store.figures()
        seen |= {k for k in LIFE if after[k] > before[k]}
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if after["locked"]:
            assert store.put(b"k") == "busy"
        store.retire(0)
        keys, _ = store.audit()
        assert keys and all(whole(k, store.find(k)) for k in keys)
        successor = CopyStore.attach(store.fd, 0)
        life(successor, r, 150)
        assert all(whole(k, store.find(k)) for k in store.audit()[0])
        assert successor.figures()["results"]["busy"] == int(after["locked"])
        store.close()
    assert 150 < steps < 1999 and seen == set(LIFE)


def test_writers_are_killed_again_and_again_while_others_work(store):
    def work(number: int) -> None:
        s, r = CopyStore.attach(store.fd, number), random.Random(os.getpid())
        while True:
            key = b"key %d" % r.randrange(300)
            found = s.find(key)
            assert found is None or whole(key, found)
            s.put(key, sealed(key, r.randrange(5000), r))

    reader = CopyStore.attach(store.fd, 3)
    pids = {n: child(lambda n=n: work(n)) for n in (0, 1, 2)}
    try:
        for i in range(100):
            time.sleep(0.004)
            n = i % 3
            os.kill(pids[n], signal.SIGKILL)
            assert ended(pids[n]) == -signal.SIGKILL
            store.retire(n)
            for k in range(300):
                key = b"key %d" % k
                found = reader.find(key)
                assert found is None or whole(key, found)
            pids[n] = child(lambda n=n: work(n))
    finally:
        for n, pid in pids.items():
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            store.retire(n)
    assert all(whole(k, store.find(k)) for k in store.audit()[0])
    assert not store.figures()["locked"]


# ---- leases ----


def test_one_of_many_gets_the_lease(store):
    a, b = (CopyStore.attach(store.fd, i) for i in (0, 1))
    assert a.lease(b"k", 6000, 1000) == "taken"
    assert a.lease(b"k", 6000, 1000) == b.lease(b"k", 6000, 1000) == "held"
    assert b.leased(b"k", 5900)
    b.give(b"k")  # not his
    assert b.leased(b"k", 1000)
    a.give(b"k")
    assert not b.leased(b"k", 1000) and b.lease(b"k", 6000, 1000) == "taken"


def test_leases_end_by_themselves_and_with_their_owner(store):
    a, b = (CopyStore.attach(store.fd, i) for i in (0, 1))
    assert a.lease(b"k", 6000, 1000) == "taken"
    assert b.lease(b"k", 9000, 6000) == "taken"
    a.give(b"k")
    assert a.leased(b"k", 7000)
    store.retire(1)
    assert not a.leased(b"k", 7000)


def test_leases_of_many_keys(store):
    a, b = (CopyStore.attach(store.fd, i) for i in (0, 1))
    taken = [k for k in (b"%d" % i for i in range(300)) if a.lease(k, 6000, 1000) == "taken"]
    assert len(taken) > 280
    assert all(b.lease(k, 6000, 1000) == "held" for k in taken)
    for k in taken:
        a.give(k)
    assert not any(b.leased(k, 1000) for k in taken)
    assert a.lease(b"full", 6000, 1000) in ("taken", "full")


def test_processes_never_share_a_lease(store):
    start = time.monotonic() + 0.1
    read, write = os.pipe()

    def work(number: int) -> None:
        s = CopyStore.attach(store.fd, number)
        while time.monotonic() < start:
            pass
        won = bytes(i for i in range(100) if s.lease(b"%d" % i, 10**9, 1000) == "taken")
        os.write(write, won)

    pids = [child(lambda n=n: work(n)) for n in range(WORKERS)]
    assert [ended(pid) for pid in pids] == [0] * WORKERS
    os.close(write)
    assert sorted(os.read(read, 1000)) == list(range(100))
    os.close(read)


# ---- making and mapping ----


def test_a_store_is_made_only_with_room():
    with pytest.raises(ValueError, match="cache.size"):
        CopyStore.create(1000, 2)
    with pytest.raises(ValueError, match="workers"):
        CopyStore.create(SIZE, 0)


def test_what_is_no_store_or_has_no_lane_is_not_mapped(store):
    with pytest.raises(OSError):
        CopyStore.attach(store.fd, WORKERS + 1)
    fd = os.memfd_create("not a store")
    os.ftruncate(fd, SIZE)
    with pytest.raises(OSError):
        CopyStore.attach(fd, 0)
    os.close(fd)


def test_unused_memory_is_not_taken():
    s = CopyStore.create(1 << 30, 2)
    s.put(b"k", bytes(100))
    assert os.fstat(s.fd).st_blocks * 512 < 1 << 20
    s.close()
