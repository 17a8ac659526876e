# Level 1. A timer wheel of two levels: 256 slots of 1 ms, 512 slots of 256 ms (131 s); later timers wait in the farthest slot.
# A timer is embedded in what it guards and names it by slab place. Moving a deadline later costs one store: the wheel
# notices at the old place. All times are milliseconds of CLOCK_MONOTONIC, given by the caller.
from gwcore._speedups.types cimport Link, uint32_t, uint64_t

cdef struct Timer:
    Link link                # must stay the first member
    uint64_t due_ms          # when it is due; 0 = not armed
    uint64_t at_ms           # the place where it is linked: never after due_ms
    uint32_t owner           # slab place of what it guards
    uint32_t kind            # which slab (the reactor's business)

cdef struct Wheel:
    Link near[256]
    Link far[512]
    Link due                 # timers met, waiting for wheel_pop
    uint64_t now_ms          # ticks up to here are done
    uint32_t armed           # timers linked
    uint64_t near_bits[4]    # slots that may hold something
    uint64_t far_bits[8]

cdef void wheel_init(Wheel *w, uint64_t now_ms) noexcept nogil
cdef void timer_init(Timer *t, uint32_t owner, uint32_t kind) noexcept nogil
cdef void timer_link(Wheel *w, Timer *t) noexcept nogil
cdef void timer_cancel(Wheel *w, Timer *t) noexcept nogil
cdef void wheel_advance(Wheel *w, uint64_t now_ms) noexcept nogil
cdef Timer *wheel_pop(Wheel *w) noexcept nogil
cdef uint64_t wheel_next_ms(const Wheel *w) noexcept nogil

cdef inline void timer_arm(Wheel *w, Timer *t, uint64_t due_ms) noexcept nogil:
    """Set or move the deadline."""
    t.due_ms = due_ms
    if t.at_ms == 0 or due_ms < t.at_ms:
        timer_link(w, t)
