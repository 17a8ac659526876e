"""What Cache-Control, its targeted forms, Expires, Date and Age say. Numbers are bounded when they are read, so no sum overflows; what cannot be
read counts as stale (RFC 9111 4.2.1)."""
from libc.string cimport memset

from gwcore._speedups.cllhttp cimport LLHTTP_REQUEST, LLHTTP_RESPONSE
from gwcore._speedups.fields cimport BYTE_CLASS, B_DIGIT, B_TOKEN, LOWER, same_word
from gwcore._speedups.head cimport HeadLimits, field_is, head_feed, head_init
from gwcore._speedups.types cimport RC_OK

cdef enum:
    SECONDS_MOST = 0x7fffffff
    DAY_S = 86400


cdef const Field *field_named(const Head *h, const char *lower, size_t n) noexcept nogil:
    """The first field of that name; NULL = none."""
    cdef uint32_t i
    for i in range(h.n):
        if field_is(h, &h.f[i], lower, n):
            return &h.f[i]
    return NULL


cdef int64_t seconds_read(const char *at, size_t size) noexcept nogil:
    """delta-seconds; 0 where it is none."""
    cdef int64_t n = 0
    cdef size_t i
    if size == 0:
        return 0
    for i in range(size):
        if not BYTE_CLASS[<uint8_t>at[i]] & B_DIGIT:
            return 0
        n = n * 10 + at[i] - 48
        if n > SECONDS_MOST:
            n = SECONDS_MOST
    return n


cdef inline void lower_of(int64_t *to, int64_t n) noexcept nogil:
    """Said twice: the shorter time counts."""
    if to[0] < 0 or n < to[0]:
        to[0] = n


cdef void directive(Said *s, const char *name, size_t n, const char *value, size_t size, bint valued) noexcept nogil:
    cdef bint known = s.any
    s.any = 1
    if same_word(name, n, b"max-age", 7):
        lower_of(&s.max_age, seconds_read(value, size))
    elif same_word(name, n, b"s-maxage", 8):
        lower_of(&s.s_maxage, seconds_read(value, size))
    elif same_word(name, n, b"no-store", 8):
        s.no_store = 1
    elif same_word(name, n, b"no-cache", 8):
        s.no_cache = 1
    elif same_word(name, n, b"private", 7):
        s.own = 1
    elif same_word(name, n, b"public", 6):
        s.common = 1
    elif same_word(name, n, b"must-revalidate", 15) or same_word(name, n, b"proxy-revalidate", 16):
        s.must_revalidate = 1
    elif same_word(name, n, b"stale-while-revalidate", 22):
        lower_of(&s.revalidate, seconds_read(value, size))
    elif same_word(name, n, b"stale-if-error", 14):
        lower_of(&s.error, seconds_read(value, size))
    elif same_word(name, n, b"min-fresh", 9):
        s.min_fresh = seconds_read(value, size)
    elif same_word(name, n, b"max-stale", 9):
        s.max_stale = seconds_read(value, size) if valued else SECONDS_MOST
    elif same_word(name, n, b"only-if-cached", 14):
        s.only_if_cached = 1
    else:
        s.any = known


cdef void said_read(Said *s, const char *at, size_t size) noexcept nogil:
    """One line: token [ "=" ( token / quoted-string ) ], with commas between."""
    cdef size_t i = 0, name, n, value, m
    cdef bint valued
    while i < size:
        if at[i] == c',' or at[i] == c' ' or at[i] == c'\t':
            i += 1
            continue
        name = i
        while i < size and BYTE_CLASS[<uint8_t>at[i]] & B_TOKEN:
            i += 1
        n = i - name
        value, m, valued = i, 0, False
        if i < size and at[i] == c'=':
            i += 1
            valued = True
            if i < size and at[i] == c'"':
                i += 1
                value = i
                while i < size and at[i] != c'"':
                    i += 2 if at[i] == c'\\' else 1
                i = min(i, size)
                m = i - value
                i += 1
            else:
                value = i
                while i < size and BYTE_CLASS[<uint8_t>at[i]] & B_TOKEN:
                    i += 1
                m = i - value
        directive(s, at + name, n, at + value, m, valued)
        while i < size and at[i] != c',':            # what is not understood
            i += 1


cdef bint lines_read(const Head *h, const char *lower, size_t n, Said *s) noexcept nogil:
    cdef uint32_t i
    for i in range(h.n):
        if field_is(h, &h.f[i], lower, n):
            said_read(s, h.base + h.f[i].value, h.f[i].value_len)
    return s.any


cdef void said_clear(Said *s) noexcept nogil:
    memset(s, 0, sizeof(Said))
    s.max_age = s.s_maxage = s.min_fresh = s.max_stale = s.revalidate = s.error = -1


cdef void request_said(const Head *h, Said *out) noexcept nogil:
    said_clear(out)
    lines_read(h, b"cache-control", 13, out)


cdef void response_said(const Head *h, Said *out) noexcept nogil:
    """A field for gateways alone, where there is one, takes the place of Cache-Control and Expires (RFC 9213 2.2)."""
    said_clear(out)
    if lines_read(h, b"surrogate-control", 17, out) or lines_read(h, b"cdn-cache-control", 17, out):
        out.targeted = 1
    else:
        lines_read(h, b"cache-control", 13, out)


# ---- dates

cdef int two(const char *at) noexcept nogil:
    if not BYTE_CLASS[<uint8_t>at[1]] & B_DIGIT or not (BYTE_CLASS[<uint8_t>at[0]] & B_DIGIT or at[0] == c' '):
        return -1
    return (at[0] - 48 if at[0] != c' ' else 0) * 10 + at[1] - 48


cdef int month(const char *at) noexcept nogil:
    cdef const char *names = b"janfebmaraprmayjunjulaugsepoctnovdec"
    cdef int i
    for i in range(12):
        if LOWER[<uint8_t>at[0]] == <uint8_t>names[3 * i] and LOWER[<uint8_t>at[1]] == <uint8_t>names[3 * i + 1] \
                and LOWER[<uint8_t>at[2]] == <uint8_t>names[3 * i + 2]:
            return i + 1
    return 0


cdef int64_t moment(int64_t year, int mon, int day, const char *clock) noexcept nogil:
    """Seconds since 1970 of a date and HH:MM:SS; -1 where they are none. Days by Hinnant's days_from_civil."""
    cdef int64_t era, of_era, of_year
    cdef int hour = two(clock), minute = two(clock + 3), second = two(clock + 6)
    if mon < 1 or day < 1 or day > 31 or hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 60 \
            or clock[2] != c':' or clock[5] != c':' or year < 1:
        return -1
    year -= mon <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (mon + (-3 if mon > 2 else 9)) + 2) // 5 + day - 1
    return (era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468) * DAY_S + hour * 3600 + minute * 60 + second


cdef int64_t date_read(const char *at, size_t size) noexcept nogil:
    """HTTP-date in its three forms (RFC 9110 5.6.7), in seconds since 1970; -1 where it is none."""
    cdef size_t i = 0
    cdef int a, b
    cdef int64_t year
    if size == 29 and at[3] == c',' and same_word(at + 26, 3, b"gmt", 3):
        a, b = two(at + 12), two(at + 14)
        return moment(a * 100 + b, month(at + 8), two(at + 5), at + 17) if a >= 0 and b >= 0 else -1
    if size == 24 and at[3] == c' ':
        a, b = two(at + 20), two(at + 22)
        return moment(a * 100 + b, month(at + 4), two(at + 8), at + 11) if a >= 0 and b >= 0 else -1
    while i < size and at[i] != c',':
        i += 1
    if i >= 6 and size == i + 24 and same_word(at + size - 3, 3, b"gmt", 3) and at[i + 4] == c'-' and at[i + 8] == c'-':
        b = two(at + i + 9)
        year = 1900 + b if b >= 70 else 2000 + b
        return moment(year, month(at + i + 5), two(at + i + 2), at + i + 12) if b >= 0 else -1
    return -1


# ---- life of an answer

cdef int64_t date_of(const Head *h, int64_t now_s) noexcept nogil:
    """Its Date, or now."""
    cdef const Field *f = field_named(h, b"date", 4)
    cdef int64_t at = date_read(h.base + f.value, f.value_len) if f != NULL else -1
    return at if at >= 0 else now_s


cdef int64_t lifetime_s(const Head *h, const Said *said, int64_t now_s) noexcept nogil:
    """How long it is fresh from its Date on, in a shared cache; -1 = it does not say. Nothing is guessed."""
    cdef const Field *f
    cdef int64_t at
    if said.s_maxage >= 0:
        return said.s_maxage
    if said.max_age >= 0:
        return said.max_age
    if said.targeted:
        return -1
    f = field_named(h, b"expires", 7)
    if f == NULL:
        return -1
    at = date_read(h.base + f.value, f.value_len)
    at = at - date_of(h, now_s) if at >= 0 else 0
    return min(max(at, <int64_t>0), <int64_t>SECONDS_MOST)


cdef int64_t age_s(const Head *h, int64_t now_s) noexcept nogil:
    """How old it is already: what it says, or what its Date says, whichever is more (RFC 9111 4.2.3)."""
    cdef const Field *f = field_named(h, b"age", 3)
    cdef int64_t said = seconds_read(h.base + f.value, f.value_len) if f != NULL else 0
    return min(max(said, now_s - date_of(h, now_s)), <int64_t>SECONDS_MOST)


# ---- for tests

def said_of(bytes head, bint response):
    """What a whole head says, as a dict; lifetime and age too, for an answer that came at second 0 + 10^9."""
    cdef Head h
    cdef HeadLimits limits
    cdef Said s
    limits.url_bytes, limits.head_bytes, limits.fields = 8192, 32768, 200
    head_init(&h, LLHTTP_RESPONSE if response else LLHTTP_REQUEST)
    if head_feed(&h, head, len(head), &limits) != RC_OK:
        raise ValueError("no head")
    if response:
        response_said(&h, &s)
    else:
        request_said(&h, &s)
    return {**s, "lifetime": lifetime_s(&h, &s, 10**9), "age": age_s(&h, 10**9)}


def date_of_text(bytes text):
    """Seconds since 1970, or -1."""
    return date_read(text, len(text))
