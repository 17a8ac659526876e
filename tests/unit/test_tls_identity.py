"""Which sessions may be resumed where (CONFORMANCE T4)."""

from __future__ import annotations

from gwcore.config.certs import Material, identity
from gwcore.config.tls import Certificate, ClientAuth, ListenerTls

PAIR = [Certificate(cert="c", key="k")]


def of(
    address: str = "192.0.2.1:443", names: tuple[str, ...] = ("a.test",), client_ca: bytes = b"", crl: bytes = b"", **auth: object
) -> bytes:
    tls = ListenerTls(certificates=PAIR, client_auth=ClientAuth.model_validate(auth))
    return identity(address, tls, Material(pairs=[], client_ca=client_ca, client_crl=crl), list(names))


def test_machines_of_a_fleet_resume_each_others_sessions():
    """Each listens on an address of its own; with that in the identity shared ticket keys were worth nothing (bench.tls.resumption)."""
    assert of("192.0.2.1:443") == of("192.0.2.2:443") == of("[2001:db8::1]:443")


def test_sessions_do_not_cross_a_boundary():
    asked = {"mode": "require", "ca": "ca.pem"}
    different = [
        of(),
        of("192.0.2.1:8443"),
        of(names=("b.test",)),
        of(client_ca=b"one", **asked),
        of(client_ca=b"two", **asked),
        of(client_ca=b"one", **asked, depth=1),
        of(client_ca=b"one", crl=b"of today", **asked),
        of(client_ca=b"one", crl=b"of tomorrow", **asked),
        of(client_ca=b"one", mode="optional", ca="ca.pem"),
    ]
    assert len(set(different)) == len(different)
