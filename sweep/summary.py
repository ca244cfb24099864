"""A sweep in plain values: the rows of its trials, its front and its progress, for any reader.

The command line prints them as tables and as JSON; `sweep.api` makes frames of them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from core.config.methods import method_names
from core.report import Outcome
from sweep.config.space import overlaid
from sweep.ledger.records import State, TrialRecord
from sweep.pareto import front
from sweep.pareto.front import Point
from sweep.search.budget import reached_limit
from sweep.snapshot import SweepSnapshot
from sweep.storage.addresses import display_name

OMITTED_FIELDS = ("steps", "model")
"""Fields of an outcome that its row leaves out: the trial's own columns say the same."""


def trial_rows(
    snapshot: SweepSnapshot, records: Iterable[TrialRecord] | None = None
) -> list[dict[str, Any]]:
    """Return one row for each outcome, and one for each trial that has none yet.

    Args:
        snapshot: the sweep.
        records: trials to make rows of; all trials of the sweep if left out.
    """
    on_front = {(p.trial, p.outcome) for p in snapshot.front}
    base = snapshot.config.space.base.model_dump()
    return [
        _trial_row(base, record, index, is_on_front=(record.number, index) in on_front)
        for record in (snapshot.records if records is None else records)
        # A trial that waits has one row without an outcome; a family of three sizes has three rows.
        for index in range(len(record.outcomes) or 1)
    ]


def trial_columns(snapshot: SweepSnapshot) -> list[str]:
    """Return the keys of every row of `trial_rows`, in order; an empty sweep has them, too."""
    base = snapshot.config.space.base.model_dump()
    return list(_trial_row(base, TrialRecord(number=0, state="waiting"), 0, is_on_front=False))


def _trial_row(
    base: Mapping[str, Any], record: TrialRecord, index: int, *, is_on_front: bool
) -> dict[str, Any]:
    config = _without_other_methods(overlaid(base, record.settings))
    outcome = record.outcomes[index] if record.outcomes else None
    return {
        "trial": record.number,
        "state": record.state,
        "attempts": record.attempts,
        "steps": record.steps,
        "total_steps": record.total_steps,
        "seconds": record.seconds,
        "mlflow_run_id": record.mlflow_run_id,
        "error": record.error,
        "method": config["pruning"]["method"],
        "target_sparsity": config["pruning"]["target_sparsity"],
        "params_searched": dict(record.params),
        "config": config,
        **_outcome_columns(outcome),
        "outcome": index,
        "on_front": is_on_front,
    }


def _outcome_columns(outcome: Outcome | None) -> dict[str, Any]:
    """Return the columns of an outcome; without one, the same columns of None."""
    names = [n for n in Outcome.__dataclass_fields__ if n not in OMITTED_FIELDS]
    if outcome is None:
        # These two come from the configuration, and None would replace them in the row.
        unmeasured = (n for n in names if n not in ("method", "target_sparsity"))
        return dict.fromkeys(unmeasured)
    return {name: getattr(outcome, name) for name in names}


def _without_other_methods(config: dict[str, Any]) -> dict[str, Any]:
    """Return a trial's config without the table of the method by which the sweep's base is read.

    Of a sweep over `l0` and `acip` the base has the defaults of `l0`, which a trial of `acip` does
    not read.
    """
    pruning = config["pruning"]
    start = pruning.get(pruning["method"], {}).get("start_from")
    others = _methods() - {pruning["method"], start}
    own = {name: value for name, value in pruning.items() if name not in others}
    return {**config, "pruning": own}


@cache
def _methods() -> frozenset[str]:
    return frozenset(method_names())  # a search in a folder, not for each of 10,000 rows


def status_values(snapshot: SweepSnapshot) -> dict[str, Any]:
    """Return how far a sweep has come: trials by state, seconds, size of the front.

    `limit` is the limit of its budget that it has reached, if any: then it begins no more trials.
    """
    counts = Counter(record.state for record in snapshot.records)
    states: tuple[State, ...] = ("waiting", "running", "finished", "stopped", "failed")
    points = snapshot.points
    return {
        "name": snapshot.config.sweep.name,
        "folder": display_name(snapshot.folder),
        "driver": snapshot.driver,
        "trials": snapshot.config.num_trials,
        "limit": reached_limit(snapshot.records, snapshot.config),
        **{state: counts[state] for state in states},
        "seconds": sum(record.seconds for record in snapshot.records),
        "front": len(snapshot.front),
        "hypervolume": front.hypervolume_share(points),
    }


def pareto_values(snapshot: SweepSnapshot, points: Iterable[Point]) -> dict[str, Any]:
    """Return the unpruned control, the rows of these points, and the hypervolume of all points."""
    points = list(points)
    # Of all points, as the control need not lie on the front or within the limits.
    dense = next((p for p in snapshot.points if p.result.method == "dense"), None)
    return {
        "dense": point_rows(snapshot, [dense])[0] if dense else None,
        "points": point_rows(snapshot, points),
        "hypervolume": front.hypervolume_share(snapshot.points),
    }


def point_rows(snapshot: SweepSnapshot, points: Iterable[Point]) -> list[dict[str, Any]]:
    """Return the rows of some points, in their order."""
    points = list(points)
    # A trial with two outcomes on the front is read once; a set would lose the order.
    numbers = dict.fromkeys(point.trial for point in points)
    rows = trial_rows(snapshot, [snapshot.record(number) for number in numbers])
    by_point = {(row["trial"], row["outcome"]): row for row in rows}
    return [by_point[point.trial, point.outcome] for point in points]
