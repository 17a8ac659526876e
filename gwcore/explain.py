"""Which route takes a request, in words: the same rules as the router, on the models."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from gwcore._speedups.path import normalise
from gwcore.config.base import METHODS
from gwcore.config.routes import Match, Route
from gwcore.config.schema import Config
from gwcore.config.units import format_duration, format_size


def _host_rank(match: Match, host: str) -> int | None:
    """3 + length exact, 1 + length wildcard, 0 no host asked for; None = not this host."""
    if not match.host:
        return 0
    best: int | None = None
    for h in match.host:
        if h.startswith("*."):
            if host.endswith(h[1:]) and host != h[1:]:
                best = max(best or 0, 1 + len(h))
        elif h == host:
            best = 10_000
    return best


def _why_not(route: Route, method: str, host: str, path: str, query: list[str], headers: list[tuple[str, str]]) -> str:
    """Empty when the route matches, else the first thing that does not."""
    m = route.match
    if _host_rank(m, host) is None:
        return f"host {host or '(none)'} is not {' or '.join(m.host)}"
    if m.path is not None and path != m.path:
        return f"path is not {m.path}"
    if m.regex is not None and not re.search(m.regex, path):
        return f"path does not match the regex {m.regex}"
    if m.path is None and m.regex is None:
        prefix = (m.prefix or "/").rstrip("/")
        if path != prefix and not path.startswith(prefix + "/"):
            return f"path is not below {m.prefix}"
    for name, value in m.headers.items():
        if not any(n.lower() == name.lower() and value in ("*", v) for n, v in headers):
            return f"header {name}{'' if value == '*' else ': ' + value} is not there"
    for name, value in m.query.items():
        if not any(q.partition("=")[0] == name and (value == "*" or q.partition("=")[2] == value) for q in query):
            return f"query {name}{'' if value == '*' else '=' + value} is not there"
    if m.methods and method not in m.methods:
        return f"method {method} is not {', '.join(m.methods)}"
    return ""


def _rank(route: Route, host: str) -> tuple[int, int, int]:
    m = route.match
    kind = (2, 0) if m.path is not None else (0, 0) if m.regex is not None else (1, len((m.prefix or "/").rstrip("/")))
    return (_host_rank(m, host) or 0, *kind)


def explain(config: Config, method: str, url: str, headers: tuple[str, ...] = ()) -> tuple[str, bool]:
    """(text, whether a route takes it). ValueError for a URL or header that is none."""
    if method not in METHODS:
        raise ValueError(f"{method!r} is not a method that gwcore knows; methods are upper case, such as GET")
    if "/" not in url:
        raise ValueError(f"{url!r} is neither a path nor a URL; write /path, host/path or http://host/path")
    parts = urlsplit(url if "://" in url else "http://" + url if not url.startswith("/") else "http:" + "//" + url)
    fields = []
    for h in headers:
        name, colon, value = h.partition(":")
        if not colon:
            raise ValueError(f"{h!r} is not a header; write 'Name: value'")
        fields.append((name.strip(), value.strip()))
    host = next((v for n, v in fields if n.lower() == "host"), "" if url.startswith("/") else parts.netloc)
    host = re.sub(r":\d*$", "", host).rstrip(".").lower()
    path = normalise((parts.path or "/").encode())
    if path is None:
        return f"{url}: the path is refused with 400 bad_path (broken escape, or above the root)", False
    text = path.decode("latin-1")
    query = parts.query.split("&") if parts.query else []
    verdicts = [(r, _why_not(r, method, host, text, query, fields)) for r in config.routes]
    matching = sorted((r for r, why in verdicts if not why), key=lambda r: _rank(r, host), reverse=True)
    lines = [f"{method} {text} for host {host or '(none)'}"]
    if not matching:
        other = [r for r, why in verdicts if why.startswith("method ")]
        lines.append("no route: " + ("405 method_not_allowed" if other else "404 no_route"))
    else:
        lines += _describe(config, matching[0])
    for r, why in verdicts:
        if why:
            lines.append(f"  not {r.name}: {why}")
        elif r is not matching[0]:
            lines.append(f"  not {r.name}: {matching[0].name} is more specific, or stands before it")
    return "\n".join(lines), bool(matching)


def _promise(config: Config, r: Route) -> list[str]:
    promise, ladder = config.tiers.of(r.tier), r.degrade or config.degrade.of(r.tier)
    lines = [f"  promise: {promise.availability * 100:g} % within {format_duration(promise.latency)}"]
    if len(ladder.steps) > 1:
        steps = [f"static {s.static.status}" if s.static else s.kind for s in ladder.steps]
        budget = promise.latency if ladder.budget is None else ladder.budget
        lines.append(f"  ladder: {', '.join(steps)}; live has {format_duration(budget)}")
    return lines


def _describe(config: Config, r: Route) -> list[str]:
    lines = [f"route {r.name} (tier {r.tier})"]
    if r.respond:
        return [*lines, f"  answers {r.respond.status} with {len(r.respond.body.encode())} bytes from the gateway itself"]
    names = [(t.upstream, t.weight) for t in r.targets] or [(r.upstream or "", 1)]
    total = sum(w for _, w in names)
    for name, weight in names:
        u = config.upstreams[name]
        share = f" for {100 * weight / total:g} % of requests" if len(names) > 1 else ""
        lines.append(
            f"  upstream {name}{share}: {len(u.endpoints)} endpoints, {u.balance}, at most {u.pool.max_connections} connections each"
        )
        response = u.timeouts.response if r.timeouts.response is None else r.timeouts.response
        idle = u.timeouts.idle if r.timeouts.idle is None else r.timeouts.idle
        lines.append(
            f"  timeouts: queue {format_duration(u.pool.queue.timeout)}, connect {format_duration(u.timeouts.connect)}, "
            f"response {format_duration(response)}, idle {format_duration(idle)}"
        )
    lines += _promise(config, r)
    body = config.limits.body_bytes if r.limits.body_bytes is None else r.limits.body_bytes
    lines.append(f"  request body: at most {format_size(body) if body else 'any size'}")
    if r.rewrite.strip_prefix or r.rewrite.replace_prefix:
        lines.append(
            f"  path: {r.rewrite.strip_prefix or r.match.prefix or r.match.path} becomes {r.rewrite.replace_prefix or '/'}"
        )
    return lines
