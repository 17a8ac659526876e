"""`gwcore doctor`: what of this machine limits the gateway, why, and the command that changes it."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """level: ok, advice or serious."""

    name: str
    level: str
    value: str
    advice: str
    why: str
    command: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


class Machine:
    """Where the figures come from; tests give another root."""

    def __init__(self, root: str = "/"):
        self.root = Path(root)

    def read(self, path: str) -> str | None:
        try:
            return (self.root / path.lstrip("/")).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None

    def number(self, path: str) -> int | None:
        text = self.read(path)
        try:
            return int(text.split()[0]) if text else None
        except ValueError:
            return None


def _sysctl(m: Machine, key: str, least: int, why: str, serious_below: int = 0) -> Finding:
    value = m.number("/proc/sys/" + key.replace(".", "/"))
    if value is None:
        return Finding(key, "advice", "unknown", str(least), "could not be read here")
    level = "ok" if value >= least else "serious" if value < serious_below else "advice"
    return Finding(key, level, str(value), f"at least {least}", why, "" if level == "ok" else f"sysctl -w {key}={least}")


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    level = "serious" if hard < 4096 else "advice" if hard < 65536 else "ok"
    return Finding(
        "descriptor limit",
        level,
        f"{soft} soft, {hard} hard",
        "65536 or more",
        "every connection takes a descriptor, a proxied request two; gwcore raises the soft limit itself",
        "" if level == "ok" else "in the service's unit: LimitNOFILE=1048576",
    )


def _ports(m: Machine) -> Finding:
    text = m.read("/proc/sys/net/ipv4/ip_local_port_range") or "0 0"
    low, high = (int(x) for x in text.split()[:2])
    level = "ok" if high - low >= 28000 else "advice"
    return Finding(
        "net.ipv4.ip_local_port_range",
        level,
        f"{low}-{high}",
        "1024-65000 when endpoints are few",
        "one port for each connection to the same endpoint",
        "" if level == "ok" else 'sysctl -w net.ipv4.ip_local_port_range="1024 65000"',
    )


def _reuse(m: Machine) -> Finding:
    value = m.number("/proc/sys/net/ipv4/tcp_tw_reuse")
    return Finding(
        "net.ipv4.tcp_tw_reuse",
        "ok" if value in (1, 2) else "advice",
        str(value),
        "1 (or 2, loopback only)",
        "ports in TIME_WAIT can be used again for new upstream connections",
        "" if value in (1, 2) else "sysctl -w net.ipv4.tcp_tw_reuse=1",
    )


def _buffers(m: Machine, name: str) -> Finding:
    text = m.read(f"/proc/sys/net/ipv4/{name}") or "0 0 0"
    most = int(text.split()[-1])
    return Finding(
        f"net.ipv4.{name}",
        "ok" if most >= 1 << 20 else "advice",
        text,
        "maximum of 1 MiB or more",
        "large answers over fast networks fill the socket buffer",
        "" if most >= 1 << 20 else f'sysctl -w net.ipv4.{name}="4096 65536 4194304"',
    )


def _cpus(m: Machine) -> Finding:
    usable, all_ = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = m.read("/sys/fs/cgroup/cpu.max") or "max"
    text = f"{usable} usable of {all_}" + ("" if quota.startswith("max") else f", quota {quota}")
    return Finding("CPUs", "ok", text, "one worker for each", "workers: auto follows affinity and quota")


def _kernel(m: Machine) -> list[Finding]:
    libc = ctypes.CDLL(None, use_errno=True)
    uring = m.number("/proc/sys/kernel/io_uring_disabled")
    release = platform.release()
    tls = "tls" in (m.read("/proc/sys/net/ipv4/tcp_available_ulp") or "")
    pages = m.number("/proc/sys/fs/pipe-user-pages-soft")
    return [
        Finding("kernel", "ok", release, "5.10 or newer", "SO_REUSEPORT, EPOLL and memfd as used here"),
        Finding(
            "splice",
            "ok" if hasattr(libc, "splice") else "advice",
            "there" if hasattr(libc, "splice") else "missing",
            "there",
            "bodies can move without copies",
        ),
        Finding(
            "io_uring",
            "ok",
            {0: "allowed", 1: "for privileged processes", 2: "off", None: "unknown"}.get(uring, str(uring)),
            "not needed",
            "this version does not use it",
        ),
        Finding(
            "kernel TLS",
            "ok",
            "there" if tls else "not loaded",
            "not needed",
            "this version seals records in user space",
        ),
        Finding(
            "fs.pipe-user-pages-soft",
            "ok" if (pages or 0) == 0 or (pages or 0) >= 16384 else "advice",
            str(pages),
            "16384 or more",
            "pipes for splice shrink to one page beyond it",
        ),
    ]


def _openssl(m: Machine) -> list[Finding]:
    from gwcore._speedups.crypto import accepts, version

    text = version()
    mapped = m.read("/proc/self/maps") or ""
    bundled = "gwcore.libs" in mapped  # where auditwheel puts what it takes into a wheel
    return [
        Finding(
            "OpenSSL",
            "ok" if text.startswith("OpenSSL 3") else "advice",
            f"{text}, {'of the wheel: no engines, its own provider modules' if bundled else 'of the system'}",
            "3.0 or newer",
            "the library that the extension modules are linked with",
        ),
        Finding(
            "post-quantum key exchange",
            "ok",
            "X25519MLKEM768" if accepts("groups", "X25519MLKEM768") else "not in this OpenSSL (3.5 or newer has it)",
            "not needed yet",
            "protects what is recorded today from tomorrow's machines",
        ),
    ]


def examine(root: str = "/") -> list[Finding]:
    """Every finding, in the order in which they are shown."""
    m = Machine(root)
    return [
        _descriptors(),
        _sysctl(
            m,
            "net.core.somaxconn",
            4096,
            "the kernel cuts a listening socket's backlog to this in silence; bursts beyond it are dropped",
            512,
        ),
        _sysctl(m, "net.ipv4.tcp_max_syn_backlog", 1024, "half-open connections beyond it are dropped or answered by cookies"),
        _ports(m),
        _reuse(m),
        _buffers(m, "tcp_rmem"),
        _buffers(m, "tcp_wmem"),
        _cpus(m),
        *_kernel(m),
        *_openssl(m),
    ]


def render(findings: list[Finding]) -> str:
    """For a terminal."""
    mark = {"ok": "ok     ", "advice": "ADVICE ", "serious": "SERIOUS"}
    lines = []
    for f in findings:
        lines.append(f"{mark[f.level]} {f.name}: {f.value}")
        if f.level != "ok":
            lines.append(f"        advisable: {f.advice}; {f.why}")
            if f.command:
                lines.append(f"        {f.command}")
    return "\n".join(lines)
