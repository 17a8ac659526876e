"""Certificates of a running gateway: taken anew when their files change, and an alarm before they end."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from gwcore.config import certs

if TYPE_CHECKING:
    import asyncio

    from gwcore.config.schema import Config

ALARM_DAYS = (30, 14, 7, 3, 1, 0)  # an alarm at each, once
LOOK_S = 10.0  # at OCSP responses, which others write; certificates at tls.watch

Stamp = tuple[float, int, int]


def stamp(path: str) -> Stamp | None:
    """What changes with a file's content: time, size, inode. None while there is none."""
    try:
        s = os.stat(path)
    except OSError:
        return None
    return s.st_mtime, s.st_size, s.st_ino


class CertWatch:
    """`look` is called by the supervisor every LOOK_S; `changed` is awaited after files changed and were read without an error."""

    def __init__(self, config: Callable[[], Config], changed: Callable[[], Awaitable[None]], say: Callable[[str], None]):
        self.config, self.changed, self.say = config, changed, say
        self.stamps: dict[str, Stamp | None] = {}
        self.told: dict[str, int] = {}
        self.complaint = ""
        self.task: asyncio.Task[None] | None = None

    def files(self) -> list[str]:
        """OCSP responses always; certificates, keys, authorities and revocation lists when the configuration asks for it."""
        out = []
        for listener in self.config().listeners:
            if listener.tls is None:
                continue
            for c in listener.tls.certificates:
                out += [c.ocsp, c.cert, c.key] if self.config().tls.watch else [c.ocsp]
            if self.config().tls.watch:
                out += [listener.tls.client_auth.ca, listener.tls.client_auth.crl]
        if self.config().tls.watch:
            for upstream in self.config().upstreams.values():
                if upstream.tls is not None:
                    out += [upstream.tls.ca, upstream.tls.cert, upstream.tls.key]
        return sorted({p for p in out if p})

    async def look(self) -> None:
        """Compare files with the last time, take in what changed, raise alarms."""
        self.alarms()
        now = {p: stamp(p) for p in self.files()}
        before, self.stamps = self.stamps, now
        if all(before.get(p, s) == s for p, s in now.items()) and not self.staple_ended():
            return
        errors: list[str] = []
        alarms: list[str] = []
        fresh: list[tuple[Any, certs.Material]] = []
        for name, upstream in self.config().upstreams.items():
            if upstream.tls is not None:
                fresh.append(
                    (
                        upstream,
                        certs.read_upstream(
                            upstream.tls,
                            lambda path, text, name=name: errors.append(
                                f"upstreams.{name}.tls.{'.'.join(map(str, path))}: {text}"
                            ),  # type: ignore[misc]
                        ),
                    )
                )
        for listener in self.config().listeners:
            if listener.tls is not None:
                material = certs.read(
                    listener.tls,
                    lambda path, text: errors.append(f"{'.'.join(map(str, path))}: {text}"),
                    lambda path, text: alarms.append(text) if path[-1] == "ocsp" else None,
                )
                fresh.append((listener, material))
        if errors:
            self.stamps = before  # look again: half of a pair may be there already
            text = "certificate files changed, but are not good; the present ones stay in use:\n  " + "\n  ".join(errors)
            if text != self.complaint:  # not at every look
                self.say(text)
            self.complaint = text
            return
        self.complaint = ""
        for owner, material in fresh:
            owner._material = material
        for text in alarms:
            self.say(f"alarm: {text}")
        self.say("certificate files changed; using the new ones")
        await self.changed()

    def staple_ended(self) -> bool:
        """Does an OCSP response that is in use say nothing any more?"""
        pairs = [p for x in self.config().listeners if x._material is not None for p in x._material.pairs]
        return any(0 < p.ocsp_ends < time.time() for p in pairs)

    def alarms(self) -> None:
        for c in self.status():
            days = c["days_left"]
            level = next((d for d in reversed(ALARM_DAYS) if days <= d), None)
            key = c["sha256"]
            if level is not None and self.told.get(key, 1 << 20) > level:
                self.told[key] = level
                self.say(
                    f"alarm: the certificate {c['file']} ({', '.join(c['names']) or c['subject']}) "
                    + (f"ends in {days:.1f} days, on {certs.day(c['not_after'])}" if days > 0 else "has expired")
                )

    def status(self) -> list[dict[str, Any]]:
        """Every certificate in use: file, names, when it ends."""
        out = []
        for listener in self.config().listeners:
            if listener.tls is None or listener._material is None:
                continue
            for c, pair in zip(listener.tls.certificates, listener._material.pairs, strict=True):
                facts = pair.facts
                out.append(
                    {
                        "listener": listener.address,
                        "file": c.cert,
                        "subject": facts["subject"],
                        "names": facts["names"],
                        "key": f"{facts['key']} {facts['bits']}",
                        "sha256": facts["sha256"],
                        "not_before": facts["not_before"],
                        "not_after": facts["not_after"],
                        "days_left": round((facts["not_after"] - time.time()) / 86400, 2),
                        "stapled": bool(pair.ocsp),
                    }
                )
        return out
