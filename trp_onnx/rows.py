"""Rows of what was before and after, as a result shows itself: in the terminal, at a prompt, in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

MOST = 4
"""Rows below the head that a result shows at a prompt."""

WIDEST = 40
"""Characters of a name at a prompt."""


class Headlined:
    """A result that shows what matters in five lines at a prompt, and as a table in a notebook."""

    def headline(self) -> Sequence[Sequence[str]]:
        """What matters: a head, and at most four rows."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return as_text(self.headline())

    def _repr_html_(self) -> str:
        return as_html(self.headline())


def shortened(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """As many rows as a prompt shows; the last says how many more there are."""
    if len(rows) <= MOST:
        return list(rows)
    rest = [f"and {len(rows) - MOST + 1} more", *("" for _ in rows[0][1:])]
    return [*rows[: MOST - 1], rest]


class Row(NamedTuple):
    """One quantity: its name, before, after, and how they compare."""

    name: str
    before: str
    after: str
    change: str


def si(value: float | None) -> str:
    """A count for people: 1.23 M; a dash for the unknown."""
    if value is None:
        return "-"
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.2f}{suffix}"
    return f"{value:.0f}"


def in_bytes(value: int) -> str:
    """A size for people: 1.23 MB."""
    return f"{si(value)}B" if value >= 1e3 else f"{value} B"


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns of one width each, the first from the left; of names that are too long the end is shown."""
    rows = [[_end_of(first), *others] for first, *others in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip())
    return "\n".join(lines)


def _end_of(name: str) -> str:
    return name if len(name) <= WIDEST else f"\u2026{name[1 - WIDEST :]}"


def as_html(rows: Sequence[Sequence[str]]) -> str:
    """The same as a table for a notebook; the first row is its head."""
    head, *body = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in body)}</tbody></table>"
