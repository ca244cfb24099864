"""A trial as Optuna's rows keep it: how they are asked for, and what record they hold.

By plain SQL, because Optuna's own objects take a millisecond a trial. Four questions tell a study;
whoever has a connection asks them, to SQLite or to PostgreSQL.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from sweep.ledger.records import State, TrialRecord, record_of

TRIALS = """
SELECT trial_id, number, state FROM trials
JOIN studies USING (study_id) WHERE study_name = :study ORDER BY trial_id
"""
PARAMS = """
SELECT trial_id, param_name, param_value, distribution_json FROM trial_params
JOIN trials USING (trial_id) JOIN studies USING (study_id) WHERE study_name = :study
"""
ATTRIBUTES = """
SELECT trial_id, key, value_json FROM trial_user_attributes
JOIN trials USING (trial_id) JOIN studies USING (study_id) WHERE study_name = :study
"""

OF_THE_STUDY = """
SELECT key, value_json FROM study_user_attributes
JOIN studies USING (study_id) WHERE study_name = :study
"""

STATES: dict[str, State] = {
    "WAITING": "waiting",
    "RUNNING": "running",
    "COMPLETE": "finished",
    "PRUNED": "stopped",
    "FAIL": "failed",
}
"""By the names of Optuna's."""

# User attributes, for what Optuna has no place for.
NUMBER = "trial"
"""The trial's number; a retried one takes a second row of Optuna's, and keeps its number."""
OTHERS = "params"
"""Parameters outside the search space: the control trial sets the method, mostly not searched."""
ROW = "record"
"""Attempts, steps, the curve, time, MLflow's run and the error."""
OUTCOMES = "outcomes"
RUN = "mlflow run of trial "
"""Of the study itself: a run that was not known before its trial was over."""

Ask = Callable[[str], Iterable[Sequence[Any]]]
"""Puts one of the questions to a database, with the study's name in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A trial as Optuna keeps it."""

    id: int
    number: int
    """Optuna's, which counts retries anew."""
    state: str
    """The name of one of Optuna's."""
    params: Mapping[str, Any]
    attributes: Mapping[str, Any]
    distributions: Mapping[str, str]
    """Of the params, as JSON in Optuna's words."""


def rows(ask: Ask) -> Iterator[Row]:
    """All trials of the study, in the order in which they were made."""
    params: dict[int, dict[str, Any]] = defaultdict(dict)
    distributions: dict[int, dict[str, str]] = defaultdict(dict)
    known: dict[str, dict[str, Any]] = {}  # the same few for all trials
    for row, name, value, distribution in ask(PARAMS):
        if distribution not in known:
            known[distribution] = json.loads(distribution)
        params[row][name] = _external(value, known[distribution])
        distributions[row][name] = distribution
    attributes: dict[int, dict[str, Any]] = defaultdict(dict)
    for row, key, value in ask(ATTRIBUTES):
        attributes[row][key] = _parsed(value)
    for row, number, state in ask(TRIALS):
        yield Row(
            id=row,
            number=number,
            state=state,
            params=params[row],
            attributes=attributes[row],
            distributions=distributions[row],
        )


def _parsed(text: str) -> Any:
    try:
        return from_json(text)  # in a quarter of the standard library's time
    except ValueError:  # a file's name in an error may be no Unicode, which only that one reads
        return json.loads(text)


def of_the_study(ask: Ask) -> dict[str, Any]:
    """What is noted of the study itself."""
    return {key: json.loads(value) for key, value in ask(OF_THE_STUDY)}


def _external(value: float, distribution: Mapping[str, Any]) -> Any:
    """The value that Optuna keeps as this number."""
    kind = distribution["name"]
    if kind == "CategoricalDistribution":
        return distribution["attributes"]["choices"][int(value)]
    return int(value) if kind.startswith("Int") else value


def record_to_row(record: TrialRecord) -> dict[str, Any]:
    """What is written of a trial as `ROW`."""
    return {
        "attempts": record.attempts,
        "steps": record.steps,
        "total_steps": record.total_steps,
        "adjustments": dict(record.adjustments),
        "curve": [list(heard) for heard in record.curve],
        "seconds": record.seconds,
        "wasted_seconds": record.wasted_seconds,
        "mlflow_run_id": record.mlflow_run_id,
        "error": record.error,
    }


def row_to_record(row: Row) -> TrialRecord:
    """The record that a row of Optuna's holds.

    Raises:
        ValueError: if it holds what none can.
    """
    attributes = row.attributes
    return record_of(
        {
            "curve": (),
            **attributes.get(ROW, {}),
            "number": attributes.get(NUMBER, row.number),
            "state": STATES[row.state],
            "params": {**row.params, **attributes.get(OTHERS, {})},
            "outcomes": attributes.get(OUTCOMES, ()),
        }
    )


def run_ids(attributes: Mapping[str, Any]) -> dict[int, str]:
    """Of MLflow's runs that were not known before their trials were over, by trial."""
    return {
        int(key.removeprefix(RUN)): str(run_id)
        for key, run_id in attributes.items()
        if key.startswith(RUN)
    }
