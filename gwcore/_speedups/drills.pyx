"""The drills in the shared segment, as the supervisor begins, ends and reads them."""
import time

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from gwcore._speedups.histogram cimport histogram_quantile_us
from gwcore._speedups.reasons cimport R_COUNT, reason_row
from gwcore._speedups.shm cimport DRILLS, DRILL_ENDS, ROUTE_CELLS, Drill, Segment, gw_atomic_load, gw_atomic_load64, gw_atomic_store, gw_atomic_store64

FAULT_WORDS = ("none", "503", "timeout", "slow")                     # Fault
END_WORDS = ("live", "copy", "static", "refused", "left")            # DrillEnd


cdef class Drills:
    """The drills of `segment`: those under way, and the figures of the last ones. It has no state of its own."""
    cdef readonly Segment segment

    def __init__(self, Segment segment):
        self.segment = segment

    def start(self, route: str, fault: str, share: float, for_ms: int, delay_ms: int = 0) -> int:
        """Let a share (above 0, at most 1) of a route's requests fail for so long, as a word of FAULT_WORDS says; `slow` ones wait delay_ms first.
        The drill's number. ValueError, in words for an operator, when that cannot be now."""
        cdef Drill *d
        cdef Drill *free = NULL
        cdef uint64_t now_ms = time.monotonic_ns() // 1_000_000
        cdef uint32_t slot = self.segment.slot("route", route)
        cdef uint32_t serial = 0, i
        if slot == ROUTE_CELLS - 1:
            raise ValueError(f"route {route} has no figures of its own, for there are too many routes: it cannot be drilled")
        for i in range(DRILLS):
            d = &self.segment.mem.drills[i]
            serial = max(serial, d.serial)
            if d.until_ms > now_ms:
                if d.slot == slot:
                    raise ValueError(f"a drill of route {route} is under way; end it first (DELETE /drill?route={route})")
            elif free == NULL or d.serial < free.serial:
                free = d
        if free == NULL:
            raise ValueError(f"{DRILLS} drills are under way; there is no room for another")
        gw_atomic_store64(&free.until_ms, 0)
        gw_atomic_store(&free.serial, serial + 1)        # from now on the last drill's requests are not counted here
        memset(&free.drawn, 0, sizeof(Drill) - (<char *>&free.drawn - <char *>free))
        free.slot, free.fault, free.delay_ms = slot, FAULT_WORDS.index(fault), delay_ms
        free.share = max(1, round(share * 65536))
        gw_atomic_store64(&free.until_ms, now_ms + for_ms)
        self.settle()
        return serial + 1

    cdef void settle(self):
        """So that nobody looks while none is under way."""
        cdef uint32_t i, last = 0
        for i in range(DRILLS):
            if self.segment.mem.drills[i].until_ms:
                last = i + 1
        gw_atomic_store(&self.segment.mem.drilled, last)

    def stop(self, serial: int) -> bool:
        """Draw no more. False: it was stopped before. One whose time is over is to be stopped, too."""
        cdef uint32_t i
        for i in range(DRILLS):
            if self.segment.mem.drills[i].serial == serial and self.segment.mem.drills[i].until_ms:
                gw_atomic_store64(&self.segment.mem.drills[i].until_ms, 0)
                self.settle()
                return True
        return False

    def list(self) -> list[dict]:
        """All that is known, oldest first."""
        cdef Drill *d
        cdef uint32_t i, k
        cdef uint64_t now_ms = time.monotonic_ns() // 1_000_000
        names = {slot: name for name, slot in self.segment.names["route"].items()}
        out = []
        for i in range(DRILLS):
            d = &self.segment.mem.drills[i]
            if d.serial == 0:
                continue
            ends = {word: gw_atomic_load(&d.ends[k]) for k, word in enumerate(END_WORDS)}
            until = gw_atomic_load64(&d.until_ms)
            out.append({
                "number": d.serial, "route": names.get(d.slot, "other"), "fail": FAULT_WORDS[d.fault], "share": round(d.share / 65536.0, 4),
                "delay_s": d.delay_ms / 1000.0, "remaining_s": max(0.0, (until - now_ms) / 1000.0) if until > now_ms else 0.0,
                "drawn": gw_atomic_load(&d.drawn), "waiting": gw_atomic_load(&d.drawn) - sum(ends.values()), **ends,
                "reasons": {reason_row(k).word.decode(): d.refused[k] for k in range(R_COUNT) if d.refused[k]},
                "late": d.late, "lost": d.lost, "unkept": d.unkept,
                "p50_s": histogram_quantile_us(d.seconds, 0.5) / 1e6, "p99_s": histogram_quantile_us(d.seconds, 0.99) / 1e6,
                "max_s": d.max_us / 1e6,
            })
        return sorted(out, key=lambda row: row["number"])


assert len(END_WORDS) == DRILL_ENDS
