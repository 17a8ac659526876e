"""What authorities say of certificates: stapled OCSP responses, and revocation lists of clients."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.x509 import ocsp

from gwcore.certwatch import CertWatch, stamp
from gwcore.config.load import ConfigErrors, load_text
from tests.support import plane, read_reply, wait_until
from tests.tls import CA, client_context, issue, listener, secure

RESPOND = "routes: [{respond: {status: 200, body: OK}}]"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def authority() -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    key = serialization.load_pem_private_key(CA.private_key_pem.bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate(CA.cert_pem.bytes()), key


def response(path: Path, serial_of: Path, status: ocsp.OCSPCertStatus, ends: datetime.datetime = NOW + DAY) -> None:
    ca, key = authority()
    cert = x509.load_pem_x509_certificate(serial_of.read_bytes())
    revoked = NOW - DAY if status is ocsp.OCSPCertStatus.REVOKED else None
    made = (
        ocsp.OCSPResponseBuilder()
        .add_response(cert, ca, hashes.SHA1(), status, NOW - DAY, ends, revoked, None)
        .responder_id(ocsp.OCSPResponderEncoding.HASH, ca)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.DER))


def crl(path: Path, *revoked: x509.Certificate, ends: datetime.datetime = NOW + DAY) -> None:
    ca, key = authority()
    b = x509.CertificateRevocationListBuilder().issuer_name(ca.subject).last_update(NOW - 2 * DAY).next_update(ends)
    for c in revoked:
        b = b.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(c.serial_number).revocation_date(NOW - DAY).build()
        )
    path.write_bytes(b.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def stapled(port: int, *, ask: bool = True) -> str:
    words = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "a.test", *(["-status"] if ask else [])]
    return subprocess.run(words, input=b"", capture_output=True, timeout=30).stdout.decode(errors="replace")


def test_a_response_is_stapled_for_those_who_ask(tmp_path: Path):
    entry = issue(tmp_path, "a.test")
    response(tmp_path / "a.der", tmp_path / "a.test.pem", ocsp.OCSPCertStatus.GOOD)
    with plane(RESPOND, listener=listener(entry.replace("}", f", ocsp: {tmp_path / 'a.der'}}}"))) as p:
        assert "Cert Status: good" in stapled(p.port)
        assert "OCSP" not in stapled(p.port, ask=False)
        response(tmp_path / "a.der", tmp_path / "a.test.pem", ocsp.OCSPCertStatus.REVOKED)
        p.reload(RESPOND)
        assert "Cert Status: revoked" in stapled(p.port)


def der(entry: str, path: Path) -> str:
    return entry.replace("}", f", ocsp: {path}}}")


def findings(entry: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a configuration with this certificate."""
    text = f"listeners: [{{address: '127.0.0.1:1', {listener(entry)}}}]\n{RESPOND}"
    try:
        return [], [str(w) for w in load_text(text).warnings]
    except ConfigErrors as why:
        return [str(e) for e in why.errors], []


def test_what_is_no_response_is_refused(tmp_path: Path):  # T9
    entry = der(issue(tmp_path, "a.test"), tmp_path / "a.der")
    unauthorized = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED)
    for rubbish in (b"rubbish", b"\x30\x03\x0a\x01", unauthorized.public_bytes(serialization.Encoding.DER)):
        (tmp_path / "a.der").write_bytes(rubbish)
        errors, _ = findings(entry)
        assert len(errors) == 1 and "a.der" in errors[0] and "certificates[0].ocsp" in errors[0]


@pytest.mark.parametrize("how", ["another certificate", "ended"])
def test_what_says_nothing_today_is_not_stapled(tmp_path: Path, how: str):
    entry = der(issue(tmp_path, "a.test"), tmp_path / "a.der")
    issue(tmp_path, "b.test")
    if how == "ended":
        response(tmp_path / "a.der", tmp_path / "a.test.pem", ocsp.OCSPCertStatus.GOOD, ends=NOW - DAY / 2)
    else:
        response(tmp_path / "a.der", tmp_path / "b.test.pem", ocsp.OCSPCertStatus.GOOD)
    errors, warnings = findings(entry)
    assert not errors and len(warnings) == 1 and "a.der" in warnings[0] and "not stapled" in warnings[0]
    with plane(RESPOND, listener=listener(entry)) as p:
        assert "no response sent" in stapled(p.port)


def test_one_that_ends_in_use_is_stapled_no_more(tmp_path: Path):
    entry = der(issue(tmp_path, "a.test"), tmp_path / "a.der")
    response(tmp_path / "a.der", tmp_path / "a.test.pem", ocsp.OCSPCertStatus.GOOD)
    text = f"listeners: [{{address: '127.0.0.1:1', {listener(entry)}}}]\n{RESPOND}"
    config = load_text(text).config
    said: list[str] = []
    changes: list[None] = []

    async def changed() -> None:
        changes.append(None)

    watch = CertWatch(lambda: config, changed, said.append)
    asyncio.run(watch.look())
    material = config.listeners[0]._material
    assert material and material.pairs[0].ocsp and not changes
    response(tmp_path / "a.der", tmp_path / "a.test.pem", ocsp.OCSPCertStatus.GOOD, ends=NOW - DAY / 2)
    watch.stamps = {p: stamp(p) for p in watch.files()}  # the file is as it was: time has passed
    material.pairs[0].ocsp_ends = time.time() - 1
    asyncio.run(watch.look())
    material = config.listeners[0]._material
    assert changes == [None] and material and material.pairs[0].ocsp == b"" and any("alarm" in x and "a.der" in x for x in said)
    asyncio.run(watch.look())
    assert changes == [None]


def test_without_a_response_there_is_none(tmp_path: Path):
    with plane(RESPOND, listener=listener(issue(tmp_path, "a.test"))) as p:
        assert "no response sent" in stapled(p.port)


def visit(p: Any, identity: Any) -> int:
    with secure(p.connect(), context=client_context(identity=identity)) as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        return read_reply(s).status


def test_revoked_clients_stay_out(tmp_path: Path):
    good, bad = CA.issue_cert("good"), CA.issue_cert("bad")
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    crl(tmp_path / "crl.pem", x509.load_pem_x509_certificate(bad.cert_chain_pems[0].bytes()))
    auth = f"client_auth: {{mode: require, ca: {tmp_path / 'ca.pem'}, crl: {tmp_path / 'crl.pem'}}}"
    with plane(RESPOND, listener=listener(issue(tmp_path, "a.test"), more=auth)) as p:
        assert visit(p, good) == 200
        with pytest.raises((ssl.SSLError, ConnectionResetError, EOFError)):
            visit(p, bad)
        wait_until(lambda: p.reasons().get("tls_client_cert") == 1)
        crl(tmp_path / "crl.pem", ends=NOW - DAY)  # a list that has ended lets nobody in: it may hide who was revoked since
        p.reload(RESPOND)
        with pytest.raises((ssl.SSLError, ConnectionResetError, EOFError)):
            visit(p, good)
