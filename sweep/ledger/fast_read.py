"""Reads a ledger for commands that do not write: by plain SQL if it is an SQLite file.

Optuna's objects take a millisecond a trial. A process that writes opens the `Ledger`.
"""

import gc
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweep.ledger.files import FILE, STUDY, readable, sound_database
from sweep.ledger.optuna_rows import (
    late_run_ids,
    row_to_record,
    rows,
    study_attributes,
    with_late_latencies,
)
from sweep.ledger.records import TrialRecord, sort_by_number


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
    with sound_database(path) as database, readable(path), _collector_off():
        # The file may have been written by anybody, so the connection must not write to it.
        database.execute("PRAGMA query_only = ON")
        return _records(database)


@contextmanager
def _collector_off() -> Iterator[None]:
    """Turn the garbage collector off: all new objects stay, and it would walk them repeatedly."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _records(database: sqlite3.Connection) -> list[TrialRecord]:
    database.execute("BEGIN")  # all queries see the same moment

    def run_query(query: str) -> Iterable[Sequence[Any]]:
        return database.execute(query, {"study": STUDY})

    records: dict[int, TrialRecord] = {}
    for row in rows(run_query):
        record = row_to_record(row)
        records[record.number] = record  # of a retried trial the last row counts
    attributes = study_attributes(run_query)
    for trial, run_id in late_run_ids(attributes).items():
        records[trial] = replace(records[trial], mlflow_run_id=run_id)
    records = with_late_latencies(records, attributes)
    return list(sort_by_number(records).values())
