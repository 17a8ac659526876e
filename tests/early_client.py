"""OpenSSL's own client, over memory instead of a socket (Python's ssl knows no early data): what it would send is bytes, which a test may cut,
hold back and send again."""

from __future__ import annotations

import ctypes
import socket
from ctypes import byref, c_char_p, c_int, c_long, c_size_t, c_uint, c_void_p, create_string_buffer
from typing import Any

from tests.support import SLACK, Reply, read_reply

SSL = ctypes.CDLL("libssl.so.3")
CRYPTO = ctypes.CDLL("libcrypto.so.3")
REJECTED, ACCEPTED = 1, 2


def _declare(library: Any, result: Any, **functions: list[Any]) -> None:
    for name, arguments in functions.items():
        f = getattr(library, name)
        f.restype, f.argtypes = result, arguments


P = c_void_p
_declare(SSL, P, TLS_client_method=[], SSL_CTX_new=[P], SSL_new=[P], SSL_get1_session=[P])
_declare(
    SSL,
    c_int,
    SSL_do_handshake=[P],
    SSL_write_early_data=[P, c_char_p, c_size_t, P],
    SSL_read_ex=[P, P, c_size_t, P],
    SSL_write_ex=[P, c_char_p, c_size_t, P],
    SSL_get_early_data_status=[P],
    SSL_key_update=[P, c_int],
    SSL_session_reused=[P],
    SSL_set_session=[P, P],
    SSL_get_error=[P, c_int],
    SSL_set_alpn_protos=[P, c_char_p, c_uint],
    SSL_get_shutdown=[P],
    SSL_SESSION_set_max_early_data=[P, c_uint],
    SSL_CTX_use_certificate_chain_file=[P, c_char_p],
    SSL_CTX_use_PrivateKey_file=[P, c_char_p, c_int],
)
_declare(SSL, c_uint, SSL_SESSION_get_max_early_data=[P])
_declare(SSL, c_long, SSL_SESSION_get_time=[P], SSL_SESSION_set_time=[P, c_long])
_declare(SSL, c_long, SSL_ctrl=[P, c_int, c_long, P], SSL_CTX_ctrl=[P, c_int, c_long, P])
_declare(
    SSL,
    None,
    SSL_set_bio=[P, P, P],
    SSL_set_connect_state=[P],
    SSL_set_shutdown=[P, c_int],
    SSL_free=[P],
    SSL_CTX_free=[P],
    SSL_SESSION_free=[P],
)
_declare(CRYPTO, P, BIO_s_mem=[], BIO_new=[P])
_declare(CRYPTO, c_int, BIO_read=[P, P, c_int], BIO_write=[P, c_char_p, c_int])
_declare(CRYPTO, None, ERR_clear_error=[])
MIN_VERSION, SERVER_NAME, GROUPS = 123, 55, 92  # numbers of SSL_CTX_ctrl and SSL_ctrl


class Speaker:
    """One side of a connection that no socket knows. `flight` is what it said first."""

    def __init__(self, client: EarlyClient, early: bytes, session: Any = None):
        self.ssl = SSL.SSL_new(client.ctx)
        self.came, self.goes = (CRYPTO.BIO_new(CRYPTO.BIO_s_mem()) for _ in range(2))
        SSL.SSL_set_bio(self.ssl, self.came, self.goes)
        SSL.SSL_set_connect_state(self.ssl)
        SSL.SSL_ctrl(self.ssl, SERVER_NAME, 0, client.name)
        SSL.SSL_set_alpn_protos(self.ssl, b"\x08http/1.1", 9)
        self.done = False
        if session:
            SSL.SSL_set_session(self.ssl, session)
        if early:
            for i in range(0, len(early), 16384):
                self.say_early(early[i : i + 16384])
        else:
            self.go_on()
        self.flight = self.out()

    def __del__(self) -> None:
        SSL.SSL_free(self.ssl)

    def out(self) -> bytes:
        """What it has to say by now."""
        buffer, said = create_string_buffer(65536), b""
        while (n := CRYPTO.BIO_read(self.goes, buffer, len(buffer))) > 0:
            said += buffer.raw[:n]
        return said

    def go_on(self) -> None:
        if not self.done:
            rc = SSL.SSL_do_handshake(self.ssl)
            self.done = rc == 1
            if rc != 1 and SSL.SSL_get_error(self.ssl, rc) != 2:
                CRYPTO.ERR_clear_error()
                raise ConnectionError("the handshake failed")

    def hear(self, data: bytes) -> bytes:
        """Bytes of the peer; what they say to the application."""
        CRYPTO.BIO_write(self.came, data, len(data))
        self.go_on()
        said, n = b"", c_size_t()
        buffer = create_string_buffer(65536)
        while self.done and SSL.SSL_read_ex(self.ssl, buffer, len(buffer), byref(n)) == 1:
            said += buffer.raw[: n.value]
        CRYPTO.ERR_clear_error()
        return said

    def say_early(self, data: bytes) -> None:
        """A record of early data."""
        n = c_size_t()
        assert SSL.SSL_write_early_data(self.ssl, data, len(data), byref(n)) == 1 and n.value == len(data)

    def say(self, data: bytes) -> None:
        n = c_size_t()
        assert SSL.SSL_write_ex(self.ssl, data, len(data), byref(n)) == 1

    def change_keys(self) -> None:
        """Before the next word, and have the peer change its own."""
        assert SSL.SSL_key_update(self.ssl, 1) == 1

    @property
    def early(self) -> int:
        return int(SSL.SSL_get_early_data_status(self.ssl))

    @property
    def resumed(self) -> bool:
        return bool(SSL.SSL_session_reused(self.ssl))

    @property
    def told_of_the_end(self) -> bool:
        return bool(SSL.SSL_get_shutdown(self.ssl) & 2)


class EarlyClient:
    """Visits by name, over TLS 1.3, and comes again."""

    def __init__(self, name: str = "a.test", cert: str = "", key: str = "", groups: str = ""):
        self.name = name.encode()
        self.ctx = SSL.SSL_CTX_new(SSL.TLS_client_method())
        SSL.SSL_CTX_ctrl(self.ctx, MIN_VERSION, 0x304, None)
        if groups:
            assert SSL.SSL_CTX_ctrl(self.ctx, GROUPS, 0, groups.encode()) == 1
        if cert:
            assert SSL.SSL_CTX_use_certificate_chain_file(self.ctx, cert.encode()) == 1
            assert SSL.SSL_CTX_use_PrivateKey_file(self.ctx, key.encode(), 1) == 1

    def __del__(self) -> None:
        SSL.SSL_CTX_free(self.ctx)

    def session(self, s: socket.socket) -> Any:
        """A whole visit on a socket, for its session."""
        with Line(s, Speaker(self, b"")) as line:
            line.ask(b"GET /first HTTP/1.1\r\nHost: a.test\r\n\r\n")
            SSL.SSL_set_shutdown(line.speaker.ssl, 3)  # or OpenSSL takes the end for a reason never to resume it
            return SSL.SSL_get1_session(line.speaker.ssl)

    def again(self, s: socket.socket, session: Any, early: bytes) -> Line:
        """Come again; nothing is sent yet."""
        return Line(s, Speaker(self, early, session))


class Line:
    """A speaker on a socket. It reads like a socket; what the speaker says in reply waits in `held` until `release`."""

    def __init__(self, s: socket.socket, speaker: Speaker):
        self.s, self.speaker, self.held, self.rest = s, speaker, b"", b""
        s.settimeout(5 * SLACK)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.s.close()

    def settimeout(self, seconds: float) -> None:
        self.s.settimeout(seconds)

    def send_flight(self) -> None:
        self.s.sendall(self.speaker.flight)

    def recv(self, most: int = 65536) -> bytes:
        """Of the application; empty when the peer has closed."""
        while True:
            data = self.s.recv(65536)
            if not data:
                return b""
            said = self.speaker.hear(data)
            self.held += self.speaker.out()
            if said:
                return said

    def release(self) -> None:
        """Say what was held back: with early data its end, and Finished."""
        self.held += self.speaker.out()
        self.s.sendall(self.held)
        self.held = b""

    def reply(self) -> Reply:
        reply = read_reply(self, buffer=self.rest)  # type: ignore[arg-type]
        self.rest = reply.rest
        return reply

    def finish(self) -> None:
        """The handshake to its end."""
        while not self.speaker.done:
            data = self.s.recv(65536)
            if not data:
                raise EOFError
            assert not self.speaker.hear(data)
            self.release()

    def ask(self, request: bytes) -> Reply:
        """A request after the handshake."""
        if not self.speaker.done:
            self.send_flight()
            self.finish()
        self.speaker.say(request)
        self.release()
        return self.reply()


def allow_more(session: Any, most: int) -> None:
    """Let a client send more early data than it was allowed."""
    assert SSL.SSL_SESSION_set_max_early_data(session, most) == 1


def make_older(session: Any, seconds: int) -> None:
    """Have a client believe that its session was made so much earlier."""
    SSL.SSL_SESSION_set_time(session, SSL.SSL_SESSION_get_time(session) - seconds)


def allowed(session: Any) -> int:
    """Bytes of early data that a session admits."""
    return int(SSL.SSL_SESSION_get_max_early_data(session))
