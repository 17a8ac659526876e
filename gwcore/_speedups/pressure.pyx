"""Pressure. Ten times a second while there are requests, a worker takes five figures, each a share of what there is: its memory, its busy connections, its
descriptors, how late the loop is for its timers, and how long events wait for the CPU. Each is smoothed over a second, and the highest is the load.
Lower tiers are refused first, in proportion. A single stall, however long, refuses nobody.

Idle connections count as nothing, for they are closed when room is wanted. An event's wait is that of the timer's own event, which queues in
the kernel's list like all others."""
from libc.math cimport exp, fmax, fmin
from libc.stdint cimport uint64_t

from gwcore._speedups.conn cimport LOAD_CONNECTIONS, LOAD_CPU, LOAD_DESCRIPTORS, LOAD_FIGURES, LOAD_LAG, LOAD_MEMORY, Pressure, random_next
from gwcore._speedups.plan cimport PlanHead
from gwcore._speedups.sys cimport O_CLOEXEC, O_RDONLY, close, getpagesize, open, pread
from gwcore._speedups.timer cimport timer_arm

cdef enum:
    DRAW = 65536
    MEMORY_PULSES = 10       # memory is looked at once in so many
    STALL_PULSES = 2         # a longer time between two pulses weighs no more than this

cdef double FIGURE_MOST = 2          # so that what is over is forgotten soon
cdef double SHED_SPAN = 0.05         # of load, from the first refusals to all


cdef void pressure_start(Worker *w) noexcept nogil:
    if w.plan == NULL or w.plan.head.shed_from[0] == 0:
        w.pressure.requests = w.lane.worker.requests
        return
    w.pressure.seen_ms = w.now_ms
    w.pressure.wait_us = 0
    pulse_in(w)


cdef void pulse_in(Worker *w) noexcept nogil:
    w.pressure.due_ms = w.now_ms + PULSE_MS - random_next(w) % (PULSE_MS // 2)     # in no step with stalls that are regular themselves
    timer_arm(&w.wheel, &w.pulse, w.pressure.due_ms)


cdef void pressure_pulse(Worker *w) noexcept nogil:
    """The pulse's timer. Without requests since the last one it stops, and the load is forgotten."""
    cdef Pressure *p = &w.pressure
    cdef const PlanHead *plan = w.plan.head
    cdef uint64_t idle = w.clients.used - w.exchanges.used if w.clients.used > w.exchanges.used else 0
    cdef double now[LOAD_FIGURES]
    cdef double weight = 1 - exp(-fmin(w.now_ms - p.seen_ms, STALL_PULSES * PULSE_MS) / 1000.0)
    cdef int i
    if plan.shed_from[0] == 0 or (w.exchanges.used == 0 and w.lane.worker.requests == p.requests):
        pressure_forget(w)
        return
    if p.pulses % MEMORY_PULSES == 0:
        p.resident_bytes = resident(p)
    now[<int>LOAD_MEMORY] = share(p.resident_bytes, plan.memory_bytes)
    if w.bufs.max_bytes:
        now[<int>LOAD_MEMORY] = fmax(now[<int>LOAD_MEMORY], share(w.bufs.used_bytes, w.bufs.max_bytes))
    now[<int>LOAD_CONNECTIONS] = share(w.exchanges.used, w.connection_limit)
    now[<int>LOAD_DESCRIPTORS] = share(w.fds - idle if w.fds > idle else 0, w.fd_limit)
    now[<int>LOAD_LAG] = share(w.now_ms - p.due_ms, plan.lag_ms)
    now[<int>LOAD_CPU] = share(p.wait_us, <uint64_t>plan.wait_ms * 1000)
    p.load = 0
    for i in range(LOAD_FIGURES):
        p.figures[i] += (fmin(now[i], FIGURE_MOST) - p.figures[i]) * weight
        if p.figures[i] > p.load:
            p.load, p.highest = p.figures[i], i
    p.seen_ms, p.requests, p.wait_us = w.now_ms, w.lane.worker.requests, 0
    p.pulses += 1
    chances(w)
    pulse_in(w)


cdef void pressure_forget(Worker *w) noexcept nogil:
    cdef Pressure *p = &w.pressure
    cdef int i
    for i in range(LOAD_FIGURES):
        p.figures[i] = 0
    p.load = 0
    p.pulses = 0
    p.requests = w.lane.worker.requests
    chances(w)


cdef void chances(Worker *w) noexcept nogil:
    """Whom the present load refuses."""
    cdef Pressure *p = &w.pressure
    cdef double over
    cdef int i
    p.shedding = False
    for i in range(3):
        over = (p.load - w.plan.head.shed_from[i] / 1000.0) / SHED_SPAN if w.plan.head.shed_from[i] else 0
        p.chance[i] = <uint32_t>(fmax(0, fmin(1, over)) * DRAW)
        p.shedding = p.shedding or p.chance[i] != 0
    w.lane.worker.load, w.lane.worker.load_of = <uint64_t>(p.load * 1000), p.highest


cdef bint pressure_refuses(Worker *w, uint32_t tier) noexcept nogil:
    """Is a new request of this tier to be refused? Drawn by lot while the load is within the tier's span."""
    return random_next(w) >> 20 & (DRAW - 1) < w.pressure.chance[tier]


cdef double share(uint64_t used, uint64_t most) noexcept nogil:
    return <double>used / most if most else 0


cdef uint64_t resident(Pressure *p) noexcept nogil:
    """Bytes of memory that are this process's alone (/proc/self/statm: size, resident, shared, in pages)."""
    cdef char text[128]
    cdef uint64_t numbers[3]
    cdef ssize_t n, i
    cdef int at = 0
    if p.statm_fd == 0:
        p.statm_fd = open(b"/proc/self/statm", O_RDONLY | O_CLOEXEC) + 1
        if p.statm_fd == 0:
            return 0
    n = pread(p.statm_fd - 1, text, sizeof(text), 0)
    numbers[0] = numbers[1] = numbers[2] = 0
    for i in range(n):
        if text[i] == c' ':
            at += 1
            if at == 3:
                break
        else:
            numbers[at] = numbers[at] * 10 + <uint64_t>(text[i] - 48)
    return (numbers[1] - numbers[2]) * <uint64_t>getpagesize() if numbers[1] > numbers[2] else 0


cdef void pressure_close(Worker *w) noexcept nogil:
    if w.pressure.statm_fd:
        close(w.pressure.statm_fd - 1)
        w.pressure.statm_fd = 0
