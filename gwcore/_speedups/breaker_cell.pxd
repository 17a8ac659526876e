# Level 3. A breaker that processes share: a cell that all read, a lane for each that it alone writes.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from gwcore._speedups.breaker_core cimport (
    BRK_ADMITTED, BRK_CLOSED, BreakerCore, BreakerFigures, BreakerRules, PermitRef, brk_load,
)

cdef enum:
    BREAKER_TICK_US = 50000      # so often the lanes are folded
    BREAKER_EVENTS = 256
    SUPERVISOR = 0xffff          # as a number of a process; workers are 1 ..
    WORD_PLAIN = 4               # of a cell's word: admit without a further look
    WORD_GENERATION = 3          # and from this bit on

cdef struct BreakerLane:         # one worker's share of one breaker. Counts never go back
    uint64_t admitted            # without probes
    uint64_t ok[2]               # results that are evidence, by the lowest bit of their generation
    uint64_t bad[2]
    uint64_t pressure[2]         # in thousandths
    uint64_t succeeded
    uint64_t failed
    uint64_t cancelled
    uint64_t probes_ended        # of the three
    uint64_t uncounted           # cancelled, of those issued since the last result
    uint64_t slow
    uint64_t stale
    uint64_t blamed              # failures that showed after the verdict
    uint64_t refused[5]
    int64_t first_bad_us         # in the tick of bad_epoch
    uint32_t bad_epoch
    uint32_t cells[161]          # latencies
    # of the folder
    uint64_t seen_admitted
    uint64_t seen_uncounted
    uint64_t seen_ok[2]
    uint64_t seen_bad[2]
    uint64_t seen_pressure[2]
    uint64_t seen_succeeded      # while it is the same no latency is new
    uint64_t seen_failed
    uint32_t seen_cells[161]
    # of the supervisor
    uint64_t expired             # out when their worker died

cdef struct BreakerCell:
    uint32_t word                # state, WORD_PLAIN, generation: published at the end of whatever changes the core
    uint32_t touched             # something happened since the last fold
    int64_t due_us               # the next fold
    int64_t refuse_until_us      # while OPEN
    int64_t issued_us
    int64_t slow_limit_us        # 0 = not known
    int64_t latency_limit_us
    uint32_t slow_weight         # of a slow success in pressure, in thousandths
    uint32_t epoch               # folds
    double shed                  # the probability P
    double ramp                  # the share that is admitted
    uint32_t ramp_second
    uint32_t ramp_passed
    uint32_t level               # of degradation: 0, 1, 2
    uint32_t out                 # of an upstream: its endpoints that are not CLOSED
    uint32_t lock                # number of the process that changes the core; 0 = nobody
    uint32_t on
    uint64_t identity            # of what the breaker is for; another one begins anew
    uint64_t granted             # probes, since the start
    int64_t level_up_us          # the score is high enough for more since then; 0 = it is not
    int64_t level_down_us
    int64_t since_us             # of the state
    int64_t level_since_us
    int64_t level_seen_us        # when it was looked at last
    BreakerCore core

cdef struct BreakerEvent:
    uint64_t serial              # written last; 0 = being written
    int64_t at_us
    uint32_t which               # number of the cell
    uint32_t generation
    uint8_t was
    uint8_t to
    uint8_t why
    uint8_t forced
    uint32_t process
    BreakerFigures figures

cdef struct BreakerEvents:       # a ring, written by whoever makes a transition
    uint64_t head
    BreakerEvent ring[256]

cdef struct BreakerView:         # a breaker as one process sees it
    BreakerCell *cell
    BreakerLane *lane            # its own; NULL for the supervisor
    char *first                  # the lane of worker 0
    uint64_t stride              # from one worker's lane to the next one's
    uint32_t workers
    uint32_t process             # number of the worker + 1, or SUPERVISOR
    uint32_t which
    uint32_t on                  # by the present plan
    BreakerEvents *events

cdef bint cell_lock(BreakerCell *c, uint32_t process) noexcept nogil
cdef bint cell_lock_wait(BreakerCell *c, uint32_t process) noexcept nogil
cdef void cell_unlock(const BreakerView *v) noexcept nogil
cdef int cell_look(const BreakerView *v, int64_t now_us, double chance, uint32_t tier, PermitRef *permit) noexcept nogil
cdef bint cell_would_admit(const BreakerCell *c, int64_t now_us) noexcept nogil
cdef bint cell_end(const BreakerView *v, PermitRef *permit, int outcome, int64_t latency_us, int64_t now_us) noexcept nogil
cdef void cell_blame(const BreakerView *v, int64_t now_us) noexcept nogil
cdef bint cell_fold(const BreakerView *v, int64_t now_us, double chance, bint may_open) noexcept nogil
cdef void cell_fold_locked(const BreakerView *v, int64_t now_us, double chance, bint may_open) noexcept nogil
cdef bint cell_eject_locked(const BreakerView *v, int64_t now_us, double chance) noexcept nogil
cdef void cell_use(BreakerView *v, const BreakerRules *rules, uint64_t identity, int64_t now_us) noexcept nogil
cdef void cell_retire(const BreakerView *v, BreakerLane *lane, uint32_t process, int64_t now_us) noexcept nogil
cdef void cell_force(const BreakerView *v, int to, int64_t now_us, int64_t for_us) noexcept nogil
cdef void cell_hint(const BreakerView *v, int64_t now_us) noexcept nogil
cdef dict cell_snapshot(const BreakerView *v, int64_t now_us)
cdef dict event_words(const BreakerEvent *e)

cdef inline BreakerLane *cell_lane(const BreakerView *v, uint32_t worker) noexcept nogil:
    return <BreakerLane *>(v.first + worker * v.stride)

cdef inline uint32_t cell_state(const BreakerCell *c) noexcept nogil:
    return brk_load(&c.word) & 3

cdef inline bint cell_plain(const BreakerCell *c) noexcept nogil:
    return brk_load(&c.word) & WORD_PLAIN != 0

cdef inline int cell_grant(const BreakerView *v, uint32_t word, int64_t now_us, PermitRef *permit) noexcept nogil:
    """A permit that is no probe, of the generation that word names."""
    v.lane.admitted += 1
    permit.generation = word >> WORD_GENERATION
    permit.lease = 0
    permit.live = 1
    permit.started_us = now_us
    return BRK_ADMITTED

cdef inline int cell_admit(const BreakerView *v, int64_t now_us, double chance, uint32_t tier, PermitRef *permit) noexcept nogil:
    """BRK_ADMITTED, and the permit is live; or a BreakerRefusal. chance (from [0, 1)) matters where the word is not plain."""
    cdef uint32_t word = brk_load(&v.cell.word)
    if not word & WORD_PLAIN:
        return cell_look(v, now_us, chance, tier, permit)
    return cell_grant(v, word, now_us, permit)
