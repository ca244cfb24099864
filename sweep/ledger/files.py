"""The files of a ledger in a sweep's directory, and checks of them that do not import Optuna.

Optuna silently completes a database that it does not understand, so a damaged one is found before
Optuna opens it. Commands that only read need no more than this, and wait for no import.

Private parts of Optuna, checked with version 5.0.0 (docs/reference/compat.md): the tables
`studies`, `version_info` and `alembic_version`.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

FILE = "ledger.db"
JOURNAL = "ledger.journal"
ADDRESS = "ledger.address"
"""File with the address and the study's name of a ledger on a server."""
FILES = (FILE, JOURNAL, ADDRESS)
STUDY = "sweep"


class LedgerError(ValueError):
    """A ledger that cannot be read; nothing was changed."""


def is_there(folder: Path) -> bool:
    """Whether a directory holds a ledger, or points to one."""
    return any((folder / name).exists() for name in FILES)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn all errors of the block into that of a damaged ledger.

    Raises:
        LedgerError: if there is any error.
    """
    try:
        yield
    except Exception as error:
        raise LedgerError(damaged_error(path, error)) from error


def check_database(path: Path) -> None:
    """Refuses what Optuna would try to repair: it fills empty files and half databases."""
    with sound_database(path):
        pass


@contextmanager
def sound_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Opens a ledger of SQLite for reading, once it is checked.

    Raises:
        LedgerError: if there is none, or it is damaged.
    """
    if not path.is_file():
        raise LedgerError(f"`{path.parent}` must hold a sweep, but has no {FILE}.")
    # Not read-only: SQLite has to roll back a transaction that a kill left half written.
    with closing(_connect(path)) as database:
        _check(path, database)
        yield database


def _connect(path: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=60)
    except sqlite3.Error as error:
        raise LedgerError(damaged_error(path, error)) from error


def _check(path: Path, database: sqlite3.Connection) -> None:
    try:
        # The schema first, and nothing after a foreign one: to read a view named `studies` is to
        # run whatever its author wrote.
        verdict = _foreign_schema(database) or _broken_content(database)
    except (sqlite3.Error, UnicodeError) as error:  # names in the schema are bytes, too
        raise LedgerError(damaged_error(path, error)) from error
    if verdict is not None:
        raise LedgerError(damaged_error(path, verdict))


def _foreign_schema(database: sqlite3.Connection) -> str | None:
    """The first view or trigger: Optuna creates none, and they run when a table is used."""
    query = "SELECT type, name FROM sqlite_master WHERE type NOT IN ('table', 'index')"
    entry = database.execute(query).fetchone()
    return f"has the {entry[0]} {entry[1]!r}" if entry else None


def _broken_content(database: sqlite3.Connection) -> str | None:
    """The first fault of a file whose tables are Optuna's."""
    # `quick_check` looks at each page, but does not compare indexes with tables, which takes
    # longer; 1 ends it at the first error. A sound file gives the text "ok".
    verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        return str(verdict)
    if (STUDY,) not in database.execute("SELECT study_name FROM studies").fetchall():
        return f"no study `{STUDY}`"
    return _missing_version(database)


def _missing_version(database: sqlite3.Connection) -> str | None:
    """The first version table that is empty: Optuna would write its own version there."""
    for table in ("version_info", "alembic_version"):
        if database.execute(f"SELECT count(*) FROM {table}").fetchone() != (1,):  # noqa: S608
            return f"`{table}` is empty"
    return None


def damaged_error(path: Path | str, reason: object) -> str:
    """The message of a ledger that cannot be read."""
    return (
        f"`{path}` must be an intact ledger, but is damaged: {first_line(reason)}."
        " Nothing was changed; put a copy in its place."
    )


def first_line(reason: object) -> str:
    """The first line of an error, or its name."""
    lines = str(reason).strip().splitlines()
    return lines[0] if lines else type(reason).__name__
