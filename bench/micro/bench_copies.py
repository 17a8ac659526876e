"""The store of copies: how often it has what is asked for, beside simulated policies that are given the same bytes, and what a look-up costs.

python bench/micro/bench_copies.py            # hit ratios, some minutes
python bench/micro/bench_copies.py --times    # nanoseconds

A trace is a run of requests by Zipf's law over 100,000 answers; sizes are those of whole records. With scans, a fifth of the requests is for answers
that are asked for once, in runs. The simulated policies have no overhead at all: no index, no room that is kept free, no pieces of rings.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from gwcore._speedups.copystore import CopyStore

KEYS = 100_000
REQUESTS = 600_000
WARM = 200_000  # first requests, which fill the caches and do not count
MEAN = 2048
SCAN_EVERY, SCAN = 20_000, 5_000

Trace = list[tuple[int, int]]  # (key, bytes)


def trace(skew: float, spread: bool, scans: bool, seed: int = 1) -> Trace:
    r = random.Random(seed)
    order = list(range(KEYS))
    r.shuffle(order)
    weights = list(itertools.accumulate(1 / (i + 1) ** skew for i in range(KEYS)))
    drawn = r.choices(order, cum_weights=weights, k=REQUESTS)
    sizes = [size_of(r, spread) for _ in range(KEYS)]
    if not scans:
        return [(k, sizes[k]) for k in drawn]
    out: Trace = []
    once = KEYS
    for i in range(0, REQUESTS, SCAN_EVERY):
        out += [(k, sizes[k]) for k in drawn[i : i + SCAN_EVERY - SCAN]]
        out += [(once + n, size_of(r, spread)) for n in range(SCAN)]
        once += SCAN
    return out


def size_of(r: random.Random, spread: bool) -> int:
    """Bytes of a record: 2 KiB, or log-normal with that mean, half of them below 1.2 KiB and one in a thousand above 30 KiB."""
    n = min(int(r.lognormvariate(7.08, 1.05)), 200_000) if spread else MEAN
    return max(n, 256) // 16 * 16


# ---- policies: each a function from a size to one that says whether a request was a hit ----

Policy = Callable[[int, int], bool]


def lru(size: int) -> Policy:
    kept: OrderedDict[int, int] = OrderedDict()
    used = 0

    def ask(key: int, n: int) -> bool:
        nonlocal used
        if key in kept:
            kept.move_to_end(key)
            return True
        kept[key] = n
        used += n
        while used > size:
            used -= kept.popitem(last=False)[1]
        return False

    return ask


def sieve(size: int) -> Policy:
    """Zhang and others 2024; a hand goes from the oldest to the newest and takes the first that was not used since it came by."""
    kept: dict[int, list[int]] = {}  # [bytes, used, the next newer, the next older]; key -1 is the ring's joint
    ends = [0, 0, -1, -1]
    used, hand = 0, -1

    def at(key: int) -> list[int]:
        return ends if key < 0 else kept[key]

    def ask(key: int, n: int) -> bool:
        nonlocal used, hand
        if key in kept:
            kept[key][1] = 1
            return True
        while used + n > size:
            if hand < 0:
                hand = ends[2]  # the oldest
            entry = kept[hand]
            if entry[1]:
                entry[1], hand = 0, entry[2]
            else:
                at(entry[2])[3], at(entry[3])[2] = entry[3], entry[2]
                used -= entry[0]
                del kept[hand]
                hand = entry[2]
        newest = ends[3]
        kept[key] = [n, 0, -1, newest]
        at(newest)[2], ends[3] = key, key
        used += n
        return False

    return ask


def s3_fifo(size: int, small_share: float = 0.1, least: int = 2) -> Policy:
    """Yang and others 2023, as in the paper: two uses in the small queue promote, and the ghosts are as many bytes as the main queue."""
    small, main, ghost = deque[int](), deque[int](), OrderedDict[int, int]()
    kept: dict[int, list[int]] = {}  # [bytes, uses]
    small_size = int(size * small_share)
    used = [0, 0, 0]  # small, main, ghosts

    def evict_main() -> None:
        while used[1] > size - small_size:
            key = main.popleft()
            entry = kept[key]
            if entry[1]:
                entry[1] -= 1
                main.append(key)
            else:
                used[1] -= entry[0]
                del kept[key]

    def ask(key: int, n: int) -> bool:
        entry = kept.get(key)
        if entry is not None:
            if entry[1] < 3:
                entry[1] += 1
            return True
        kept[key] = [n, 0]
        if key in ghost:
            used[2] -= ghost.pop(key)
            main.append(key)
            used[1] += n
            evict_main()
            return False
        small.append(key)
        used[0] += n
        while used[0] > small_size:
            old = small.popleft()
            entry = kept[old]
            used[0] -= entry[0]
            if entry[1] >= least:
                entry[1] = 0
                main.append(old)
                used[1] += entry[0]
                evict_main()
            else:
                del kept[old]
                ghost[old] = entry[0]
                used[2] += entry[0]
                while used[2] > size - small_size:
                    used[2] -= ghost.popitem(last=False)[1]
        return False

    return ask


def w_tinylfu(size: int, window_share: float = 0.01) -> Policy:
    """Einziger and others 2017: a window of 1 % by LRU, then segmented LRU (80 % protected), entered by who was asked for more often than whom it
    would replace. Counts are exact here, and halved after ten times as many requests as answers fit."""
    window, probation, protected = OrderedDict[int, int](), OrderedDict[int, int](), OrderedDict[int, int]()
    window_size = int(size * window_share)
    main_size = size - window_size
    protected_size = int(main_size * 0.8)
    used = [0, 0, 0]
    counts: dict[int, int] = {}
    seen = 0
    sample = 10 * size // MEAN

    def ask(key: int, n: int) -> bool:
        nonlocal seen
        counts[key] = min(counts.get(key, 0) + 1, 15)
        seen += 1
        if seen >= sample:
            seen //= 2
            for k in list(counts):
                if counts[k] == 1:
                    del counts[k]
                else:
                    counts[k] //= 2
        if key in protected:
            protected.move_to_end(key)
            return True
        if key in window:
            window.move_to_end(key)
            return True
        if key in probation:
            used[1] -= probation[key]
            protected[key] = probation.pop(key)
            used[2] += n
            while used[2] > protected_size:
                old, m = protected.popitem(last=False)
                probation[old] = m
                used[2] -= m
                used[1] += m
            return True
        window[key] = n
        used[0] += n
        while used[0] > window_size:
            came, m = window.popitem(last=False)
            used[0] -= m
            enter(came, m)
        return False

    def enter(came: int, m: int) -> None:
        victims, room = [], main_size - used[1] - used[2]
        oldest = iter(itertools.chain(probation.items(), protected.items()))
        while room < m:
            victim, v = next(oldest, (-1, 0))
            if victim < 0 or counts.get(victim, 0) >= counts.get(came, 0):
                return
            victims.append(victim)
            room += v
        for victim in victims:
            at = 1 if victim in probation else 2
            used[at] -= (probation if at == 1 else protected).pop(victim)
        probation[came] = m
        used[1] += m

    return ask


def gwcore(size: int) -> Policy:
    store = CopyStore.create(size, 1)
    worker = CopyStore.attach(store.fd, 0)
    worker.put(b"%15d" % 0)
    overhead = store.figures()["stored_bytes"]
    worker.drop(b"%15d" % 0)
    bodies = bytes(1 << 18)
    find, put = worker.find, worker.put

    def ask(key: int, n: int) -> bool:
        name = b"%15d" % key
        if find(name, True) is not None:
            worker.turn(False)
            return True
        worker.turn(False)
        put(name, bodies[: n - overhead])
        return False

    return ask


POLICIES: dict[str, Callable[[int], Policy]] = {
    "LRU": lru,
    "SIEVE": sieve,
    "W-TinyLFU": w_tinylfu,
    "S3-FIFO": s3_fifo,
    "gwcore": gwcore,
}


def ratios(requests: Trace, ask: Policy) -> tuple[float, float]:
    """Of requests, and of bytes."""
    for key, n in requests[:WARM]:
        ask(key, n)
    hits = hit_bytes = all_bytes = 0
    for key, n in requests[WARM:]:
        all_bytes += n
        if ask(key, n):
            hits += 1
            hit_bytes += n
    return hits / (len(requests) - WARM), hit_bytes / all_bytes


def hit_ratios() -> None:
    print(f"Hit ratio of requests, %; {KEYS} answers of {MEAN} bytes on average, {REQUESTS - WARM} requests after {WARM}\n")
    print(f"| size | skew | sizes | scans | {' | '.join(POLICIES)} | of the best |")
    print("|" + "---|" * (len(POLICIES) + 5))
    cases = [(s, spread, scans, 10 << 20) for s in (0.7, 0.9, 1.1) for spread in (False, True) for scans in (False, True)]
    cases += [(0.9, True, True, 2 << 20), (0.9, True, True, 40 << 20)]
    worst = 1.0
    for skew, spread, scans, size in cases:
        requests = trace(skew, spread, scans)
        got = {name: ratios(requests, make(size))[0] for name, make in POLICIES.items()}
        share = got["gwcore"] / max(got.values())
        worst = min(worst, share)
        print(
            f"| {size >> 20} MiB | {skew} | {'log-normal' if spread else 'fixed'} | {'a fifth' if scans else 'none'} | "
            + " | ".join(f"{100 * v:.2f}" for v in got.values())
            + f" | {share:.4f} |",
            flush=True,
        )
    print(f"\nworst share of the best: {worst:.4f}")


def times() -> None:
    store = CopyStore.create(64 << 20, 2)
    worker = CopyStore.attach(store.fd, 0)
    r = random.Random(1)
    for body in (0, 1024, 16384):
        hot, many = (
            [b"hot %58d" % i for i in range(100)],
            [b"key %58d" % i for i in range(min(40_000, (24 << 20) // (body + 400)))],
        )
        for key in many + hot:
            worker.put(key, bytes(body), bytes(250))
        r.shuffle(many)
        for what, keys in (("100 that are asked for all the time", hot), (f"one of {len(many)}", many)):
            best = min(worker.repeat_find(keys, max(1, 400_000 // len(keys))) for _ in range(5))
            print(f"find, body of {body:5}, {what}: {best:.0f} ns")
        fresh = [b"new %58d" % r.randrange(1 << 60) for _ in range(20_000)]
        start = time.perf_counter()
        best = worker.repeat_put(fresh, bytes(body), bytes(250))
        print(f"put, body of {body:5}, evicting: {best:.0f} ns ({time.perf_counter() - start:.2f} s)")
    print(f"no answer: {min(worker.repeat_find([b'none %58d' % i for i in range(10000)], 40) for _ in range(5)):.0f} ns")


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--times", action="store_true")
    (times if options.parse_args().times else hit_ratios)()
