"""A shared breaker in memory of its own, with as many workers as a test wants. For tests and benchmarks."""
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

from gwcore._speedups.breaker_cell cimport (
    BREAKER_EVENTS, BreakerCell, BreakerEvents, BreakerLane, BreakerView, SUPERVISOR, cell_admit, cell_blame, cell_end, cell_fold, cell_force,
    cell_hint, cell_lock, cell_retire, cell_snapshot, cell_state, cell_unlock, cell_use, event_words,
)
from gwcore._speedups.breaker_core cimport BRK_CLOSED, BreakerRules, OUTCOME_CANCEL, OUTCOME_FAILURE, OUTCOME_SUCCESS, PermitRef

REFUSALS = ("", "open", "probe_limit", "shed", "ramp")


cdef class SharedPermit:
    """Of one worker. `refusal` is empty while it is live."""
    cdef PermitRef ref
    cdef readonly int worker
    cdef readonly str refusal

    @property
    def probe(self):
        return self.ref.lease != 0

    @property
    def generation(self):
        return self.ref.generation


cdef class SharedBreaker:
    """SharedBreaker(workers, rules): rules are the fields of BreakerRules. Times are microseconds, above 0."""
    cdef BreakerCell *cell
    cdef BreakerLane *lanes
    cdef BreakerEvents *ring
    cdef readonly int workers
    cdef uint32_t told

    def __cinit__(self, int workers, dict rules, int64_t now_us=1):
        self.workers = workers
        self.cell = <BreakerCell *>calloc(1, sizeof(BreakerCell))
        self.lanes = <BreakerLane *>calloc(workers, sizeof(BreakerLane))
        self.ring = <BreakerEvents *>calloc(1, sizeof(BreakerEvents))
        if self.cell == NULL or self.lanes == NULL or self.ring == NULL:
            raise MemoryError
        self.use(rules, now_us)

    def __dealloc__(self):
        free(self.cell)
        free(self.lanes)
        free(self.ring)

    cdef BreakerView _view(self, int worker):
        cdef BreakerView v
        v.cell, v.events, v.first, v.stride, v.workers = self.cell, self.ring, <char *>self.lanes, sizeof(BreakerLane), self.workers
        v.which, v.on = 0, 1
        v.process = worker + 1 if worker >= 0 else SUPERVISOR
        v.lane = &self.lanes[worker] if worker >= 0 else NULL
        return v

    def use(self, dict rules, int64_t now_us, identity: int = 1) -> None:
        cdef BreakerRules r = rules
        cdef BreakerView v = self._view(-1)
        cell_use(&v, &r, identity, now_us)

    def admit(self, int worker, int64_t now_us, double chance=0.5, uint32_t tier=1, bint tick=True) -> SharedPermit:
        """As the data plane does; tick: fold when that is due."""
        cdef SharedPermit p = SharedPermit()
        cdef BreakerView v = self._view(worker)
        if tick and now_us >= self.cell.due_us:
            cell_fold(&v, now_us, chance, True)
        p.worker = worker
        p.refusal = REFUSALS[cell_admit(&v, now_us, chance, tier, &p.ref)]
        return p

    def end(self, SharedPermit p, int outcome, int64_t latency_us, int64_t now_us, double chance=0.5, bint tick=True) -> bool:
        """outcome: 0 success, 1 failure, 2 pressure, 3 cancel."""
        cdef BreakerView v = self._view(p.worker)
        cdef bint probe = p.ref.lease != 0
        cdef bint done = cell_end(&v, &p.ref, outcome, latency_us, now_us)
        if tick and (probe or now_us >= self.cell.due_us):
            cell_fold(&v, now_us, chance, True)
        return done

    def blame(self, int worker, int64_t now_us) -> None:
        cdef BreakerView v = self._view(worker)
        cell_blame(&v, now_us)

    def fold(self, int64_t now_us, int worker=0, double chance=0.5, bint may_open=True) -> bool:
        cdef BreakerView v = self._view(worker)
        return cell_fold(&v, now_us, chance, may_open)

    def hold(self, int worker) -> bool:
        """Take the lock, and die there unless `release` follows."""
        return cell_lock(self.cell, worker + 1)

    def release(self, int worker) -> None:
        cdef BreakerView v = self._view(worker)
        cell_unlock(&v)

    def retire(self, int worker, int64_t now_us) -> None:
        """What the supervisor does when a worker died."""
        cdef BreakerView v = self._view(-1)
        cell_retire(&v, &self.lanes[worker], worker + 1, now_us)

    def force(self, int to, int64_t now_us, int64_t for_us=0) -> None:
        """to: 0 auto, 1 open, 2 closed, -1 reset."""
        cdef BreakerView v = self._view(-1)
        cell_force(&v, to, now_us, for_us)

    def hint(self, int64_t now_us) -> None:
        cdef BreakerView v = self._view(-1)
        cell_hint(&v, now_us)

    def snapshot(self, int64_t now_us) -> dict:
        cdef BreakerView v = self._view(-1)
        return cell_snapshot(&v, now_us)

    @property
    def state(self) -> str:
        return ("closed", "open", "half_open")[cell_state(self.cell)]

    @property
    def locked(self) -> int:
        return self.cell.lock

    def events(self) -> list[dict]:
        """Transitions since the last call."""
        out = []
        while self.told < self.ring.head:
            self.told += 1
            out.append(event_words(&self.ring.ring[self.told % BREAKER_EVENTS]))
        return out

    def hammer(self, int worker, uint32_t n, uint32_t bad_in_10) -> int:
        """n calls a microsecond apart without the GIL, some of which fail or are cancelled. Returns how many were admitted."""
        cdef BreakerView v = self._view(worker)
        cdef PermitRef p
        cdef uint32_t i
        cdef int64_t now_us = 1000
        cdef int admitted = 0, outcome
        with nogil:
            for i in range(n):
                now_us += 1
                if now_us >= self.cell.due_us:
                    cell_fold(&v, now_us, 0.5, True)
                if cell_admit(&v, now_us, (i % 97) / 97.0, i % 3, &p) == 0:
                    admitted += 1
                    outcome = OUTCOME_FAILURE if i % 10 < bad_in_10 else OUTCOME_CANCEL if i % 10 == 9 else OUTCOME_SUCCESS
                    cell_end(&v, &p, outcome, 1000, now_us)
        return admitted

    def pairs(self, uint32_t n) -> None:
        """n admitted calls that succeed, a microsecond apart, folds included; what a request pays for one breaker."""
        cdef BreakerView v = self._view(0)
        cdef PermitRef p
        cdef uint32_t _i
        cdef int64_t now_us = self.cell.due_us
        with nogil:
            for _i in range(n):
                now_us += 1
                if now_us >= self.cell.due_us:
                    cell_fold(&v, now_us, 0.5, True)
                cell_admit(&v, now_us, 0.5, 1, &p)
                cell_end(&v, &p, OUTCOME_SUCCESS, 1000, now_us)
                if now_us >= self.cell.due_us:
                    cell_fold(&v, now_us, 0.5, True)
        assert cell_state(self.cell) == BRK_CLOSED
