"""Text from outside, made harmless for the place where it is shown. Pure.

Transcripts, names of files, ids and error texts come from the author of a corpus, a model or a
sweep. Shown as they are, they could command a terminal, fetch a picture from a server when a page
is opened, or become a formula in a spreadsheet. HTML has `html.escape` of the standard library.
"""

import re
import unicodedata
from typing import Any

JOINERS = "\u200c\u200d"
"""Letters of Persian and Hindi need them; they are invisible, and harmless."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""
LONGEST_CELL = 500
"""Letters of a Markdown cell; a table must stay readable."""

# An underscore between letters, as in `snake_case`, is harmless; `_x_` would be italic.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&]|(?<![^\W_])_|_(?![^\W_])")


def terminal_line(text: str) -> str:
    """One line of printable letters: all others are written as Python's escapes."""
    if text.isprintable():  # nearly always, and much faster
        return text
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def terminal_text(text: str) -> str:
    """Text that cannot command a terminal; lines, tabs, spaces and joiners of letters stay.

    Escape sequences, other control characters, marks that reverse the direction of writing and
    halves of surrogate pairs become Python's escapes, so that they can be read.
    """
    if text.isprintable():
        return text
    return "".join(letter if _is_harmless(letter) else _escape(letter) for letter in text)


def markdown_text(text: str) -> str:
    r"""Text as one line of Markdown that shows exactly it: no picture, no hidden link, no HTML.

    `![x](http://host/x.png)` becomes `!\[x\](http://host/x.png)`.
    """
    line = terminal_line(" ".join(text.split()))[:LONGEST_CELL]
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", line)


def csv_cell(value: Any) -> Any:
    """A value for a table that people open in a spreadsheet: text is never a formula there.

    A text that begins as a formula gets an apostrophe before it, which spreadsheets hide. Numbers
    stay numbers.
    """
    # "=1+1" becomes "'=1+1"; -3 as a number stays.
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA):
        return f"'{value}"
    return value


def _is_harmless(letter: str) -> bool:
    is_space = letter in "\n\t" or unicodedata.category(letter) == "Zs"
    return letter.isprintable() or is_space or letter in JOINERS


def _escape(letter: str) -> str:
    # The escape character becomes the four letters \x1b.
    return repr(letter)[1:-1]
