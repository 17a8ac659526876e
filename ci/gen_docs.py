"""Writes docs/configuration.md and docs/reasons.md from the schema and reasons.h. `--check` says whether they are up to date."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from gwcore.config.dump import _is
from gwcore.config.schema import Config
from gwcore.config.units import Duration, Rate, Size, format_duration, format_size

ROOT = Path(__file__).parent.parent


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The model inside list[...], dict[str, ...], Annotated[...]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for a in get_args(annotation):
        if (found := model_of(a)) is not None:
            return found
    return None


def shown(value: Any, field: Any) -> str:
    if value is PydanticUndefined:
        return "**required**"
    if isinstance(value, BaseModel) or value in ({}, []):
        return ""
    if value is None or value == "":
        return "-"
    if isinstance(value, float) and _is(field.annotation, field.metadata, Duration):
        return f"`{format_duration(value)}`"
    if isinstance(value, int) and not isinstance(value, bool) and (_is(field.annotation, field.metadata, Size)):
        return f"`{format_size(value)}`"
    if isinstance(value, int) and _is(field.annotation, field.metadata, Rate):
        return f"`{format_size(value)}/s`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def walk(model: type[BaseModel], path: str, out: list[str]) -> None:
    out.append(f"\n## {path or 'Top level'}\n\n| key | default | meaning |\n|---|---|---|")
    deeper = []
    for name, field in model.model_fields.items():
        inner = model_of(field.annotation)
        text = (field.description or "").replace("\n", " ").replace("|", "\\|")
        out.append(f"| `{name}` | {shown(field.default, field)} | {text} |")
        if inner is not None:
            container = (
                "[]"
                if "list" in str(field.annotation).lower().split("[")[0]
                else ".*"
                if str(field.annotation).startswith("dict")
                else ""
            )
            deeper.append((inner, f"{path}.{name}{container}".lstrip(".")))
    for inner, where in deeper:
        walk(inner, where, out)


def configuration() -> str:
    out = [
        "# Configuration",
        "",
        "Generated from `gwcore/config/schema.py` by `ci/gen_docs.py`: change it there.",
        "",
        "Durations: `250ms` `5s` `1m` `1h`. Sizes: `16KiB` `4MiB`. `${VAR}` and `${VAR:-default}` take values from the environment (`$$` is a dollar sign). "
        "Unknown keys are errors. `gwcore check -c FILE` tells every error at once; `gwcore explain -c FILE METHOD URL` tells which route takes a request.",
    ]
    walk(Config, "", out)
    return "\n".join(out) + "\n"


def reasons() -> str:
    out = [
        "# Reasons",
        "",
        "Generated from `gwcore/_speedups/reasons.h` by `ci/gen_docs.py`. The same word stands in the problem document, in `Proxy-Status`, "
        "in the access log and as a label of `gwcore_failures_total`. Status `log`: nobody is left to answer, or the head was sent already and the "
        "connection is cut on purpose.",
        "",
        "| reason | status | side | may be sent again | Proxy-Status error |",
        "|---|---|---|---|---|",
    ]
    text = (ROOT / "gwcore/_speedups/reasons.h").read_text()
    for m in re.findall(r"X\(([A-Z_]+, .*?)\)", text):
        _, word, status, side, retry, _, proxy = (c.strip().strip('"') for c in m.split(","))
        if word == "-":
            continue
        out.append(
            f"| `{word}` | {status if status != '0' else 'log'} | {side.removeprefix('SIDE_').lower()} | {retry.removeprefix('RETRY_').lower()} | {proxy or '-'} |"
        )
    return "\n".join(out) + "\n"


def promises() -> list[tuple[str, dict[str, str]]]:
    """(title, {number: promise}) of each part of tests/conformance.toml."""
    parts = tomllib.loads((ROOT / "tests/conformance.toml").read_text()).values()
    return [(part["title"], {k: v for k, v in part.items() if k != "title"}) for part in parts]


def proofs() -> dict[str, list[str]]:
    """Where each number is tested: wire cases have it behind their title, tests in a comment or docstring."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests/wire").glob("*.md")):
        for line in path.read_text().splitlines():
            if m := re.fullmatch(r"### (.+) \(((?:[A-Z]\d+,? ?)+)\)", line):
                for number in re.findall(r"[A-Z]\d+", m[2]):
                    found.setdefault(number, []).append(f"wire/{path.name}: {m[1]}")
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = ""
        for line in path.read_text().splitlines():
            if m := re.match(r"def (test_\w+)", line):
                name = m[1]
            if m := re.match(r"\s*(?:#|\"\"\").*|def .*(#.*)", line):
                for number in re.findall(r"(?<![\w-])[RFBCULTK]\d{1,2}(?![\w-])", m[1] or m[0]):
                    where = f"{path.relative_to(ROOT / 'tests')}" + (f": {name}" if name else "")
                    if where not in found.setdefault(number, []):
                        found[number].append(where)
    return found


def conformance() -> str:
    tested = proofs()
    out = [
        "# Conformance",
        "",
        "What the gateway promises on the wire (RFC 9110 and 9112, and decisions of its own), each with the tests that prove it. Generated from "
        "`tests/conformance.toml` and the tests by `ci/gen_docs.py`.",
    ]
    for title, rows in promises():
        out += ["", f"## {title}", "", "| # | promise | tests |", "|---|---|---|"]
        out += [f"| {n} | {text} | {'<br>'.join(t.replace('|', ' ') for t in tested.get(n, []))} |" for n, text in rows.items()]
    return "\n".join(out) + "\n"


PAGES = {"docs/configuration.md": configuration, "docs/reasons.md": reasons, "docs/conformance.md": conformance}


def main() -> int:
    stale = []
    for name, make in PAGES.items():
        path = ROOT / name
        if not path.exists() or path.read_text() != make():
            stale.append(name)
            if "--check" not in sys.argv:
                path.parent.mkdir(exist_ok=True)
                path.write_text(make())
    if "--check" in sys.argv and stale:
        print("out of date, run ci/gen_docs.py: " + ", ".join(stale), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
