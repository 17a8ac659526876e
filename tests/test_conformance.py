"""Every promise of conformance.toml has a test that names it, and every name is a promise."""

from __future__ import annotations

from ci.gen_docs import promises, proofs


def test_every_promise_is_tested_and_every_name_is_promised():
    known = {number for _, rows in promises() for number in rows}
    named = proofs()
    assert known - named.keys() == set(), "no test names these"
    assert named.keys() - known == set(), "tests name what nobody promised"
