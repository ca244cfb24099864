"""A ledger read by whoever only looks: with plain SQL, where it is a file of SQLite's.

Optuna's objects take a millisecond a trial. Who writes opens the `Ledger`.
"""

import gc
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweep.ledger.files import FILE, STUDY, readable, sound_database
from sweep.ledger.optuna_rows import of_the_study, row_to_record, rows, run_ids
from sweep.ledger.records import TrialRecord, in_order


def records_in(folder: Path) -> list[TrialRecord]:
    """All trials of a sweep's directory, by number.

    Raises:
        LedgerError: if it has no ledger, or a damaged one.
    """
    path = folder / FILE
    if not path.is_file():
        from sweep.ledger.ledger import Ledger  # noqa: PLC0415  # Optuna's import takes half a second

        ledger = Ledger.open(folder)
        ledger.close()
        return ledger.records()
    with sound_database(path) as database, readable(path), _uncollected():
        database.execute("PRAGMA query_only = ON")
        return _records(database)


@contextmanager
def _uncollected() -> Iterator[None]:
    """All that is made here is kept: a collector would only walk it, again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _records(database: sqlite3.Connection) -> list[TrialRecord]:
    database.execute("BEGIN")  # all that follows is of one moment

    def ask(question: str) -> Iterable[Sequence[Any]]:
        return database.execute(question, {"study": STUDY})

    found: dict[int, TrialRecord] = {}
    for row in rows(ask):
        record = row_to_record(row)
        found[record.number] = record  # of a retried trial the last row counts
    for trial, run_id in run_ids(of_the_study(ask)).items():
        found[trial] = replace(found[trial], mlflow_run_id=run_id)
    return list(in_order(found).values())
