"""The storages of a ledger: an SQLite file, a journal file or a PostgreSQL server.

The files in a sweep's directory show which one it has, so that a reader needs no configuration.

Private parts of Optuna, checked with version 5.0.0 (docs/reference/compat.md): a trial's
`_trial_id`, and the journal's format of one JSON record a line.
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
"""Attribute that is written last into a new ledger: one without it is incomplete."""


def _do_nothing() -> None:
    """Used by a reader in place of a writer's checks and repairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenLedger:
    """An open ledger: its storage, and the functions that go with it."""

    storage: BaseStorage
    study: str
    """Optuna's name of the sweep."""
    name: str
    """Its path or address, for errors."""
    close: Callable[[], None]
    check: Callable[[], None] = _do_nothing
    """Called before each write; raises OSError if the process has lost the ledger's lock."""
    roll_back: Callable[[], None] = _do_nothing
    """Called after a write that failed; removes what was written incompletely."""


def rows_in(opened: OpenLedger) -> list[Row]:
    """All trials; read from a database without Optuna's objects, which take a millisecond each."""
    storage = opened.storage
    if isinstance(storage, RDBStorage):
        named = {"study": opened.study}
        with storage.engine.connect() as connection:
            return list(rows(lambda query: connection.execute(text(query), named)))
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
    """A storage of one kind."""

    kind: str
    name: str

    def create(self, objectives: Sequence[str]) -> None:
        """Create an empty ledger, completely or not at all."""

    def open(self, *, is_writer: bool) -> OpenLedger:
        """Open the ledger that is there.

        Raises:
            LedgerError: if there is none, or it is damaged; it is left as it is.
            LockedError: if another writes it.
        """


def backend_for(folder: Path, kind: str = "sqlite") -> LedgerBackend:
    """The ledger's storage in a new directory.

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
    """The storage of the ledger that a directory has, or None."""
    if (folder / FILE).exists():
        return SqliteFile(folder)
    if (folder / JOURNAL).exists():
        return JournalFile(folder)
    if (folder / ADDRESS).exists():
        from sweep.ledger.postgres import Server  # noqa: PLC0415  # its driver is an extra

        return Server.from_folder(folder)
    return None


def agree_backend(folder: Path, kind: str) -> tuple[LedgerBackend, bool]:
    """The storage of a directory's ledger, and whether the ledger exists.

    Raises:
        LedgerError: if it exists in a storage of another kind than is configured.
    """
    existing, configured = find_backend(folder), backend_for(folder, kind)
    if existing is None:
        return configured, False
    if existing.kind != configured.kind:
        raise LedgerError(
            f"`sweep.ledger` must stay what this sweep was begun with, {existing.kind}"
            f" ({existing.name}), but is {configured.kind} instead;"
            " `pack` and `unpack` make it sqlite."
        )
    return configured, True


class SqliteFile:
    """The default: one file, and SQLite's own locks."""

    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.name = str(self.path)

    def create(self, objectives: Sequence[str]) -> None:
        _quiet()
        with whole_file(self.path) as tmp_path:
            storage = RDBStorage(f"sqlite:///{tmp_path}")
            begin(storage, STUDY, objectives)
            storage.engine.dispose()

    def open(self, *, is_writer: bool) -> OpenLedger:
        del is_writer  # the directory's lock sees to that
        check_database(self.path)
        # A reader waits while the driver writes, and the driver while somebody reads.
        with readable(self.path):
            storage = RDBStorage(
                f"sqlite:///{self.path}",
                engine_kwargs={"connect_args": {"timeout": 60}},
                skip_table_creation=True,
            )
        return OpenLedger(
            storage=storage, study=STUDY, name=self.name, close=storage.engine.dispose
        )


class JournalFile:
    """A file that only grows, for shared file systems whose locks SQLite should not trust."""

    kind = "journal"

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.name = str(self.path)

    def create(self, objectives: Sequence[str]) -> None:
        _quiet()
        with whole_file(self.path) as tmp_path:
            begin(JournalStorage(JournalFileBackend(str(tmp_path))), STUDY, objectives)

    def open(self, *, is_writer: bool) -> OpenLedger:
        if not self.path.is_file():
            raise LedgerError(f"`{self.path.parent}` must hold a sweep, but has no {JOURNAL}.")
        size = _complete_bytes(self.path)
        if is_writer:  # else the next record would be joined to the incomplete one of a kill
            os.truncate(self.path, size)
            # Locks of a writer that was killed; the directory's lock excludes any other.
            for lock in self.path.parent.glob(f"{JOURNAL}.lock*"):
                lock.unlink(missing_ok=True)
        with readable(self.path):
            storage = JournalStorage(JournalFileBackend(str(self.path)))
        return OpenLedger(
            storage=storage,
            study=STUDY,
            name=self.name,
            close=_do_nothing,
            roll_back=self._roll_back,
        )

    def _roll_back(self) -> None:
        os.truncate(self.path, _complete_bytes(self.path))


def begin(storage: BaseStorage, study: str, objectives: Sequence[str]) -> None:
    """Create the study, or complete one whose creation was interrupted."""
    created = optuna.create_study(
        study_name=study,
        storage=storage,
        directions=["minimize"] * len(objectives),
        load_if_exists=True,
    )
    # A kill right before this leaves a study without objectives, which the next call completes.
    if OBJECTIVES not in created.user_attrs:
        created.set_user_attr(OBJECTIVES, json.dumps(list(objectives)))


def copy_as_sqlite(folder: Path, into: Path) -> None:
    """Copy the ledger of a directory, in whatever storage, as SQLite into another directory.

    Raises:
        LedgerError: if it cannot be read.
    """
    source = find_backend(folder)
    assert source is not None, "`pack` has opened it"
    opened = source.open(is_writer=False)
    try:
        with whole_file(into / FILE) as tmp_path:
            storage = RDBStorage(f"sqlite:///{tmp_path}")
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


def _complete_bytes(path: Path) -> int:
    """The size of a journal's complete lines: a kill can leave the last one incomplete.

    Raises:
        LedgerError: if no line is complete, or the last complete one is no record.
    """
    with (
        readable(path),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        # b'{"a": 1}\n{"b": 2}\n{"c' has 18 complete bytes, of which {"b": 2} is parsed. A record
        # that lies before it is Optuna's to read. The file is mapped, as only its end is needed.
        end = text.rfind(b"\n") + 1
        json.loads(text[text.rfind(b"\n", 0, max(0, end - 1)) + 1 : end])
    return end
