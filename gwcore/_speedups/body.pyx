"""What leaves is framed by us: lengths that were checked, chunk sizes that we wrote, no extensions, trailers only where a route asks for them."""
from libc.stddef cimport size_t

from gwcore._speedups.chunked cimport CHUNK_TRAILER, chunk_due, chunked_next
from gwcore._speedups.collect cimport collect
from gwcore._speedups.conn cimport Worker
from gwcore._speedups.http1 cimport BODY_CLOSE, BODY_LENGTH, BODY_NONE
from gwcore._speedups.outlist cimport OutList, out_add, out_number
from gwcore._speedups.reasons cimport R_BAD_FRAMING, R_BODY_TOO_LARGE, R_BUFFER_LIMIT, R_RESPONSE_TRUNCATED
from gwcore._speedups.story cimport REQ_DONE, Exchange
from gwcore._speedups.trailers cimport trailers_keep, trailers_out
from gwcore._speedups.types cimport RC_AGAIN, RC_DONE, RC_FAIL, RC_OK


cdef void chunk_out(OutList *o, const char *at, size_t n) noexcept nogil:
    out_number(o, n, 16)
    out_add(o, b"\r\n", 2)
    out_add(o, at, n)
    out_add(o, b"\r\n", 2)


cdef bint over_limit(const Exchange *x) noexcept nogil:
    """Is a chunked body too long, or will it be when the chunk has come whose size is known?"""
    return x.body_limit and x.body_seen + chunk_due(&x.request_chunks) > x.body_limit


cdef int body_request(Worker *w, Exchange *x, const char *at, size_t size, OutList *o, size_t *used) noexcept nogil:
    """As request_part, and counts what was taken."""
    cdef int rc = request_part(w, x, at, size, o, used)
    x.bytes_in += used[0]
    return rc


cdef int request_part(Worker *w, Exchange *x, const char *at, size_t size, OutList *o, size_t *used) noexcept nogil:
    """Add what of at[:size] belongs to the request body to o. RC_AGAIN: more is to come. RC_DONE: the body ended at used[0].
    RC_FAIL: x.reason. Bytes behind the body are not touched."""
    cdef const char *data
    cdef size_t n = 0, step = 0
    cdef int rc
    used[0] = 0
    if x.request_kind == BODY_LENGTH:
        n = size if size < x.request_left else <size_t>x.request_left
        if o != NULL:
            out_add(o, at, n)
        x.request_left -= n
        x.body_seen += n
        used[0] = n
        if x.request_left:
            return RC_AGAIN
        x.request_body = REQ_DONE
        return RC_DONE
    while True:
        rc = chunked_next(&x.request_chunks, at + used[0], size - used[0], &step, &data, &n)
        used[0] += step
        if rc == RC_OK:
            x.body_seen += n
        if rc != RC_FAIL and over_limit(x):
            if o != NULL:                                # else its answer has a reason already
                x.reason = R_BODY_TOO_LARGE
            return RC_FAIL
        if rc == RC_OK:
            if o != NULL:
                chunk_out(o, data, n)
        elif rc == CHUNK_TRAILER:
            if o != NULL and x.route.trailers and trailers_keep(&w.bufs, &x.request_trailers, data, n) != RC_OK:
                x.reason = R_BUFFER_LIMIT
                return RC_FAIL
        elif rc == RC_AGAIN:
            return RC_AGAIN
        elif rc == RC_DONE:
            if o != NULL:
                trailers_out(o, x.request_trailers, x.plan.head, x.route.request_edits)
            x.request_body = REQ_DONE
            return RC_DONE
        else:
            x.reason = R_BAD_FRAMING
            return RC_FAIL


cdef int body_skip(Worker *w, Exchange *x, const char *at, size_t size, size_t *used) noexcept nogil:
    """Read on in the request body and drop it."""
    cdef int rc = body_request(w, x, at, size, NULL, used)
    x.discarded += used[0]
    return rc


cdef int body_response(Worker *w, Exchange *x, const char *at, size_t size, OutList *o, size_t *used) noexcept nogil:
    """Add what of at[:size] belongs to the response body to o, in the client's framing. RC_AGAIN, RC_DONE, RC_FAIL as above."""
    cdef const char *data
    cdef size_t n = 0, step = 0
    cdef int rc
    used[0] = 0
    if x.response_kind == BODY_NONE:
        return RC_DONE
    if x.response_kind == BODY_LENGTH:
        n = size if size < x.response_left else <size_t>x.response_left
        out_add(o, at, n)
        if x.collecting:
            collect(w, x, at, n)
        x.response_left -= n
        used[0] = n
        return RC_AGAIN if x.response_left else RC_DONE
    if x.response_kind == BODY_CLOSE:
        used[0] = size
        if size:
            if x.chunk_out:
                chunk_out(o, at, size)
            else:
                out_add(o, at, size)
        return RC_AGAIN
    while True:
        rc = chunked_next(&x.response_chunks, at + used[0], size - used[0], &step, &data, &n)
        used[0] += step
        if rc == RC_OK:
            if x.chunk_out:
                chunk_out(o, data, n)
            else:
                out_add(o, data, n)
            if x.collecting:
                collect(w, x, data, n)
        elif rc == CHUNK_TRAILER:
            if x.chunk_out and x.te_trailers and x.route.trailers and trailers_keep(&w.bufs, &x.response_trailers, data, n) != RC_OK:
                x.reason = R_BUFFER_LIMIT
                return RC_FAIL
        elif rc == RC_AGAIN:
            return RC_AGAIN
        elif rc == RC_DONE:
            body_end_response(x, o)
            return RC_DONE
        else:
            x.reason = R_RESPONSE_TRUNCATED
            return RC_FAIL


cdef void body_end_response(Exchange *x, OutList *o) noexcept nogil:
    if x.chunk_out:
        trailers_out(o, x.response_trailers, x.plan.head, x.route.response_edits)
