"""Consoles, exit codes and arguments that all commands share."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from core.safe_text import terminal_line, terminal_text
from sweep.console import SafeConsole
from sweep.storage.addresses import is_address

# Without soft wrapping rich breaks long paths and JSON at the width of the terminal.
out = SafeConsole(soft_wrap=True)
err = SafeConsole(stderr=True, soft_wrap=True)

BAD_INPUT, RESUMABLE = 2, 75
MOST_LINES, LONGEST_LINE = 20, 800
"""Limits of an error message: nobody reads more."""
WIDE = 160
"""Columns of a table that is written to a file or a pipe."""

Space = Annotated[
    str,
    typer.Argument(
        metavar="SPACE", help="Search space: a TOML file, or the name of a built-in one."
    ),
]


def sweep_dir(text: str) -> Path:
    """Returns a sweep's directory; for an address, the working copy on this machine."""
    if not is_address(text):
        return Path(text)
    from sweep.storage.working_copy import resolve_folder  # fsspec's import takes a while

    return resolve_folder(text)


def snapshot_dir(text: str) -> Path:
    """Returns a sweep's directory for `load_snapshot`, which brings a working copy up to date."""
    if not is_address(text):
        return Path(text)
    from sweep.storage.working_copy import locate

    return locate(text)


SweepToRead = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="Directory of the sweep, or s3://...", parser=snapshot_dir),
]
Sweep = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="Directory of the sweep, or s3://...", parser=sweep_dir),
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Model: folder of a bundle, or DIR:TRIAL of a sweep.")
]
AnyModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Model: folder of a bundle or an export, or DIR:TRIAL of a sweep."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value, for scripts.")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join; `auto` finds the one on this machine.")
]
Trials = Annotated[int | None, typer.Option(help="Number of trials; replaces the one in the file.")]
Hours = Annotated[
    float | None,
    typer.Option(help="Budget of all trials together, in hours; replaces the one in the file."),
]


def end(text: str, code: int) -> None:
    """Prints an error, one line for each cause, and exits with a code."""
    print_error(text)
    sys.exit(code)


def print_error(text: str) -> None:
    """Prints an error, one line for each cause."""
    lines = text.splitlines()
    for line in lines[:MOST_LINES]:
        err.print(f"error: {_printable(line)}", markup=False)
    if len(lines) > MOST_LINES:
        err.print(f"error: and {len(lines) - MOST_LINES} more like these", markup=False)


def _printable(line: str) -> str:
    """Returns a line without terminal codes, cut where it is very long: it may quote a file."""
    # A line may quote a value of a file from outside, which can have megabytes.
    cut = line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."
    return terminal_line(cut)


def write(lines: Iterable[str]) -> None:
    """Prints many or very long lines unwrapped: rich would measure each."""
    out.file.writelines(f"{terminal_text(line)}\n" for line in lines)


def print_table(table: Table) -> None:
    """Prints a table, as wide as the terminal, or `WIDE` columns in a file."""
    # In a pipe rich assumes 80 columns and would cut the cells of a wide table.
    console = out if out.is_terminal else SafeConsole(width=WIDE)
    console.print(table)
