"""What every part of the plan is written with: texts, and tables of names."""

from __future__ import annotations

from typing import Any

from gwcore._speedups.plan import PlanBuilder, host_hash

NO_STR = {"off": 0, "len": 0}
NO_ARRAY = {"off": 0, "n": 0}


class Writer:
    """Writes into a PlanBuilder."""

    def __init__(self, builder: PlanBuilder):
        self.b = builder

    def text(self, value: str | bytes) -> Any:
        return self.b.text(value.encode("latin-1" if value.isascii() else "utf-8") if isinstance(value, str) else value)

    def ctext(self, value: str) -> Any:
        """A text that C reads up to its NUL; the length does not count that."""
        at = self.text(value.encode() + b"\0")
        return {"off": at["off"], "len": at["len"] - 1}

    def names(self, ids: dict[str, int]) -> Any:
        """A table of host names for plan.name_id; one that begins with `*.` is a wildcard."""
        rows = []
        for name, i in ids.items():
            wildcard = name.startswith("*.")
            text = (name[1:] if wildcard else name).encode()
            rows.append({"hash": host_hash(text, wildcard), "name": self.text(text), "id": i, "wildcard": int(wildcard)})
        return self.b.array("host", open_table(rows, {"hash": 0, "name": NO_STR, "id": 0, "wildcard": 0})) if rows else NO_ARRAY


def open_table(rows: list[dict[str, Any]], empty: dict[str, Any]) -> list[dict[str, Any]]:
    """Open addressing with linear probing, at most a third full; the place is the hash's upper half."""
    size = 4
    while size < len(rows) * 3:
        size *= 2
    table: list[dict[str, Any]] = [empty] * size
    for row in rows:
        i = (row["hash"] >> 32) & (size - 1)
        while table[i]["hash"]:
            i = (i + 1) & (size - 1)
        table[i] = row
    return table
