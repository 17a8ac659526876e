"""The ladder: what a request may get when live is refused, fails, or is late. Its steps are in the plan (`Ladder`); here they are taken.

A static body may hold fields of the request. Of a head that is gone by the time of the failure, only path and id are kept for everybody; the
others are copied at the beginning, for ladders that name them."""
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, strlen

from gwcore._speedups.breaker_cell cimport cell_state
from gwcore._speedups.breaker_core cimport BRK_CLOSED
from gwcore._speedups.buffer cimport BUF_HEAD, BUF_LONG, BUF_SMALL, Buf, buf_bytes, buf_give, buf_room, buf_space, buf_take
from gwcore._speedups.fields cimport METHODS, METHOD_SIZE, M_DELETE, M_HEAD, M_PATCH, M_POST, M_PUT
from gwcore._speedups.head cimport Field, field_is
from gwcore._speedups.outlier cimport upstream_tick
from gwcore._speedups.outlist cimport out_add, out_copy, out_number, out_some
from gwcore._speedups.plan cimport (
    ESCAPE_JSON, ESCAPE_MARKUP, PART_HEADER, PART_HOST, PART_ID, PART_METHOD, PART_PATH, PART_QUERY, PART_REASON, PART_ROUTE, PART_TEXT,
    PART_TIER, Ladder, Part, PlanHead, Target, ladder_part, plan_ladder, plan_text,
)
from gwcore._speedups.reasons cimport R_CONCURRENCY_LIMIT, R_DEADLINE, R_DEGRADE_REFUSED, R_FAULT_INJECTED, R_OVERLOAD, SIDE_UPSTREAM, reason_row
from gwcore._speedups.shm cimport FAULT_503, SWITCHES, SWITCH_ROUTE, SWITCH_TIER, Switch, gw_atomic_load, gw_atomic_load64
from gwcore._speedups.story cimport DEGRADED_STATIC
from gwcore._speedups.upstream cimport Upstream

cdef enum:
    KEPT_MOST = 255          # bytes of a field that is kept


cdef struct Pen:             # a body being written, or only measured
    char *at                 # NULL: measured
    size_t n
    uint32_t escape


# ---- the beginning ------------------------------------------------------------------------------------------------

cdef void ladder_begin(Worker *w, Exchange *x, const Head *h, size_t host_len) noexcept nogil:
    """Route and tier are known, and w.host[:host_len] is the request's host: keep what the static step needs of the head."""
    cdef const PlanHead *p = x.plan.head
    cdef const Ladder *l = plan_ladder(p, x.route.ladder[x.tier])
    cdef const Part *part
    cdef uint32_t i
    x.ladder = l
    if l != NULL and l.queue and not x.client.sink:
        x.compensates = h.method == M_POST or h.method == M_PUT or h.method == M_PATCH or h.method == M_DELETE
    if l == NULL or not l.keeps:
        return
    x.kept = buf_take(&w.bufs, BUF_SMALL - BUF_HEAD)
    if x.kept == NULL:
        return
    for i in range(l.parts.n):
        part = ladder_part(p, l, i)
        if part.kind == PART_HOST:
            keep(x.kept, w.host, host_len, False)
        elif part.kind == PART_QUERY:
            keep_query(x.kept, h, plan_text(p, part.text), part.text.len)
        elif part.kind == PART_HEADER:
            keep_header(x.kept, h, plan_text(p, part.text), part.text.len)


cdef void keep(Buf *b, const char *at, size_t n, bint encoded) noexcept nogil:
    """Add a value: its length, then its bytes. encoded: of a query, where `+` is a space and %XX a byte, which stays as it is beyond ASCII."""
    cdef uint8_t *size = <uint8_t *>buf_room(b)
    cdef char *to = <char *>size + 1
    cdef size_t i = 0, used = 0, most = buf_space(b)
    cdef int high, low
    if most == 0:
        return
    most = min(most - 1, <size_t>KEPT_MOST)
    while i < n and used < most:
        to[used] = at[i]
        if encoded and at[i] == c'+':
            to[used] = c' '
        elif encoded and at[i] == c'%' and i + 2 < n:
            high, low = nibble(at[i + 1]), nibble(at[i + 2])
            if 0 <= high < 8 and low >= 0:
                to[used] = <char>(high << 4 | low)
                i += 2
        i += 1
        used += 1
    size[0] = <uint8_t>used
    b.len += <uint32_t>(used + 1)


cdef int nibble(char c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    if c'a' <= c | 32 <= c'f':
        return (c | 32) - c'a' + 10
    return -1


cdef void keep_query(Buf *b, const Head *h, const char *name, size_t n) noexcept nogil:
    """The first value of a name of the query."""
    cdef const char *q = h.base + h.query
    cdef size_t at = 0, end, value
    while at < h.query_len:
        end = at
        while end < h.query_len and q[end] != c'&':
            end += 1
        value = at
        while value < end and q[value] != c'=':
            value += 1
        if value - at == n and memcmp(q + at, name, n) == 0:
            value = value + 1 if value < end else end
            keep(b, q + value, end - value, True)
            return
        at = end + 1
    keep(b, q, 0, False)


cdef void keep_header(Buf *b, const Head *h, const char *name, size_t n) noexcept nogil:
    """The value of the first field of that name (lower case)."""
    cdef const Field *f
    cdef uint32_t i
    for i in range(h.n):
        f = &h.f[i]
        if field_is(h, f, name, n):
            keep(b, h.base + f.value, f.value_len, False)
            return
    keep(b, h.base, 0, False)


cdef bint ladder_holds(Worker *w, Exchange *x) noexcept nogil:
    """The upstream is chosen: is the request answered by the static step without asking it? So while an operator wants that, and while the upstream is
    at level 2 and its breaker is closed; an open one refuses by itself, and lets those through that find out whether it is well again."""
    if x.ladder == NULL or x.ladder.status == 0 or x.client.sink or x.upgrade:
        return False
    if gw_atomic_load(&w.segment.switched) and switched(w, x, x.upstream.slot):
        return True
    return x.tier == 2 and level_of(w, x.upstream) == 2 and cell_state(x.upstream.breaker.cell) == BRK_CLOSED


cdef int ladder_level(Worker *w, const Exchange *x) noexcept nogil:
    """Before an upstream is chosen: the highest level of those that the route may choose, or LEVEL_SWITCHED."""
    cdef const Target *t = <const Target *>(<const char *>x.plan.head + x.route.targets.off)
    cdef Upstream *u
    cdef bint look = gw_atomic_load(&w.segment.switched) != 0
    cdef uint32_t i
    cdef int level = 0
    for i in range(x.route.targets.n):
        u = <Upstream *>x.plan.upstreams[t[i].upstream]
        if look and switched(w, x, u.slot):
            return LEVEL_SWITCHED
        if t[i].weight:
            level = max(level, <int>level_of(w, u))
    return level


cdef uint32_t level_of(Worker *w, Upstream *u) noexcept nogil:
    """The level of an upstream as of now. At 0 that is one load."""
    if not u.breaker.on or u.breaker.cell.level == 0:
        return 0
    if <int64_t>w.now_us >= u.breaker.cell.due_us:
        upstream_tick(w, u)                  # or it would never fall while nobody is let through
    return u.breaker.cell.level


cdef bint switched(Worker *w, const Exchange *x, uint32_t upstream) noexcept nogil:
    """Has an operator switched the request's route, its tier, or that upstream to the ladder?"""
    cdef const Switch *s = w.segment.switches
    cdef uint32_t i, slot
    for i in range(min(gw_atomic_load(&w.segment.switched), <uint32_t>SWITCHES)):
        slot = x.route.slot if s[i].kind == SWITCH_ROUTE else x.tier if s[i].kind == SWITCH_TIER else upstream
        if s[i].slot == slot and gw_atomic_load64(&s[i].until_ms) > w.now_ms:
            return True
    return False


# ---- the static step ----------------------------------------------------------------------------------------------

cdef bint ladder_falls(const Exchange *x, int reason) noexcept nogil:
    """Does a request that fails for that reason take the next step? Not for what its client did, nor for what is wrong here."""
    if x.ladder == NULL or x.client.sink or x.upgrade:
        return False
    if reason == R_FAULT_INJECTED:
        return x.fault != FAULT_503 or ladder_replaces(x, 503)
    return reason_row(reason).side == SIDE_UPSTREAM or reason == R_OVERLOAD or reason == R_CONCURRENCY_LIMIT or reason == R_DEADLINE \
        or reason == R_DEGRADE_REFUSED


cdef bint ladder_static(Worker *w, Exchange *x, OutList *o) noexcept nogil:
    """Write the static answer to o. False: there is none, or no memory for it."""
    cdef const PlanHead *p = x.plan.head
    cdef const Ladder *l = x.ladder
    cdef Buf *body = NULL
    cdef size_t n
    if l.status == 0:
        return False
    if l.plain:
        n = ladder_part(p, l, 0).text.len if l.parts.n else 0
    else:
        n = body_write(x, NULL)
        body = buf_take(&w.bufs, n) if n <= BUF_LONG - BUF_HEAD else NULL
        if body == NULL:
            return False
        body_write(x, buf_bytes(body))
        body.len = <uint32_t>n
        buf_give(&w.bufs, x.kept)
        x.kept = body
    out_some(o, plan_text(p, l.head), l.head.len)
    if l.status != 204 and l.status != 304:
        out_number(o, n, 10)
        out_copy(o, b"\r\n", 2)
    out_copy(o, w.date, 37)
    if not x.keep_alive:
        out_copy(o, b"Connection: close\r\n", 19)
    elif x.http10:
        out_copy(o, b"Connection: keep-alive\r\n", 24)
    out_copy(o, b"\r\n", 2)
    if n and x.method != M_HEAD:
        if body != NULL:
            out_add(o, buf_bytes(body), n)
        else:
            out_some(o, plan_text(p, ladder_part(p, l, 0).text), n)
    x.degraded = DEGRADED_STATIC
    return True


cdef size_t body_write(const Exchange *x, char *at) noexcept nogil:
    """Write the body with its fields to at, or only measure it (NULL); its size."""
    cdef const PlanHead *p = x.plan.head
    cdef const Ladder *l = x.ladder
    cdef const Part *part
    cdef const uint8_t *kept = NULL
    cdef const uint8_t *end = NULL
    cdef char digits[2]
    cdef Pen pen
    cdef uint32_t i
    pen.at, pen.n, pen.escape = at, 0, l.escape
    if x.kept != NULL:
        kept = <const uint8_t *>buf_bytes(x.kept)
        end = kept + x.kept.len
    for i in range(l.parts.n):
        part = ladder_part(p, l, i)
        if part.kind == PART_TEXT:
            text(&pen, plan_text(p, part.text), part.text.len)
        elif part.kind == PART_PATH and x.note != NULL:
            escaped(&pen, buf_bytes(x.note), x.note_path_len)
        elif part.kind == PART_ID and x.note != NULL:
            escaped(&pen, buf_bytes(x.note) + x.note_path_len, x.note_id_len)
        elif part.kind == PART_METHOD:
            escaped(&pen, METHODS[x.method & 63], METHOD_SIZE[x.method & 63])
        elif part.kind == PART_TIER:
            digits[0], digits[1] = c'P', <char>(48 + x.tier)
            text(&pen, digits, 2)
        elif part.kind == PART_ROUTE:
            escaped(&pen, plan_text(p, x.route.name), x.route.name.len)
        elif part.kind == PART_REASON:
            text(&pen, reason_row(x.reason).word, strlen(reason_row(x.reason).word))
        elif (part.kind == PART_HOST or part.kind == PART_QUERY or part.kind == PART_HEADER) and kept < end:
            escaped(&pen, <const char *>kept + 1, kept[0])
            kept += kept[0] + 1
    return pen.n


cdef void text(Pen *pen, const char *at, size_t n) noexcept nogil:
    if pen.at != NULL:
        memcpy(pen.at + pen.n, at, n)
    pen.n += n


cdef void escaped(Pen *pen, const char *at, size_t n) noexcept nogil:
    """A field, so that it stays one whatever a client wrote. Bytes beyond ASCII become question marks: nobody knows their charset."""
    cdef char code[6]
    cdef size_t i
    cdef uint8_t c
    for i in range(n):
        c = <uint8_t>at[i]
        if c >= 127:
            text(pen, b"?", 1)
        elif pen.escape == ESCAPE_JSON and (c < 32 or c == c'"' or c == c'\\'):
            code[0], code[1], code[2], code[3] = c'\\', c'u', c'0', c'0'
            code[4] = b"0123456789abcdef"[c >> 4]
            code[5] = b"0123456789abcdef"[c & 15]
            text(pen, code, 6)
        elif c < 32:
            continue
        elif pen.escape == ESCAPE_MARKUP and c == c'&':
            text(pen, b"&amp;", 5)
        elif pen.escape == ESCAPE_MARKUP and c == c'<':
            text(pen, b"&lt;", 4)
        elif pen.escape == ESCAPE_MARKUP and c == c'>':
            text(pen, b"&gt;", 4)
        elif pen.escape == ESCAPE_MARKUP and (c == c'"' or c == c"'"):
            text(pen, b"&quot;" if c == c'"' else b"&#39;", 6 if c == c'"' else 5)
        else:
            text(pen, at + i, 1)
