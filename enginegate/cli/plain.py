"""Text that others wrote, made fit for a terminal and for a log: no control characters.

An engine's log lines, a user id in an error, an answer of a server we should not have
asked: each may hold escape sequences that repaint a terminal or forge a log line.
"""

import re
from typing import Final

_UNPRINTABLE: Final = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u2028\u2029"  # line and paragraph separator
    "\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction marks, which reorder what one reads
    "]+"
)


def one_line(text: str) -> str:
    """Return the text on one line, each run of control characters as a blank."""
    return _UNPRINTABLE.sub(" ", text).strip()


def shortened(text: str, width: int) -> str:
    """Return at most `width` characters of the text, and a word about the rest."""
    if len(text) <= width:
        return text
    return f"{text[:width]}… ({len(text) - width} more characters)"
