"""Where a ledger lies: an SQLite file, a journal file or a PostgreSQL server; opened and checked.

What lies in a sweep's directory says which it is, so that whoever reads needs no config.
"""

import json
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import text

from core.files import whole_file
from sweep.ledger.files import ADDRESS, FILE, JOURNAL, STUDY, LedgerError, check_database, readable
from sweep.ledger.optuna_rows import Row, rows

OBJECTIVES = "objectives"
"""Written last into a new ledger: one without it was never finished."""


def _nothing() -> None:
    """What a reader does where a writer has something to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A ledger's storage, and what goes with it."""

    storage: BaseStorage
    study: str
    """By which name Optuna knows the sweep there."""
    name: str
    """What errors call it: a path or an address."""
    close: Callable[[], None]
    check: Callable[[], None] = _nothing
    """Before each write: raises OSError if the ledger is not this process's any more."""
    mend: Callable[[], None] = _nothing
    """After a write that failed: takes back what was half written."""


def rows_in(opened: Opened) -> list[Row]:
    """All trials at once; of a database without Optuna's objects, which take a millisecond each."""
    storage = opened.storage
    if isinstance(storage, RDBStorage):
        named = {"study": opened.study}
        with storage.engine.connect() as connection:
            return list(rows(lambda question: connection.execute(text(question), named)))
    return [
        Row(
            id=trial._trial_id,  # noqa: SLF001  # the storage's own handle
            number=trial.number,
            state=trial.state.name,
            params=trial.params,
            attributes=trial.user_attrs,
            distributions={n: distribution_to_json(d) for n, d in trial.distributions.items()},
        )
        for trial in storage.get_all_trials(
            storage.get_study_id_from_name(opened.study), deepcopy=False
        )
    ]


class LedgerBackend(Protocol):
    """One kind of place."""

    kind: str
    name: str

    def create(self, objectives: Sequence[str]) -> None:
        """Start an empty ledger; it appears whole or not at all."""

    def open(self, *, is_writer: bool) -> Opened:
        """Open the ledger that is there.

        Raises:
            LedgerError: if there is none, or it is damaged; it is left as it is.
            LockedError: if another writes it.
        """


def backend_for(folder: Path, kind: str = "sqlite") -> LedgerBackend:
    """The ledger's place in a new directory.

    Args:
        folder: the sweep's directory.
        kind: `sqlite`, `journal` or the address of a PostgreSQL server.
    """
    if kind == "sqlite":
        return SqliteFile(folder)
    if kind == "journal":
        return JournalFile(folder)
    from sweep.ledger.postgres import Server  # noqa: PLC0415  # its driver is an extra

    return Server.at(folder, kind)


def find_backend(folder: Path) -> LedgerBackend | None:
    """The ledger that a directory holds or points to, if any."""
    if (folder / FILE).exists():
        return SqliteFile(folder)
    if (folder / JOURNAL).exists():
        return JournalFile(folder)
    if (folder / ADDRESS).exists():
        from sweep.ledger.postgres import Server  # noqa: PLC0415  # its driver is an extra

        return Server.noted(folder)
    return None


def agree_backend(folder: Path, kind: str) -> tuple[LedgerBackend, bool]:
    """The place of a directory's ledger, and whether it is there already.

    Raises:
        LedgerError: if it lies elsewhere than is wanted now.
    """
    there, wanted = find_backend(folder), backend_for(folder, kind)
    if there is None:
        return wanted, False
    if there.kind != wanted.kind:
        raise LedgerError(
            f"`sweep.ledger.ledger` must stay what this sweep was begun with, {there.kind}"
            f" ({there.name}), but is {wanted.kind} instead; `pack` and `unpack` make it sqlite."
        )
    return wanted, True


class SqliteFile:
    """The default: one file, and SQLite's own locks."""

    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.name = str(self.path)

    def create(self, objectives: Sequence[str]) -> None:
        _quiet()
        with whole_file(self.path) as beside:
            storage = RDBStorage(f"sqlite:///{beside}")
            begin(storage, STUDY, objectives)
            storage.engine.dispose()

    def open(self, *, is_writer: bool) -> Opened:
        del is_writer  # the directory's lock sees to that
        check_database(self.path)
        # Whoever reads while the driver writes, or the other way round, waits for its turn.
        with readable(self.path):
            storage = RDBStorage(
                f"sqlite:///{self.path}",
                engine_kwargs={"connect_args": {"timeout": 60}},
                skip_table_creation=True,
            )
        return Opened(storage=storage, study=STUDY, name=self.name, close=storage.engine.dispose)


class JournalFile:
    """A file that only grows, for shared file systems whose locks SQLite should not trust."""

    kind = "journal"

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.name = str(self.path)

    def create(self, objectives: Sequence[str]) -> None:
        _quiet()
        with whole_file(self.path) as beside:
            begin(JournalStorage(JournalFileBackend(str(beside))), STUDY, objectives)

    def open(self, *, is_writer: bool) -> Opened:
        if not self.path.is_file():
            raise LedgerError(f"`{self.path.parent}` must hold a sweep, but has no {JOURNAL}.")
        whole = _whole_bytes(self.path)
        if is_writer:  # else what is written next would be glued to what a kill tore off
            os.truncate(self.path, whole)
            # Of a writer that was killed; the directory's lock says that there is no other.
            for lock in self.path.parent.glob(f"{JOURNAL}.lock*"):
                lock.unlink(missing_ok=True)
        with readable(self.path):
            storage = JournalStorage(JournalFileBackend(str(self.path)))
        return Opened(storage=storage, study=STUDY, name=self.name, close=_nothing, mend=self._mend)

    def _mend(self) -> None:
        os.truncate(self.path, _whole_bytes(self.path))


def begin(storage: BaseStorage, study: str, objectives: Sequence[str]) -> None:
    """Make the study, or finish making it."""
    made = optuna.create_study(
        study_name=study,
        storage=storage,
        directions=["minimize"] * len(objectives),
        load_if_exists=True,
    )
    if OBJECTIVES not in made.user_attrs:
        made.set_user_attr(OBJECTIVES, json.dumps(list(objectives)))


def copy_as_sqlite(folder: Path, into: Path) -> None:
    """Write the ledger of a directory, wherever it lies, as SQLite into another.

    Raises:
        LedgerError: if it cannot be read.
    """
    source = find_backend(folder)
    assert source is not None, "whoever packs has opened it"
    opened = source.open(is_writer=False)
    try:
        with whole_file(into / FILE) as beside:
            storage = RDBStorage(f"sqlite:///{beside}")
            optuna.copy_study(
                from_study_name=opened.study,
                from_storage=opened.storage,
                to_storage=storage,
                to_study_name=STUDY,
            )
            storage.engine.dispose()
    finally:
        opened.close()


def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _whole_bytes(path: Path) -> int:
    """How much of a journal is whole lines: the last one may be torn by a kill, no other.

    Raises:
        LedgerError: if nothing is whole, or the last whole line is no record.
    """
    with (
        readable(path),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        end = text.rfind(b"\n") + 1
        json.loads(text[text.rfind(b"\n", 0, max(0, end - 1)) + 1 : end])
    return end
