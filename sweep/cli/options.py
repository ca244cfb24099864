"""What commands share: where they print, how they end, and what their arguments are called."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from core.safe_text import terminal_line, terminal_text
from sweep.console import SafeConsole

out = SafeConsole(soft_wrap=True)
err = SafeConsole(stderr=True, soft_wrap=True)

BAD_INPUT, RESUMABLE = 2, 75
MOST_LINES, LONGEST_LINE = 20, 800
"""Of an error: a person reads no more."""
WIDE = 160
"""Columns of a table that goes into a file."""

Space = Annotated[str, typer.Argument(help="A TOML file, or the name of one in search_spaces.")]


def place(text: str) -> Path:
    """A sweep's directory; of an address, the working copy on this machine."""
    from sweep.storage.working_copy import resolve_folder

    return resolve_folder(text)


Sweep = Annotated[
    Path, typer.Argument(metavar="DIR", help="The sweep's directory, or s3://...", parser=place)
]
Model = Annotated[str, typer.Argument(help="A bundle's folder, or DIR:TRIAL of a sweep.")]
AnyModel = Annotated[
    str, typer.Argument(help="The folder of a bundle or of an export, or DIR:TRIAL of a sweep.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON value for scripts.")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join; `auto` is the one of this machine.")
]
Trials = Annotated[int | None, typer.Option(help="Instead of the file's number.")]
Hours = Annotated[float | None, typer.Option(help="Of all trials together, at most.")]


def end(text: str, code: int) -> None:
    """Say what went wrong, a line a culprit, and end."""
    complain(text)
    sys.exit(code)


def complain(text: str) -> None:
    """Say what went wrong, a line a culprit, and go on."""
    lines = text.splitlines()
    for line in lines[:MOST_LINES]:
        err.print(f"error: {_printable(line)}", markup=False)
    if len(lines) > MOST_LINES:
        err.print(f"error: and {len(lines) - MOST_LINES} more like these", markup=False)


def _printable(line: str) -> str:
    """What a file says may be long, and must not command the terminal."""
    cut = line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."
    return terminal_line(cut)


def write(lines: Iterable[str]) -> None:
    """Print many or very long lines as they are: a console would measure each."""
    out.file.writelines(f"{terminal_text(line)}\n" for line in lines)


def print_table(table: Table) -> None:
    console = out if out.is_terminal else SafeConsole(width=WIDE)
    console.print(table)
