"""The rows of Optuna's database, by plain SQL: its own objects take a millisecond a trial.

Four questions tell a study; whoever has a connection asks them, to SQLite or to PostgreSQL.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
        attributes[row][key] = json.loads(value)
    for row, number, state in ask(TRIALS):
        yield Row(
            id=row,
            number=number,
            state=state,
            params=params[row],
            attributes=attributes[row],
            distributions=distributions[row],
        )


def of_the_study(ask: Ask) -> dict[str, Any]:
    """What is noted of the study itself."""
    return {key: json.loads(value) for key, value in ask(OF_THE_STUDY)}


def _external(value: float, distribution: Mapping[str, Any]) -> Any:
    """The value that Optuna keeps as this number."""
    kind = distribution["name"]
    if kind == "CategoricalDistribution":
        return distribution["attributes"]["choices"][int(value)]
    return int(value) if kind.startswith("Int") else value
