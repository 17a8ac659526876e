"""Own answers. Every refusal says why in four places with one word: body, Proxy-Status, log, counter."""
from libc.stddef cimport size_t
from libc.string cimport memcpy, strlen

from gwcore._speedups.buffer cimport buf_bytes
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.explain cimport explain
from gwcore._speedups.fields cimport METHODS, METHOD_SIZE
from gwcore._speedups.outlist cimport OutList, out_copy, out_number, out_some
from gwcore._speedups.plan cimport PlanHead, Route, plan_text
from gwcore._speedups.reasons cimport R_METHOD_NOT_ALLOWED, ReasonRow, reason_row
from gwcore._speedups.story cimport Exchange
from gwcore._speedups.types cimport uint64_t


cdef const char *status_text(int status) noexcept nogil:
    """Reason phrases of RFC 9110 and 6585 for the statuses that reasons.h uses."""
    if status == 400: return b"Bad Request"
    if status == 401: return b"Unauthorized"
    if status == 403: return b"Forbidden"
    if status == 404: return b"Not Found"
    if status == 405: return b"Method Not Allowed"
    if status == 408: return b"Request Timeout"
    if status == 413: return b"Content Too Large"
    if status == 414: return b"URI Too Long"
    if status == 416: return b"Range Not Satisfiable"
    if status == 417: return b"Expectation Failed"
    if status == 421: return b"Misdirected Request"
    if status == 425: return b"Too Early"
    if status == 426: return b"Upgrade Required"
    if status == 429: return b"Too Many Requests"
    if status == 431: return b"Request Header Fields Too Large"
    if status == 500: return b"Internal Server Error"
    if status == 501: return b"Not Implemented"
    if status == 502: return b"Bad Gateway"
    if status == 503: return b"Service Unavailable"
    if status == 504: return b"Gateway Timeout"
    if status == 505: return b"HTTP Version Not Supported"
    if status == 508: return b"Loop Detected"
    return b"Error"


cdef struct Text:            # a body being written
    char at[1024]
    size_t n


cdef void put(Text *t, const char *s, size_t n) noexcept nogil:
    if t.n + n <= sizeof(t.at):
        memcpy(t.at + t.n, s, n)
        t.n += n


cdef void say(OutList *o, const char *s) noexcept nogil:
    out_copy(o, s, strlen(s))


cdef void allow(OutList *o, uint64_t methods) noexcept nogil:
    """The Allow line of a set of methods, in llhttp's order."""
    cdef int i
    cdef bint more = False
    say(o, b"Allow:")
    for i in range(64):
        if methods >> i & 1:
            out_copy(o, b", " if more else b" ", 2 if more else 1)
            out_copy(o, METHODS[i], METHOD_SIZE[i])
            more = True
    say(o, b"\r\n")


cdef void persistence(OutList *o, bint close, bint http10) noexcept nogil:
    """The Connection line where one is needed, and the empty line."""
    if close:
        say(o, b"Connection: close\r\n")
    elif http10:
        say(o, b"Connection: keep-alive\r\n")
    say(o, b"\r\n")


cdef int answer_error(Worker *w, OutList *o, const PlanHead *p, int reason, bint close, bint to_head, const Exchange *x) noexcept nogil:
    """Write the answer of a Reason to o; returns its status. x may be NULL (no request was read whole)."""
    cdef const ReasonRow *row = reason_row(reason)
    cdef int status = row.status if row.status else 500
    cdef const char *words = status_text(status)
    cdef char digits[3]
    cdef char detail[512]
    cdef size_t n
    cdef Text body
    digits[0], digits[1], digits[2] = 48 + status // 100, 48 + status // 10 % 10, 48 + status % 10
    body.n = 0
    put(&body, b'{"type":"about:blank","title":"', 31)
    put(&body, words, strlen(words))
    put(&body, b'","status":', 11)
    put(&body, digits, 3)
    put(&body, b',"reason":"', 11)
    put(&body, row.word, row.word_len)
    put(&body, b'"', 1)
    if x != NULL and x.note != NULL:                 # ids hold letters, digits, dot, underscore and hyphen only
        put(&body, b',"request_id":"', 15)
        put(&body, buf_bytes(x.note) + x.note_path_len, x.note_id_len)
        put(&body, b'"', 1)
    n = explain(w, x, reason, detail, sizeof(detail))
    if n:
        put(&body, b',"detail":"', 11)
        put(&body, detail, n)
        put(&body, b'"', 1)
    put(&body, b"}\n", 2)
    say(o, b"HTTP/1.1 ")
    out_copy(o, digits, 3)
    say(o, b" ")
    say(o, words)
    say(o, b"\r\nContent-Type: application/problem+json\r\nContent-Length: ")
    out_number(o, body.n, 10)
    say(o, b"\r\n")
    out_copy(o, w.date, 37)
    out_copy(o, plan_text(p, p.server_line), p.server_line.len)
    say(o, b"Proxy-Status: gwcore; error=")
    say(o, row.proxy_status)
    say(o, b'; details="')
    out_copy(o, row.word, row.word_len)
    say(o, b'"\r\n')
    if reason == R_METHOD_NOT_ALLOWED:
        allow(o, x.allowed if x != NULL else 0)
    if status == 503 or status == 429:
        say(o, b"Retry-After: ")
        out_number(o, x.retry_after_s if x != NULL and x.retry_after_s else 1, 10)
        say(o, b"\r\n")
    persistence(o, close, x != NULL and x.http10)
    if not to_head:
        out_copy(o, body.at, body.n)
    return status


cdef void answer_empty(Worker *w, OutList *o, const PlanHead *p, bint close, bint http10) noexcept nogil:
    """204, for OPTIONS that is answered here."""
    say(o, b"HTTP/1.1 204 No Content\r\n")
    out_copy(o, w.date, 37)
    out_copy(o, plan_text(p, p.server_line), p.server_line.len)
    persistence(o, close, http10)


cdef void answer_route(Worker *w, OutList *o, const PlanHead *p, const Route *r, bint close, bint http10, bint to_head) noexcept nogil:
    """A prepared answer: its bytes are in the plan, the date is the worker's."""
    out_some(o, plan_text(p, r.head), r.head.len)
    if close or http10:
        out_some(o, w.date, 37)
        persistence(o, close, http10)
    else:
        out_some(o, w.date, 39)                       # with the empty line behind it
    if not to_head:
        out_some(o, plan_text(p, r.body), r.body.len)
