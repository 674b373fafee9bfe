"""Words of strangers, made harmless: names, captions and classes on their way to a terminal or a page."""

from __future__ import annotations

from itertools import chain

_ACTING = chain(
    set(range(0x20)) - {ord("\n"), ord("\t")},  # ESC among them, which begins commands to a terminal
    range(0x7F, 0xA0),  # the same commands in one character
    (0x061C, 0x200E, 0x200F),  # marks of reading order
    range(0x2028, 0x202F),  # line breaks that are none, and what turns the rest of a line around
    range(0x2066, 0x206A),
    range(0xD800, 0xE000),  # halves of characters, as names that are no UTF-8 bring: no terminal and no page takes them
)
_SHOWN = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _ACTING}


def plain(text: str) -> str:
    """The text with all that acts on a terminal, or turns the order in which it is read, shown as its code.

    Line breaks and tabs stay. HTML is no matter of this function: pages escape what they are given.

    Example:
        >>> plain("cat\\x1b[31m, line 2\\u202e")
        'cat\\\\x1b[31m, line 2\\\\u202e'
    """
    return text.translate(_SHOWN)


def in_cell(text: str) -> str:
    """The text as one cell of a Markdown table, whatever it holds: in one line, no bar ends it, no tag begins in it.

    Example:
        >>> in_cell("a|b <script>")
        'a\\\\|b &lt;script>'
    """
    return " ".join(plain(text).split("\n")).replace("|", r"\|").replace("<", "&lt;")
