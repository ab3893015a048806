"""Text from files, as a terminal or a page can show it.

A name in a model is any string: it may hold escape sequences that clear a screen or set its title, line ends that
forge a line of ours, and marks that turn the direction of what is read. All such characters are shown as escapes.
"""

from __future__ import annotations

import unicodedata

_LONGEST = 4000
"""Characters of one message; a longer one loses its middle."""

# Control (C0, C1), format (bidirectional marks, zero widths), surrogates, line and paragraph separators.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: str) -> str:
    r"""The text with every character that is none to look at as an escape: `\x1b`, `\n`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _UNSEEN else char for char in text
    )


def message(text: str) -> str:
    """A sentence with names in it, for one line of a terminal."""
    shown = printable(text)
    if len(shown) <= _LONGEST:
        return shown
    half = _LONGEST // 2
    return f"{shown[:half]} ... {shown[-half:]}"
