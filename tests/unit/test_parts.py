"""Parts without sockets: paths, chunks, router, timer wheel, histogram, plan, llhttp."""

from __future__ import annotations

import random
from urllib.parse import unquote

import pytest
from gwcore._speedups.chunked import ChunkedProbe
from gwcore._speedups.fields import METHOD_NAMES
from gwcore._speedups.http1 import RequestProbe
from gwcore._speedups.path import normalise
from gwcore._speedups.router import RouterProbe
from gwcore._speedups.shm import Segment, reasons
from gwcore._speedups.timer import WheelProbe
from hypothesis import given
from hypothesis import strategies as st

from gwcore._speedups import fields, histogram, llhttp, plan, plane, regex
from gwcore.config.compile import compile_plan
from gwcore.config.load import load_text

# ---- paths ----


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/", "/"), ("/a/b", "/a/b"), ("/a/./b", "/a/b"), ("/a/../b", "/b"), ("/a/b/..", "/a/"), ("/a/.", "/a/"), ("/a//b", "/a//b"),
        ("/%41%7e", "/A~"), ("/%2e%2e/x", None), ("/a/%2E%2e/b", "/b"), ("/..", None), ("/a/../../b", None), ("/%2f", "/%2f"), ("/a%5Cb", "/a%5Cb"),
        ("/..%2fx", None), ("/a/x%2f..", None), ("/a%2f..%2fb", None), ("/%", None), ("/%4", None), ("/%zz", None), ("/%00", None), ("/...", "/..."),
        ("/a..b", "/a..b"), ("/.a", "/.a"), ("x", None), ("/%25%32%65", "/%252e"), ("/a/%2e%2e%2fb", None),
    ],
)  # fmt: skip
def test_normalise(path, normal):
    # R6 R7
    got = normalise(path.encode())
    assert got == (None if normal is None else normal.encode())


@given(st.text(alphabet="/.a%2eE5cCfF", max_size=40))
def test_normalise_is_stable_and_never_climbs(text):
    got = normalise(b"/" + text.encode())
    if got is not None:
        assert normalise(got) == got
        assert ".." not in unquote(
            got.decode().replace("%2f", "/").replace("%2F", "/").replace("%5c", "/").replace("%5C", "/")
        ).split("/")


# ---- chunks ----


def feed(text: bytes, cuts: list[int]) -> tuple[str, bytes]:
    probe = ChunkedProbe()
    body, at = b"", 0
    for end in [*sorted(cuts), len(text)]:
        outcome, part, used = probe.feed(text[at:end])
        body += part
        if outcome != "again":
            return outcome, body
        assert used == end - at
        at = end
    return "again", body


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.lists(st.integers(0, 300), max_size=8))
def test_any_split_of_a_chunked_body_gives_the_same(parts, cuts):
    # B15
    text = b"".join(b"%X;e=1\r\n" % len(p) + p + b"\r\n" for p in parts) + b"0\r\nT: x\r\n\r\n"
    assert feed(text, [min(c, len(text)) for c in cuts]) == ("done", b"".join(parts))


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_garbage_has_one_outcome_too(text, cuts):
    assert feed(text, [min(c, len(text)) for c in cuts])[0] == feed(text, [])[0]


def test_chunk_limits():
    assert feed(b"7fffffffffffffff\r\n", [])[0] == "again"
    assert feed(b"8000000000000000\r\n", [])[0] == "fail"
    assert feed(b"0" * 100 + b"5\r\n", [])[0] == "fail"
    assert feed(b"5;" + b"x" * 300, [])[0] == "fail"
    assert feed(b"0\r\n" + b"A: b\r\n" * 1000, [])[0] == "fail"


# ---- router ----

ROUTES = """
listeners: [{address: "127.0.0.1:1"}]
upstreams: {u: {endpoints: ["127.0.0.1:9"]}}
routes:
  - {name: exact, match: {path: /a/b}, upstream: u}
  - {name: ab, match: {prefix: /a/b}, upstream: u}
  - {name: a, match: {prefix: /a/}, upstream: u}
  - {name: canary, match: {prefix: /c, headers: {X-Canary: "1"}}, upstream: u}
  - {name: query, match: {prefix: /c, query: {v: "2", w: "*"}}, upstream: u}
  - {name: post, match: {prefix: /c, methods: [POST]}, upstream: u}
  - {name: host, match: {host: [h.example.com, "*.wild.example.com"], prefix: /}, upstream: u}
  - {name: deep, match: {host: "*.x.wild.example.com", prefix: /}, upstream: u}
"""


def route(path: str, host: str = "", method: str = "GET", query: bytes = b"", fields_: bytes = b""):
    probe = RouterProbe(compile_plan(load_text(ROUTES).config))
    return probe.find(host.encode(), path.encode(), METHOD_NAMES.index(method), query, fields_)


def test_most_specific_wins():
    assert [route(p)[0] for p in ("/a/b", "/a/b/", "/a/b/c", "/a", "/a/", "/a/x", "/ab", "/a/bc")] == [
        "exact", "ab", "ab", "a", "a", "a", None, "a",
    ]  # fmt: skip
    assert route("/c", fields_=b"x-canary:1\n")[0] == "canary"
    assert route("/c", query=b"w=&v=2")[0] == "query" and route("/c", query=b"v=22&w=1")[0] is None
    assert route("/c", method="POST")[0] == "post"
    name, allowed = route("/c/d")
    assert name is None and allowed == 1 << METHOD_NAMES.index("POST")


def test_hosts_come_first():
    assert route("/a/b", "h.example.com")[0] == "host"
    assert route("/z", "q.wild.example.com")[0] == "host"
    assert route("/z", "q.x.wild.example.com")[0] == "deep"
    assert route("/z", "wild.example.com")[0] is None and route("/a", "wild.example.com")[0] == "a"


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=6), st.randoms())
def test_the_router_agrees_with_a_plain_search(segments, rng):
    prefixes = {"/" + "/".join(rng.choice("ab") for _ in range(rng.randint(1, 4))) for _ in range(6)}
    text = 'listeners: [{address: "127.0.0.1:1"}]\nroutes:\n' + "".join(
        f"  - {{name: '{p}', match: {{prefix: {p}}}, respond: {{}}}}\n" for p in sorted(prefixes)
    )
    path = "/" + "/".join(segments)
    want = max((p for p in prefixes if path == p or path.startswith(p + "/")), key=len, default=None)
    assert RouterProbe(compile_plan(load_text(text).config)).find(b"", path.encode())[0] == want


def test_regexes_are_checked_and_bounded():
    assert regex.check("^/a[") is not None and regex.check("^/a[0-9]+$") is None


# ---- timers ----


@given(st.integers(0, 1 << 40), st.randoms())
def test_the_wheel_fires_every_timer_once_and_in_time(start, rng):
    w = WheelProbe(40, start)
    due: dict[int, int] = {}
    now = start
    for _ in range(60):
        if rng.random() < 0.7:
            i, at = rng.randrange(40), now + rng.choice([0, 1, 5, 255, 256, 257, 1000, 70_000, 131_072, 400_000])
            w.arm(i, at)
            due[i] = at
        elif due and rng.random() < 0.3:
            i = rng.choice(list(due))
            w.cancel(i)
            del due[i]
        if rng.random() < 0.6:
            now += rng.choice([1, 2, 100, 255, 256, 300, 5000, 140_000])
            fired = w.advance(now)
            assert len(fired) == len(set(fired))
            late = {i for i, at in due.items() if at <= now}
            assert set(fired) <= set(due)
            for i in fired:
                assert due.pop(i) <= now + 1
            assert not late - set(fired) or all(due.get(i, now + 1) > now - 1 for i in late - set(fired))
        soonest = w.next_ms()
        if due:
            assert soonest and soonest <= max(min(due.values()), now + 1)
        assert w.armed == len(due)
    assert set(w.advance(now + 2_000_000)) | set() == set(due) or w.armed == 0


# ---- others ----


def test_histogram_cells_and_edges():
    assert histogram.cell_of(0) == histogram.cell_of(100) == 0
    for us in (100, 101, 150, 999, 1000, 123_456, 99_000_000):
        cell = histogram.cell_of(us)
        low = histogram.edge_us(cell - 1) if cell else 0
        assert low <= us <= histogram.edge_us(cell) * 1.0001, (us, cell)
        if us > 200:
            assert abs((low + histogram.edge_us(cell)) / 2 - us) / us <= 0.0626
    assert histogram.cell_of(1 << 50) == 160


def test_llhttp_was_found_and_behaves():
    assert llhttp.self_test() in llhttp.ORDERS


def test_field_ids_ignore_case():
    assert fields.field_id_of(b"HOST") == fields.field_id_of(b"host") != 0
    assert fields.field_id_of(b"x_forwarded_for") == fields.field_id_of(b"X_Real-IP") != fields.field_id_of(b"x-forwarded-for")
    assert fields.field_id_of(b"hostx") == fields.field_id_of(b"") == 0


def test_plans_of_another_build_are_refused():
    import os

    segment = Segment.create(1)
    p = plane.Plane(0, segment.fd)
    blob = bytearray(compile_plan(load_text(ROUTES).config))
    for change, why in (
        (lambda b: b[:-1], "not whole"),
        (lambda b: b"x" + b[1:], "not a plan"),
        (lambda b: b[:4] + b"xxxx" + b[8:], "another build"),
    ):
        fd = os.memfd_create("plan")
        os.write(fd, change(bytes(blob)))
        with pytest.raises(ValueError, match=why):
            p.prepare(1, fd)
        os.close(fd)
    p.close()


def test_regex_that_does_not_compile_refuses_the_plan():
    import os

    text = 'listeners: [{address: "127.0.0.1:1"}]\nroutes: [{name: bad, match: {regex: "^/x"}, respond: {}}]\n'
    blob = compile_plan(load_text(text).config).replace(b"^/x", b"^/(")
    fd = os.memfd_create("plan")
    os.write(fd, blob)
    p = plane.Plane(0, Segment.create(1).fd)
    with pytest.raises(ValueError, match="route bad: regex"):
        p.prepare(1, fd)
    os.close(fd)
    p.close()


def test_one_idle_connection_costs_less_than_800_bytes():
    assert plane.sizes()["conn"] <= 400


def test_segment_slots_follow_identity():
    s = Segment.create(2)
    assert s.slot("route", "a") == 0 and s.slot("route", "b") == 1 and s.slot("route", "a") == 0
    for i in range(3000):
        assert s.slot("route", f"r{i}") <= 2047
    assert "other" in s.snapshot()["routes"]
    with pytest.raises(IndexError):
        s.retire(2)
    assert len(reasons()) == len(set(reasons())) > 60
    assert random.Random(1).random() < 1
    assert plan.SIZES["route"] % 8 == 0


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "good"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", "again"),
        (b"GET / HTTP/1.1\r\n\r\n", "bad"),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "bad"),
    ],
)
def test_request_heads_without_a_socket(text, verdict):
    assert RequestProbe().judge(text) == verdict
