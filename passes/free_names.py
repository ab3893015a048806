"""Names that nothing has yet."""

from __future__ import annotations

from collections.abc import Container


def free_name(wanted: str, taken: Container[str | None]) -> str:
    """The name itself, or with a number where it is taken already."""
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}#{count}"
    return name
