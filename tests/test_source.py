"""Rules about the source itself. Each has a name and a reason; an exemption that is not needed fails."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gwcore"
# A file may cimport strictly lower levels. pool and breaker stand outside of _speedups because they are public.
LEVELS = {
    "types": 0,
    "sys": 0,
    "cllhttp": 0,
    "reasons": 0,
    "slab": 1,
    "address": 1,
    "buffer": 1,
    "timer": 1,
    "ring": 1,
    "regex": 1,
    "histogram": 1,
    "llhttp": 1,
    "fields": 1,
    "crypto": 1,
    "copenssl": 0,
    "store": 1,
    "copies": 1,
    "copyput": 2,
    "copypurge": 2,
    "leases": 2,
    "copystore": 3,
    "copymail": 2,
    "errands": 21,
    "sessions": 5,
    "shm": 4,
    "path": 2,
    "outlist": 2,
    "tls": 2,
    "plan": 3,
    "breaker_core": 2,
    "breaker_cell": 3,
    "waiting": 2,
    "limiter": 2,
    "pressure": 8,
    "admission": 10,
    "twin": 11,
    "hedge": 17,
    "explain": 10,
    "queueing": 11,
    "clients": 5,
    "pool": 5,
    "breaker": 5,
    "router": 5,
    "tickets": 5,
    "tlsjobs": 5,
    "tlscontext": 5,
    "tlsclient": 6,
    "handshakes": 5,
    "tlsserver": 6,
    "head": 5,
    "chunked": 5,
    "http1": 7,
    "conn": 7,
    "idle": 7,
    "upstream": 8,
    "connect": 10,
    "outlier": 9,
    "permit": 10,
    "budget": 2,
    "retry": 2,
    "again": 13,
    "deadline": 10,
    "breakers": 5,
    "breaker_probe": 4,
    "trailers": 8,
    "origin": 8,
    "splice": 8,
    "proxyproto": 8,
    "story": 9,
    "forward": 11,
    "answer": 11,
    "accesslog": 11,
    "body": 11,
    "attempt": 11,
    "warm": 11,
    "choose": 11,
    "promise": 10,
    "journal": 11,
    "ladder": 11,
    "drill": 11,
    "drills": 5,
    "ends": 12,
    "tunnel": 13,
    "relay": 14,
    "freshness": 8,
    "collect": 10,
    "copyanswer": 11,
    "keeping": 13,
    "cached": 17,
    "proxy": 15,
    "detached": 16,
    "begin": 18,
    "exchange": 19,
    "reactor": 20,
    "plane": 22,
    "early": 9,
    "greet": 13,
    "handshake": 8,
    "probe": 10,
}


def sources() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".pyx", ".pxd"))


def code(path: Path) -> str:
    """The text without comments and strings over several lines."""
    text = re.sub(r'"""(?:.|\n)*?"""', lambda m: "\n" * m[0].count("\n"), path.read_text())
    return re.sub(r"(?m)#.*$", "", text)


def test_layers_cimports_go_strictly_down():
    for path in sources():
        own = LEVELS[path.stem]
        for module in re.findall(r"(?m)^\s*from gwcore\.(?:_speedups\.)?(\w+) cimport", code(path)):
            if module != path.stem:
                assert LEVELS[module] < own, f"{path.relative_to(ROOT)} (level {own}) cimports {module} (level {LEVELS[module]})"


def test_a_pxd_names_its_level():
    for path in sources():
        named = re.match(r"# Level (\d+)\.", path.read_text())
        assert named is None or int(named[1]) == LEVELS[path.stem], path.relative_to(ROOT)


def test_no_textual_includes():
    assert not list(PACKAGE.rglob("*.pxi"))
    for path in sources():
        assert not re.search(r"(?m)^include ", code(path)), path


def test_every_nogil_function_is_noexcept():
    # without it every caller takes the GIL (44-59 ns) and only some of the cases are hinted at
    for path in sources():
        extern = False
        for n, line in enumerate(code(path).splitlines(), 1):
            if re.match(r"cdef extern", line):
                extern = True
                continue
            if line and not line[0].isspace():
                extern = False
            if extern:
                continue
            if re.search(r"\)\s*nogil\s*:?\s*$", line) and "noexcept" not in line:
                raise AssertionError(f"{path.relative_to(ROOT)}:{n}: nogil without noexcept: {line.strip()}")


def test_files_have_one_idea():
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".pyx", ".pxd", ".h", ".pyi"):
            assert len(path.read_text().splitlines()) <= 600, f"{path.relative_to(ROOT)} is over the wall of 600 lines"


def test_the_clock_is_read_in_one_place():
    # everybody else gets the time as an argument, so that timelines never run backwards and policies are tested without sleeping; greet measures
    # what a step of a handshake took, which is no point in time
    allowed = {"reactor.pyx", "breaker.pyx", "greet.pyx", "sys.pxd"}
    found = {path.name for path in sources() if "clock_gettime" in code(path)}
    assert found == allowed


def rows() -> list[list[str]]:
    text = (PACKAGE / "_speedups" / "reasons.h").read_text()
    return [[c.strip() for c in m.split(",")] for m in re.findall(r"X\(([A-Z_]+, .*?)\)", text)]


def test_reasons_pxd_names_what_reasons_h_has():
    words = {"R_" + r[0] for r in rows()} | {"R_COUNT"}
    named = set(re.findall(r"\bR_[A-Z_]+\b", code(PACKAGE / "_speedups" / "reasons.pxd")))
    assert named <= words, named - words
    used = {w for path in sources() if path.name != "reasons.pxd" for w in re.findall(r"\bR_[A-Z_]+\b", code(path))}
    assert used <= named


def test_every_reason_is_documented():
    docs = (ROOT / "docs" / "reasons.md").read_text()
    for r in rows():
        word = r[1].strip('"')
        assert word == "-" or f"`{word}`" in docs, f"{word} is not in docs/reasons.md; run ci/gen_docs.py"


def test_states_have_ways_in_and_out():
    from gwcore._speedups.conn import edges as conn_edges
    from gwcore._speedups.ends import edges as exchange_edges

    for edges in (conn_edges(), exchange_edges()):
        reached = {to for ways in edges.values() for to in ways}
        assert set(edges) == reached and all(edges.values()), edges


def test_no_paths_of_a_machine():
    for path in ROOT.rglob("*"):
        if path.suffix in (".py", ".pyx", ".md", ".sh", ".yaml", ".toml") and not {".venv", "build", ".git", "dist"} & set(
            path.parts
        ):
            assert not re.search(r"(?<![\w.])/(?:work|farm|root)/", path.read_text()), path
