"""YAML to models. Every error at once, each with file, line, column, path, and what to do about it."""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from gwcore.config import degrade
from gwcore.config.base import split_address
from gwcore.config.certs import read as read_material
from gwcore.config.certs import read_upstream
from gwcore.config.schema import Config
from gwcore.config.tls import under, upstream_under

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEPTH_MAX = 30
REPEATED_MAX = 100_000  # values that stand in for aliases; each may be a whole tree, whose own aliases multiply it
WILDCARDS = {"0.0.0.0": 4, "::": 6}
LOW_MEMORY = 1 << 20
VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})")


@dataclass(frozen=True)
class ConfigError:
    """One problem. `line` and `column` count from 1."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.path + ': ' if self.path else ''}{self.message}"


class ConfigErrors(Exception):
    """Everything that is wrong with a configuration, in file order."""

    def __init__(self, errors: list[ConfigError]):
        self.errors = sorted(errors, key=lambda e: (e.line, e.column))
        super().__init__("\n".join(map(str, self.errors)))


@dataclass
class Loaded:
    """A configuration that may be run, and what is worth a warning in it."""

    config: Config
    warnings: list[ConfigError]


class _Reader:
    def __init__(self, name: str):
        self.name = name
        self.errors: list[ConfigError] = []
        self.places: dict[tuple[Any, ...], tuple[int, int]] = {(): (1, 1)}
        self.seen: set[int] = set()
        self.repeated = 0

    def place(self, *path: Any) -> tuple[int, int]:
        """Where a value stands, or the nearest one around it that is written down."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def error(self, place: tuple[int, int], path: tuple[Any, ...], message: str) -> None:
        self.errors.append(ConfigError(self.name, *place, dotted(path), message))

    def value(self, node: yaml.Node, path: tuple[Any, ...]) -> Any:
        """The node as Python data; places remembered, duplicate keys and undefined variables reported."""
        place = (node.start_mark.line + 1, node.start_mark.column + 1)
        self.places.setdefault(path, place)
        self.repeated += id(node) in self.seen
        self.seen.add(id(node))
        if self.repeated > REPEATED_MAX:
            message = f"aliases stand for more than {REPEATED_MAX:,} values in all; write fewer of them"
            raise ConfigErrors([ConfigError(self.name, *place, dotted(path[:3]), message)])
        if len(path) > DEPTH_MAX:
            self.error(place, path[:3], f"is nested more than {DEPTH_MAX} levels deep, or contains itself")
            return None
        if isinstance(node, yaml.MappingNode):
            out: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = self.scalar(key_node, path)
                if isinstance(key, bool):  # YAML 1.1 takes `on` for true, also where it is the name of a key
                    key = key_node.value
                here = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
                if key in out:
                    first = self.places[(*path, key)]
                    self.error(here, (*path, key), f"is given twice; the first is in line {first[0]}")
                    continue
                self.places[(*path, key)] = here
                out[key] = self.value(value_node, (*path, key))
            return out
        if isinstance(node, yaml.SequenceNode):
            return [self.value(n, (*path, i)) for i, n in enumerate(node.value)]
        return self.scalar(node, path)

    def scalar(self, node: yaml.Node, path: tuple[Any, ...]) -> Any:
        place = (node.start_mark.line + 1, node.start_mark.column + 1)
        if not isinstance(node, yaml.ScalarNode):
            self.error(place, path, "a key must be a plain word")
            return "?"
        if "$" not in node.value:
            try:
                return _construct(node)
            except (yaml.YAMLError, ValueError) as why:
                self.error(place, path, str(why))
                return None

        def put(m: re.Match[str]) -> str:
            if m[1] is None:
                return "$"
            if m[1] in os.environ:
                return os.environ[m[1]]
            if m[2] is None:
                self.error(
                    place, path, f"the environment variable {m[1]} is not set; set it, or give a default: ${{{m[1]}:-default}}"
                )
                return ""
            return m[2]

        text = VARIABLE.sub(put, node.value)
        if node.style in ("'", '"', "|", ">"):
            return text
        return _construct(yaml.ScalarNode(yaml.resolver.Resolver().resolve(yaml.ScalarNode, text, (True, False)), text))


def _construct(node: yaml.ScalarNode) -> Any:
    return yaml.SafeLoader("").construct_object(node)  # type: ignore[no-untyped-call]


def dotted(path: tuple[Any, ...]) -> str:
    """`routes[0].match.path`"""
    out = ""
    for p in path:
        out += f"[{p}]" if isinstance(p, int) else f".{p}" if out else str(p)
    return out


def _known_keys(path: tuple[Any, ...]) -> list[str]:
    """The keys that the model at path accepts, for did-you-mean."""
    at: Any = Config
    for p in path:
        while get_origin(at) is Annotated:
            at = get_args(at)[0]
        if get_origin(at) in (dict, list):
            at = get_args(at)[-1]
        elif _is_model(at) and str(p) in at.model_fields:
            at = at.model_fields[str(p)].annotation
        else:
            return []
    while get_args(at) and not _is_model(at):
        at = next((a for a in get_args(at) if _is_model(a) or get_args(a)), None)
    return list(at.model_fields) if _is_model(at) else []


def _is_model(at: Any) -> bool:
    return isinstance(at, type) and issubclass(at, BaseModel)


def _clean(loc: tuple[Any, ...], data: Any) -> tuple[Any, ...]:
    """A pydantic location without the names of union branches: only what can be followed in the data."""
    out: list[Any] = []
    for p in loc:
        if isinstance(data, dict) and p in data or isinstance(data, list) and isinstance(p, int) and p < len(data):
            data = data[p]
        else:
            if p == loc[-1] and isinstance(data, dict):
                out.append(p)
            continue
        out.append(p)
    return tuple(out)


def _message(e: Any, path: tuple[Any, ...]) -> str:
    kind, ctx = e["type"], e.get("ctx", {})
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(path[-1]), _known_keys(path[:-1]), 1, 0.6)
        known = _known_keys(path[:-1])
        return "unknown key" + (f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}" if known else "")
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(ctx["error"])
    if kind == "literal_error":
        close = difflib.get_close_matches(str(e["input"]), re.findall(r"'([^']*)'", ctx["expected"]), 1, 0.6)
        return f"{e['input']!r} is not one of {ctx['expected']}" + (f"; did you mean {close[0]}?" if close else "")
    if kind == "too_short":
        n, has = ctx["min_length"], ctx["actual_length"]
        return f"needs at least {n} item{'s' if n > 1 else ''} and has {has}: add what is missing"
    if kind == "string_type" and not isinstance(e["input"], dict | list):
        return f"must be text, which YAML takes for {e['input']!r} as it stands: quote it"
    if kind in ("model_type", "dict_type"):  # a text in place of keys and values may be a secret
        return "must be keys and values"
    return f"{e['msg'][0].lower()}{e['msg'][1:]} (it is {e['input']!r})" if not isinstance(e["input"], dict | list) else e["msg"]


def _read_certificates(config: Config, reader: _Reader, base: Path, warnings: list[ConfigError]) -> None:
    """Open every file of the TLS of listeners and upstreams; what was read is what will be used."""
    for i, listener in enumerate(config.listeners):
        if listener.tls is None:
            continue
        root = ("listeners", i, "tls")
        listener.tls = under(listener.tls, base)

        def error(path: tuple[Any, ...], message: str, root: tuple[Any, ...] = root) -> None:
            reader.error(reader.place(*root, *path), (*root, *path), message)

        def warn(path: tuple[Any, ...], message: str, root: tuple[Any, ...] = root) -> None:
            warnings.append(ConfigError(reader.name, *reader.place(*root, *path), dotted((*root, *path)), message))

        listener._material = read_material(listener.tls, error, warn)
    for name, upstream in config.upstreams.items():
        if upstream.tls is None:
            continue
        upstream.tls = upstream_under(upstream.tls, base)
        place = ("upstreams", name, "tls")
        if not upstream.tls.verify:
            warnings.append(
                ConfigError(
                    reader.name,
                    *reader.place(*place, "verify"),
                    f"upstreams.{name}.tls.verify",
                    "is off: whoever can answer at these addresses can read and change what is sent",
                )
            )

        def wrong(path: tuple[Any, ...], message: str, place: tuple[Any, ...] = place) -> None:
            reader.error(reader.place(*place, *path), (*place, *path), message)

        upstream._material = read_upstream(upstream.tls, wrong)


def _addresses(config: Config, reader: _Reader) -> None:
    """Nothing listens where something else does; 0.0.0.0 and [::] are all addresses of their family."""
    used: list[tuple[tuple[Any, ...], str]] = [(("listeners", i, "address"), x.address) for i, x in enumerate(config.listeners)]
    used.append((("admin", "address"), config.admin.address))
    before: dict[int, list[tuple[str, str, tuple[Any, ...]]]] = {}  # by port: many listeners, few on one
    for path, text in used:
        host, port = split_address(text)
        with contextlib.suppress(ValueError):
            host = str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)) if port else host
        for other, other_text, other_path in before.get(port, []):
            if _same_place(host, other):
                both = text if text == other_text else f"{text} and {other_text} overlap, and {other_text}"
                reader.error(
                    reader.place(*path),
                    path,
                    f"{both} is used by {dotted(other_path[:-1])} already; choose another port"
                    + (
                        f" for admin.address, whose default is {text}" if path[0] == "admin" and path not in reader.places else ""
                    ),
                )
                break
        before.setdefault(port, []).append((host, text, path))


def _same_place(a: str, b: str) -> bool:
    if a == b:
        return True
    for wild, other in ((a, b), (b, a)):
        if wild in WILDCARDS and not other.startswith("/"):
            family = 6 if ":" in other else 4  # of a name, nearly always
            if WILDCARDS[wild] == family:
                return True
    return False


def _log_path(path: str, reader: _Reader, warn: Callable[[tuple[Any, ...], str], None]) -> None:
    """Could the access log be opened? It is not made here."""
    if path in ("-", "off"):
        return
    at, log = ("access_log", "path"), Path(path)
    if log.is_dir():
        reader.error(reader.place(*at), at, f"{path} is a directory; write a file in it")
    elif not log.parent.is_dir():
        reader.error(reader.place(*at), at, f"there is no directory {log.parent}; make it")
    elif not os.access(log if log.exists() else log.parent, os.W_OK):
        warn(at, f"{path} cannot be written to by this user; the gateway's must be able to")


def _sla_path(path: str, reader: _Reader) -> None:
    """Could the file be written?"""
    at = ("sla", "file")
    if path == "off":
        return
    if Path(path).is_dir():
        reader.error(reader.place(*at), at, f"{path} is a directory; write a file in it")
    elif not Path(path).absolute().parent.is_dir():
        reader.error(reader.place(*at), at, f"there is no directory {Path(path).absolute().parent}; make it")


def _cross_checks(config: Config, reader: _Reader) -> list[ConfigError]:
    """What takes more than one model to see. Errors go to the reader; warnings are returned."""
    warnings: list[ConfigError] = []

    place = reader.place

    def warn(path: tuple[Any, ...], message: str) -> None:
        warnings.append(ConfigError(reader.name, *place(*path), dotted(path), message))

    _addresses(config, reader)
    _log_path(config.access_log.path, reader, warn)
    _sla_path(config.sla.file, reader)
    if config.buffers.total != "auto" and config.buffers.total < LOW_MEMORY:
        warn(
            ("buffers", "total"),
            "holds the buffers of a few requests only; others are closed unanswered. Write 1MiB or more, or auto",
        )
    for i, text in enumerate(config.trusted_proxies):
        net = ipaddress.ip_network(text, strict=False)
        if str(net.network_address) != str(ipaddress.ip_address(text.partition("/")[0])):
            warn(
                ("trusted_proxies", i),
                f"{text} is the network {net}, of which the address is one: write {net}, or the address alone",
            )
    names: dict[str, int] = {}
    keys: dict[Any, str] = {}
    for i, route in enumerate(config.routes):
        route.name = route.name or f"route-{i + 1}"
        if route.name in names:
            reader.error(
                place("routes", i, "name"),
                ("routes", i, "name"),
                f"the name {route.name} is used by routes[{names[route.name]}] already",
            )
        names.setdefault(route.name, i)
        wanted: list[tuple[tuple[Any, ...], str]] = [(("routes", i, "upstream"), route.upstream)] if route.upstream else []
        wanted += [(("routes", i, "targets", k, "upstream"), t.upstream) for k, t in enumerate(route.targets)]
        for path, name in wanted:
            if name not in config.upstreams:
                close = difflib.get_close_matches(name, config.upstreams, 1, 0.6)
                reader.error(
                    place(*path),
                    path,
                    f"there is no upstream {name}" + (f"; did you mean {close[0]}?" if close else "; add it under upstreams"),
                )
        m = route.match
        if m.regex is not None:
            try:
                from gwcore._speedups.regex import check

                why = check(m.regex)
            except ImportError:
                why = None
            if why:
                reader.error(place("routes", i, "match", "regex"), ("routes", i, "match", "regex"), f"does not compile: {why}")
        prefix = None if m.path is not None or m.regex is not None else (m.prefix or "/").rstrip("/")
        for host in m.host or [""]:
            key = (
                host,
                m.path,
                prefix,
                m.regex,
                tuple(sorted(m.methods)),
                tuple(sorted(m.headers.items())),
                tuple(sorted(m.query.items())),
            )
            weaker = (host, m.path, prefix, m.regex, (), (), ())
            before = keys.get(key) or keys.get(weaker)
            if before:
                warnings.append(
                    ConfigError(
                        reader.name,
                        *place("routes", i),
                        f"routes[{i}]",
                        f"{route.name} can never win: {before} stands before it and takes all that it matches",
                    )
                )
            keys.setdefault(key, route.name)
    for i, listener in enumerate(config.listeners):
        if listener.proxy_protocol and not config.trusted_proxies and not listener.address.startswith("unix:"):
            reader.error(
                place("listeners", i, "proxy_protocol"),
                ("listeners", i, "proxy_protocol"),
                "nobody may connect: add the addresses of the balancers in front to trusted_proxies",
            )
    return warnings


def load_text(text: str, name: str = "<config>", base: Path | None = None) -> Loaded:
    """A configuration from YAML text; files that it names are looked for below `base` (the current directory). ConfigErrors tells everything
    that is wrong with it."""
    reader = _Reader(name)
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as why:
        mark = why.problem_mark or why.context_mark
        raise ConfigErrors(
            [ConfigError(name, mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, "", f"not YAML: {why.problem}")]
        ) from None
    except yaml.YAMLError as why:
        raise ConfigErrors([ConfigError(name, 1, 1, "", f"not YAML: {why}")]) from None
    if node is None:
        raise ConfigErrors([ConfigError(name, 1, 1, "", "the file is empty; a listener and a route are the least")])
    data = reader.value(node, ())
    if not isinstance(data, dict):
        raise ConfigErrors([ConfigError(name, 1, 1, "", "the top level must be keys and values")])
    warnings: list[ConfigError] = []
    try:
        config = Config.model_validate(data)
        warnings = _cross_checks(config, reader)
        _read_certificates(config, reader, base or Path(), warnings)
        degrade.check(
            config,
            base or Path(),
            lambda path, text: reader.error(reader.place(*path), path, text),
            lambda path, text: warnings.append(ConfigError(reader.name, *reader.place(*path), dotted(path), text)),
        )
    except ValidationError as invalid:
        for e in invalid.errors():
            path = _clean(e["loc"], data)
            at = path
            while at not in reader.places:
                at = at[:-1]
            reader.error(reader.places[at], path, _message(e, path))
    if reader.errors:
        raise ConfigErrors(list(dict.fromkeys(reader.errors)))
    return Loaded(config, warnings)


def load_file(path: str | os.PathLike[str]) -> Loaded:
    """As load_text, from a file. A file that cannot be read is a ConfigErrors too."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as why:
        raise ConfigErrors([ConfigError(str(path), 1, 1, "", f"cannot be read: {why.strerror}")]) from None
    except UnicodeDecodeError as why:
        raise ConfigErrors([ConfigError(str(path), 1, 1, "", f"is not UTF-8: byte {why.start}")]) from None
    return load_text(text, str(path), Path(path).parent)


def load_config(path: str | os.PathLike[str]) -> Config:
    """The configuration in a YAML file. Raises ConfigErrors with every error."""
    return load_file(path).config
