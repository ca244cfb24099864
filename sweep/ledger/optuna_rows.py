"""Optuna's tables: the queries that read a study, and the conversion of its rows into records.

Plain SQL is used because Optuna's own objects take a millisecond a trial. Four queries read a
study, from SQLite or from PostgreSQL.

Private parts of Optuna, checked with version 5.0.0 (docs/reference/compat.md): the tables
`studies`, `trials`, `trial_params`, `trial_user_attributes` and `study_user_attributes`.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic_core import from_json

from core.report import LATENCY_FIELDS, Outcome
from sweep.ledger.records import State, TrialRecord, parse_outcomes, parse_record

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

STUDY_ATTRIBUTES = """
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
"""States of a record, by Optuna's names."""

# User attributes, for values that Optuna has no columns for.
NUMBER = "trial"
"""The trial's number; a retried trial takes a second row of Optuna's under the same number."""
OTHERS = "params"
"""Parameters outside the search space: the control trial sets the method, mostly not searched."""
ROW = "record"
"""Attempts, steps, the curve, time, MLflow's run and the error."""
OUTCOMES = "outcomes"
RUN = "mlflow run of trial "
"""Prefix of the study's attributes with runs whose ids came after their trials were over."""
LATENCIES = "latencies of trial "
"""Prefix of the study's attributes with outcomes whose latencies were measured after the end."""

RunQuery = Callable[[str], Iterable[Sequence[Any]]]
"""Runs one of the queries on a database, with the study's name as `study`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A trial as Optuna stores it."""

    id: int
    number: int
    """Optuna's own number, which also counts retries."""
    state: str
    """Optuna's name of it."""
    params: Mapping[str, Any]
    attributes: Mapping[str, Any]
    distributions: Mapping[str, str]
    """Optuna's JSON of each parameter's distribution."""


def rows(run_query: RunQuery) -> Iterator[Row]:
    """All trials of the study, in the order of their creation."""
    params: dict[int, dict[str, Any]] = defaultdict(dict)
    distributions: dict[int, dict[str, str]] = defaultdict(dict)
    parsed: dict[str, dict[str, Any]] = {}  # the same few for all trials
    for row, name, value, distribution in run_query(PARAMS):
        # Texts are compared before they are parsed: 10 000 trials have a handful of distributions.
        if distribution not in parsed:
            parsed[distribution] = json.loads(distribution)
        params[row][name] = _external(value, parsed[distribution])
        distributions[row][name] = distribution
    attributes: dict[int, dict[str, Any]] = defaultdict(dict)
    for row, key, value in run_query(ATTRIBUTES):
        attributes[row][key] = _parse_json(value)
    for row, number, state in run_query(TRIALS):
        yield Row(
            id=row,
            number=number,
            state=state,
            params=params[row],
            attributes=attributes[row],
            distributions=distributions[row],
        )


def _parse_json(text: str) -> Any:
    try:
        return from_json(text)  # in a quarter of the standard library's time
    except ValueError:  # a file's name in an error may be no Unicode, which only that one reads
        return json.loads(text)


def study_attributes(run_query: RunQuery) -> dict[str, Any]:
    """The attributes of the study itself."""
    return {key: json.loads(value) for key, value in run_query(STUDY_ATTRIBUTES)}


def _external(value: float, distribution: Mapping[str, Any]) -> Any:
    """The parameter's value that Optuna stores as this number."""
    # Optuna stores a float for each: 1.0 of the choices ["l0", "acip"] is "acip", and 3.0 of an
    # integer range is 3.
    kind = distribution["name"]
    if kind == "CategoricalDistribution":
        return distribution["attributes"]["choices"][int(value)]
    return int(value) if kind.startswith("Int") else value


def record_to_row(record: TrialRecord) -> dict[str, Any]:
    """The attribute `ROW` of a trial."""
    return {
        "attempts": record.attempts,
        "steps": record.steps,
        "total_steps": record.total_steps,
        "adjustments": dict(record.adjustments),
        "curve": [list(point) for point in record.curve],
        "seconds": record.seconds,
        "wasted_seconds": record.wasted_seconds,
        "mlflow_run_id": record.mlflow_run_id,
        "error": record.error,
    }


def row_to_record(row: Row) -> TrialRecord:
    """The record of a row of Optuna's.

    Raises:
        ValueError: naming the first wrong value.
    """
    attributes = row.attributes
    return parse_record(
        {
            "curve": (),
            **attributes.get(ROW, {}),
            "number": attributes.get(NUMBER, row.number),
            "state": STATES[row.state],
            "params": {**row.params, **attributes.get(OTHERS, {})},
            "outcomes": attributes.get(OUTCOMES, ()),
        }
    )


def late_values(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """What `with_late_latencies` needs of outcomes, by the folder of each model."""
    return {o.model: {name: getattr(o, name) for name in LATENCY_FIELDS} for o in outcomes}


def with_late_latencies(
    records: Mapping[int, TrialRecord], attributes: Mapping[str, Any]
) -> dict[int, TrialRecord]:
    """Records with the latencies that were measured after their trials were over.

    A trial that was tuned further since has other models, to which the old values do not belong.

    Raises:
        ValueError, TypeError, KeyError: if an attribute has not this form.
    """
    updated = dict(records)
    for key, text in attributes.items():
        if not key.startswith(LATENCIES):
            continue
        number, values = int(key.removeprefix(LATENCIES)), from_json(text)
        record = updated[number]
        outcomes = [asdict(outcome) | values.get(outcome.model, {}) for outcome in record.outcomes]
        updated[number] = replace(record, outcomes=parse_outcomes(outcomes))
    return updated


def late_run_ids(attributes: Mapping[str, Any]) -> dict[int, str]:
    """Ids of MLflow's runs that came after their trials were over, by trial."""
    return {
        int(key.removeprefix(RUN)): str(run_id)
        for key, run_id in attributes.items()
        if key.startswith(RUN)
    }
