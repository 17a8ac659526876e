"""TLS of a whole gateway: workers that share ticket keys, certificates that change, upgrades, alarms."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.process import Process
from tests.support import Upstream, read_reply, wait_until
from tests.tls import OTHER_CA, client_context, issue, listener, secure

ADMIN_WAIT = 15


@pytest.fixture
def start(gateway: Callable[..., Process], tmp_path: Path, backend: Upstream) -> Callable[..., Process]:
    def make(extra: str = "", workers: int = 2, more: str = "") -> Process:
        (tmp_path / "certs").mkdir(exist_ok=True)
        entry = issue(tmp_path / "certs", "a.test")
        return gateway(workers=workers, extra=extra, listener=listener(entry, more=more))

    return make


def visit(g: Process, context: ssl.SSLContext, session: Any = None) -> tuple[bool, Any, bytes]:
    """(resumed, session, certificate) of one request."""
    with secure(g.connect(), context=context, session=session) as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert read_reply(s).status == 200
        return bool(s.session_reused), s.session, s.getpeercert(True) or b""


def test_workers_resume_each_others_sessions(start):  # T5
    g = start(workers=3)
    c = client_context()
    _, session, _ = visit(g, c)
    assert [visit(g, c, session)[0] for _ in range(20)] == [True] * 20
    tls = g.status()["tls"]
    assert tls["resumed"]["ticket"] == 20 and sum(k["uses"] for k in tls["tickets"]["keys"]) == 20
    assert tls["certificates"][0]["names"] == ["a.test"] and tls["certificates"][0]["days_left"] > 0


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGUSR2])
def test_sessions_outlive_a_reload_and_an_upgrade(start, how):
    g = start(workers=2)
    c = client_context()
    _, session, _ = visit(g, c)
    before = g.status()
    g.signal(how)
    if how == signal.SIGHUP:
        wait_until(lambda: g.status()["plan"] == before["plan"] + 1, ADMIN_WAIT)
    else:
        wait_until(lambda: g.ready() and g.status()["upgrades"] == 1 and not g.status()["workers_draining"], ADMIN_WAIT)
    assert visit(g, c, session)[0]


def test_a_bad_pair_changes_nothing_and_says_why(start, tmp_path):  # T9
    g = start()
    c = client_context()
    *_, certificate = visit(g, c)
    (tmp_path / "certs" / "a.test.key").write_text((tmp_path / "certs" / "a.test.key").read_text().replace("PRIVATE", "PUBLIC"))
    result = g.reload()
    assert not result["ok"] and "tls.certificates[0].key" in result["errors"][0] and "no private key" in result["errors"][0]
    issue(tmp_path, "a.test")
    (tmp_path / "certs" / "a.test.key").write_bytes((tmp_path / "a.test.key").read_bytes())
    assert "the key is not the certificate's" in g.reload()["errors"][0]
    assert visit(g, c)[2] == certificate
    issue(tmp_path / "certs", "a.test")
    assert g.reload()["ok"] and visit(g, c)[2] != certificate


def test_changed_files_are_taken_where_that_is_asked_for(start, tmp_path):
    g = start(extra="tls: {watch: on}\n")
    c = client_context()
    *_, certificate = visit(g, c)
    issue(tmp_path / "certs", "a.test")
    wait_until(lambda: visit(g, c)[2] != certificate, 30)
    assert "certificate files changed; using the new ones" in g.said()
    assert g.status()["plan"] == 2


def test_a_certificate_that_ends_soon_is_an_alarm(gateway, tmp_path):
    import datetime

    from tests.tls import CA

    soon = CA.issue_cert("a.test", not_after=datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2))
    soon.private_key_pem.write_to_path(tmp_path / "soon.key")
    (tmp_path / "soon.pem").write_bytes(b"".join(p.bytes() for p in soon.cert_chain_pems))
    g = gateway(listener=listener(f"{{cert: {tmp_path / 'soon.pem'}, key: {tmp_path / 'soon.key'}}}"))
    wait_until(lambda: "alarm: the certificate" in g.said())
    assert "ends in 2.0 days" in g.said() and "expires on" in g.said()
    assert b"gwcore_certificate_expiry_timestamp_seconds" in g.get("/metrics")


def test_another_authority_is_not_trusted(start):
    with pytest.raises(ssl.SSLCertVerificationError):
        visit(start(), client_context(ca=OTHER_CA))
