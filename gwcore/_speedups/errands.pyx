"""What Python does for the data plane while requests and handshakes wait for it: it asks Redis for sessions and copies, and writes them there. The data
plane leaves letters, which Python is given after each turn; what it finds goes into the machine's stores."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from gwcore._speedups.buffer cimport buf_bytes, buf_give
from gwcore._speedups.conn cimport C_IDLE, Conn, Worker, conn_again
from gwcore._speedups.copymail cimport COPY_ASK, CopyLetter, copymail_take, copymail_waits
from gwcore._speedups.copystore cimport CopyStore
from gwcore._speedups.greet cimport unpark
from gwcore._speedups.histogram cimport histogram_cell
from gwcore._speedups.reactor cimport clock_arm
from gwcore._speedups.sessions cimport Letter, mail_take, mail_waits, session_add
from gwcore._speedups.shm cimport TlsCell, segment_store
from gwcore._speedups.slab cimport slab_get
from gwcore._speedups.store cimport SESSION_BYTES, SESSION_ID, store_get, store_put
from gwcore._speedups.sys cimport close
from gwcore._speedups.story cimport ASKED_DONE, ASKED_WAITS, Exchange
from gwcore._speedups.tls cimport CLAIM_WON, LOOKUP_WANTED


cdef class Errands:
    """Part of Plane."""

    cdef _letters(self):
        if mail_waits(&self.r.w.mail):
            self._session_letters()
        if copymail_waits(&self.r.w.copymail):
            self._copy_letters()

    # ---- sessions (gwcore.sessions) ----

    cdef _session_letters(self):
        cdef Letter l
        letters = []
        while mail_take(&self.r.w.mail, &l):
            letters.append((l.kind, l.handle, l.ttl_s, l.id[:SESSION_ID]))
        if self.on_letters is not None:
            self.on_letters(letters)
        else:
            for letter in letters:
                self.resume(letter[1])

    def ask_redis(self, on: bool) -> None:
        """May handshakes wait for sessions? `on_letters` then gets lists of (kind, handle, ttl_s, id) from `drain`: 0 a handshake waits for `resume`,
        1 a new session, 2 one that was used, 3 a handshake with early data waits: `resume` with claimed if Redis had the session and has it no more."""
        self.r.w.mail.open = on

    def resume(self, handle: int, claimed: bool = False) -> bool:
        """Let a handshake go on that waits for its session; claimed: no other machine takes early data under it. False: nobody waits there any more."""
        cdef Conn *c = <Conn *>slab_get(&self.r.w.clients, handle)
        if c == NULL or c.state != C_IDLE or c.tls.away or c.tls.lookup != LOOKUP_WANTED:
            return False
        if claimed:
            c.tls.claim = CLAIM_WON
        unpark(&self.r.w, c)
        clock_arm(&self.r.w)
        return True

    def session(self, id: bytes) -> bytes:
        """A session of the machine's store; empty when it is not there."""
        cdef uint8_t out[SESSION_BYTES]
        cdef uint64_t due
        cdef uint32_t n = store_get(segment_store(self.r.w.segment), id, out, self.r.w.wall_ms, &due) if len(id) == SESSION_ID else 0
        return out[:n]

    def put_session(self, id: bytes, session: bytes, ttl_s: float) -> bool:
        """Put a session into the machine's store."""
        cdef Worker *w = &self.r.w
        cdef int kept = store_put(segment_store(w.segment), w.number, id, session, <uint32_t>len(session),
                                  w.wall_ms + <uint64_t>(ttl_s * 1000), w.wall_ms) if len(id) == SESSION_ID else 0
        session_add(&w.lane.tls.sessions_kept, kept != 0)
        session_add(&w.lane.tls.sessions_evicted, kept == 2)
        return kept != 0

    def count_redis(self, what: str, seconds: float = -1.0, n: int = 1) -> None:
        """Count what became of a look-up (hits, misses, errors, skipped) with its time, or of a session (written, dropped)."""
        cdef TlsCell *c = &self.r.w.lane.tls
        if what == "hits":
            c.redis_hits += n
        elif what == "misses":
            c.redis_misses += n
        elif what == "errors":
            c.redis_errors += n
        elif what == "skipped":
            c.redis_skipped += n
        elif what == "written":
            c.redis_written += n
        else:
            session_add(&c.redis_dropped, n)
        if seconds >= 0:
            c.redis_us += <uint64_t>(seconds * 1e6)
            c.redis_seconds[histogram_cell(<uint64_t>(seconds * 1e6))] += 1

    # ---- copies of answers (gwcore.copies_redis) ----

    cdef _copy_letters(self):
        cdef CopyLetter l
        letters = []
        while copymail_take(&self.r.w.copymail, &l):
            letters.append((l.kind, l.handle, l.epoch, <bytes>buf_bytes(l.key)[:l.key.len]))
            buf_give(&self.r.w.bufs, l.key)
        if self.on_copies is not None:
            self.on_copies(letters)
        else:
            for letter in letters:
                if letter[0] == COPY_ASK:
                    self.resume_copy(letter[1])

    def use_copies(self, fd: int) -> None:
        """Keep copies in the store behind fd (which stays the caller's), from now on; once only."""
        if self.copies is None:
            self.copies = CopyStore.attach(fd, self.r.w.number)
            self.r.w.copies = &self.copies.own

    def use_journal(self, fd: int, sync: bool) -> None:
        """Append requests that are compensated to the empty file fd (the plane's from now on; -1 = none are)."""
        if self.r.w.journal:
            close(self.r.w.journal - 1)
        self.r.w.journal, self.r.w.journal_bytes, self.r.w.journal_sync = fd + 1, 0, sync

    def ask_copies(self, writes: bool, asks: bool) -> None:
        """Is Redis written to, and may requests wait for copies from there? `on_copies` then gets lists of (kind, handle, epoch, key) from `drain`: 0 a request
        waits for `resume_copy`, 1 a copy was stored, 2 one was dropped."""
        self.r.w.copymail.open, self.r.w.copymail.asks = writes, asks

    def resume_copy(self, handle: int) -> bool:
        """Let a request go on that waits for a copy, which is in the machine's store if there is one. False: nobody waits there any more."""
        cdef Conn *c = <Conn *>slab_get(&self.r.w.clients, handle)
        if c == NULL or c.exchange == NULL or (<Exchange *>c.exchange).asked != ASKED_WAITS:
            return False
        (<Exchange *>c.exchange).asked = ASKED_DONE
        conn_again(&self.r.w, c)
        clock_arm(&self.r.w)
        return True
