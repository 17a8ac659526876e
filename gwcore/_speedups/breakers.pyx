"""The breakers in the shared segment, as the supervisor looks at them and acts on them."""
import time

from libc.stdint cimport int64_t, uint64_t

from gwcore._speedups.breaker_cell cimport (
    BREAKER_EVENTS, BreakerEvent, BreakerView, SUPERVISOR, cell_force, cell_hint, cell_snapshot, cell_state, event_words,
)
from gwcore._speedups.breaker_core cimport FORCE_CLOSED, FORCE_NONE, FORCE_OPEN
from gwcore._speedups.shm cimport Segment, UPSTREAM_CELLS, segment_breaker

cdef extern from * nogil:
    """
    #define brk_load64(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    """
    uint64_t brk_load64(const uint64_t *p)

FORCES = {"open": FORCE_OPEN, "closed": FORCE_CLOSED, "auto": FORCE_NONE}


cdef int64_t now_us():
    return time.monotonic_ns() // 1000


cdef class Breakers:
    """The breakers of every upstream and endpoint that has a place in `segment`. Endpoints are named "upstream|address"."""
    cdef readonly Segment segment
    cdef uint64_t read                   # events taken so far

    def __init__(self, Segment segment):
        self.segment = segment

    cdef bint _view(self, str upstream, str endpoint, BreakerView *v) except -1:
        """False: nobody has that name, or its breaker was never on."""
        kind, name = ("endpoint", f"{upstream}|{endpoint}") if endpoint else ("upstream", upstream)
        slot = self.segment.names[kind].get(name)
        if slot is None:
            return False
        segment_breaker(self.segment.mem, SUPERVISOR, slot + (UPSTREAM_CELLS if endpoint else 0), v)
        return v.cell.on

    def snapshot(self, upstream: str, endpoint: str = "") -> dict | None:
        """Every figure of a breaker as of now; None when there is none."""
        cdef BreakerView v
        return cell_snapshot(&v, now_us()) if self._view(upstream, endpoint, &v) else None

    def endpoints(self, upstream: str) -> list[str]:
        """Addresses that have or had a place, those of names with a number behind: "host:port|1"."""
        return [name.split("|", 1)[1] for name in self.segment.names["endpoint"] if name.startswith(upstream + "|")]

    def state(self, upstream: str, endpoint: str = "") -> str | None:
        """"closed", "open" or "half_open"; None when there is no such breaker."""
        cdef BreakerView v
        return ("closed", "open", "half_open")[cell_state(v.cell)] if self._view(upstream, endpoint, &v) else None

    def level(self, upstream: str) -> int:
        """The degradation level of an upstream, 0 to 2."""
        cdef BreakerView v
        return v.cell.level if self._view(upstream, "", &v) else 0

    def force(self, state: str, upstream: str, endpoint: str = "", for_s: float = 0.0) -> bool:
        """Whatever the evidence: "open" refuses everything, "closed" admits everything, "auto" decides by itself again; after for_s (0 =
        never) it is auto. False when there is no such breaker. ValueError on another state."""
        cdef BreakerView v
        cdef BreakerView parent
        if state not in FORCES:
            raise ValueError("state must be open, closed or auto")
        if not 0 <= for_s < 1e9:
            raise ValueError("for must be a duration")
        if not self._view(upstream, endpoint, &v):
            return False
        cell_force(&v, FORCES[state], now_us(), <int64_t>(for_s * 1e6))
        if endpoint and cell_state(v.cell):
            self._view(upstream, "", &parent)
            parent.cell.out += parent.cell.out == 0          # now, not at the next tick
        return True

    def hint_healthy(self, upstream: str, endpoint: str = "") -> bool:
        """An active check passed: an open interval ends, a second after it began at the soonest. False when there is no such breaker."""
        cdef BreakerView v
        if not self._view(upstream, endpoint, &v):
            return False
        cell_hint(&v, now_us())
        return True

    def events(self) -> list[dict]:
        """Transitions since the last call, oldest first, at most 256. `at` is unix time, `lost` how many came before that were overwritten."""
        cdef BreakerView v
        cdef BreakerEvent e
        cdef uint64_t head, serial
        segment_breaker(self.segment.mem, SUPERVISOR, 0, &v)
        head = brk_load64(&v.events.head)
        lost = max(0, <int64_t>(head - self.read) - <int>BREAKER_EVENTS)
        out = []
        names = None
        serial = self.read + lost
        while serial < head:
            serial += 1
            e = v.events.ring[serial % BREAKER_EVENTS]
            if brk_load64(&v.events.ring[serial % BREAKER_EVENTS].serial) != serial or e.serial != serial:
                if serial + BREAKER_EVENTS <= brk_load64(&v.events.head):
                    lost += 1
                    continue
                serial -= 1                  # being written: next time
                break
            if names is None:
                names = {slot: (name, "") for name, slot in self.segment.names["upstream"].items()}
                names |= {UPSTREAM_CELLS + slot: tuple(name.split("|", 1)) for name, slot in self.segment.names["endpoint"].items()}
                offset = time.time() - time.monotonic()
            upstream, endpoint = names.get(e.which, ("", ""))
            words = event_words(&e)
            at = words.pop("at_us") / 1e6 + offset
            out.append({"at": round(at, 3), "event": "breaker", "upstream": upstream, "endpoint": endpoint, **words, "lost": lost})
            lost = 0
        self.read = serial
        return out
