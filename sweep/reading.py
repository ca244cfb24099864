"""A ledger read by whoever only looks: with plain SQL, where it is a file of SQLite's.

Optuna's objects take a millisecond a trial. Who writes opens the `Ledger`.
"""

import gc
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweep.ledger import Ledger, recorded, run_ids
from sweep.ledger_storage import FILE, STUDY, check_database, readable
from sweep.records import TrialRecord, in_order

TRIALS = """
SELECT trial_id, number, state FROM trials
JOIN studies USING (study_id) WHERE study_name = ? ORDER BY trial_id
"""
PARAMS = """
SELECT trial_id, param_name, param_value, distribution_json FROM trial_params
JOIN trials USING (trial_id) JOIN studies USING (study_id) WHERE study_name = ?
"""
OF_THE_SWEEP = """
SELECT key, value_json FROM study_user_attributes
JOIN studies USING (study_id) WHERE study_name = ?
"""
ATTRIBUTES = """
SELECT trial_id, key, value_json FROM trial_user_attributes
JOIN trials USING (trial_id) JOIN studies USING (study_id) WHERE study_name = ?
"""


def records_in(folder: Path) -> list[TrialRecord]:
    """All trials of a sweep's directory, by number.

    Raises:
        LedgerError: if it has no ledger, or a damaged one.
    """
    path = folder / FILE
    if not path.is_file():
        ledger = Ledger.open(folder)
        ledger.close()
        return ledger.records()
    check_database(path)
    address = f"{path.as_uri()}?mode=ro"
    with (
        readable(path),
        closing(sqlite3.connect(address, uri=True, timeout=60)) as database,
        _uncollected(),
    ):
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
    params, attributes = _params(database), _attributes(database)
    found: dict[int, TrialRecord] = {}
    for row, number, state in database.execute(TRIALS, (STUDY,)):
        record = recorded(number, state, params[row], attributes[row])
        found[record.number] = record  # of a retried trial the last row counts
    known = {key: json.loads(value) for key, value in database.execute(OF_THE_SWEEP, (STUDY,))}
    for trial, run_id in run_ids(known).items():
        found[trial] = replace(found[trial], mlflow_run_id=run_id)
    return list(in_order(found).values())


def _params(database: sqlite3.Connection) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    known: dict[str, dict[str, Any]] = {}  # the same few for all trials
    for row, name, value, distribution in database.execute(PARAMS, (STUDY,)):
        if distribution not in known:
            known[distribution] = json.loads(distribution)
        found[row][name] = _external(value, known[distribution])
    return found


def _external(value: float, distribution: dict[str, Any]) -> Any:
    """The value that Optuna keeps as this number."""
    kind = distribution["name"]
    if kind == "CategoricalDistribution":
        return distribution["attributes"]["choices"][int(value)]
    return int(value) if kind.startswith("Int") else value


def _attributes(database: sqlite3.Connection) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for row, key, value in database.execute(ATTRIBUTES, (STUDY,)):
        found[row][key] = json.loads(value)
    return found
