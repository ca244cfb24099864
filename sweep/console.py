"""Where the program prints: text from outside commands neither the terminal nor rich.

rich would read `[red]` and `:cat:` in a transcript as orders, and would pass escape sequences on.
"""

import logging
from typing import Any

from rich.console import Console
from rich.text import Text

from core.safe_text import terminal_text


class SafeConsole(Console):
    """rich's console, for which every string is only text."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """The string as rich's text; every string that rich prints passes here, in tables too."""
        return super().render_str(terminal_text(text), **settings)


class SafeFormatter(logging.Formatter):
    """Log lines that cannot command a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return terminal_text(super().format(record))


def make_logs_safe() -> None:
    """Have Python's handler of last resort, which prints our warnings, print only text."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(SafeFormatter())
