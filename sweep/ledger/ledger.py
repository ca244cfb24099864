"""The source of truth of a sweep: an Optuna study, in the sweep's directory or on a server.

Every change is one or two transactions in an order that makes a kill between them harmless: a
trial's outcomes are written before its state becomes finished.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState

from core.report import Outcome, Report
from sweep.config.distributions import Choice, Distribution
from sweep.ledger import backends
from sweep.ledger.backends import OpenLedger, rows_in
from sweep.ledger.files import LedgerError, damaged_error, first_line
from sweep.ledger.optuna_rows import (
    LATENCIES,
    NUMBER,
    OTHERS,
    OUTCOMES,
    ROW,
    RUN,
    STATES,
    late_run_ids,
    late_values,
    record_to_row,
    row_to_record,
    with_late_latencies,
)
from sweep.ledger.records import CurvePoint, State, TrialRecord, sort_by_number

OBJECTIVES = ("wer", "gflops")

MORE_STEPS = "tuning.more_steps"


class Ledger:
    """All trials of a sweep. One process writes; any number may read.

    The writer keeps all records in memory, so that reading them costs no query.
    """

    def __init__(self, opened: OpenLedger) -> None:
        self._opened = opened
        self._storage = storage = opened.storage
        self._study = storage.get_study_id_from_name(opened.study)
        self._objectives = json.loads(self.attribute("objectives") or json.dumps(OBJECTIVES))
        self._ids: dict[int, int] = {}
        self._records: dict[int, TrialRecord] = {}
        self._started: dict[int, float] = {}
        self._reached: dict[int, int] = {}
        self._choices: dict[str, BaseDistribution] = {}
        self._earlier: dict[int, tuple[Outcome, ...]] = {}
        first: dict[str, str] = {}  # the first distribution of each parameter
        for row in rows_in(opened):
            record = row_to_record(row)
            # A continued trial has two rows or more. The last one counts, and what the one before
            # had as outcomes is remembered, in case the continuation fails.
            self._store_earlier_outcomes(record.number)
            self._ids[record.number], self._records[record.number] = row.id, record
            for name, distribution in row.distributions.items():
                first.setdefault(name, distribution)
        self._store_choices({n: json_to_distribution(text) for n, text in first.items()})
        self._records = sort_by_number(self._records)
        attributes = storage.get_study_user_attrs(self._study)
        self._records = with_late_latencies(self._records, attributes)
        ids = late_run_ids(attributes)
        for number, run_id in ids.items():
            self._records[number] = replace(self._records[number], mlflow_run_id=run_id)

    @classmethod
    def create(
        cls, folder: Path, objectives: Sequence[str] = OBJECTIVES, *, kind: str = "sqlite"
    ) -> "Ledger":
        """Create an empty ledger, completely or not at all.

        Args:
            folder: the sweep's directory.
            objectives: the fields of an outcome that are minimized.
            kind: its storage, a value of `sweep.ledger`.
        """
        backend = backends.backend_for(folder, kind)
        backend.create(objectives)
        return cls._of(backend.open(is_writer=False))

    @classmethod
    def open(cls, folder: Path, *, is_writer: bool = False) -> "Ledger":
        """Open the ledger of a sweep's directory.

        Args:
            folder: the sweep's directory.
            is_writer: whether the caller holds the directory's lock and writes.

        Raises:
            LedgerError: if there is none, or it is damaged; it is left as it is.
            LockedError: if another process writes it, on any machine.
        """
        backend = backends.find_backend(folder) or backends.backend_for(folder)
        return cls._of(backend.open(is_writer=is_writer))

    @classmethod
    def open_or_create(
        cls, folder: Path, objectives: Sequence[str], *, kind: str = "sqlite"
    ) -> "Ledger":
        """Open the ledger of a directory to write it, or create one.

        Args:
            folder: the sweep's directory, whose lock the caller holds.
            objectives: the fields of an outcome that are minimized.
            kind: its storage, a value of `sweep.ledger`.

        Raises:
            LedgerError: if the existing one is damaged, or of another kind.
            LockedError: if another process writes it, on any machine.
        """
        backend, exists = backends.agree_backend(folder, kind)
        if not exists:
            backend.create(objectives)
        return cls._of(backend.open(is_writer=True))

    @classmethod
    def _of(cls, opened: OpenLedger) -> "Ledger":
        try:
            return cls(opened)
        except Exception as error:
            opened.close()
            raise LedgerError(damaged_error(opened.name, error)) from error

    def close(self) -> None:
        self._opened.close()

    # ---- reading ----

    def records(self) -> list[TrialRecord]:
        return list(self._records.values())  # in order: a new one has the highest number

    def record(self, number: int) -> TrialRecord:
        return self._records[number]

    def __len__(self) -> int:
        return len(self._records)

    # ---- writing ----

    def add(
        self, params: Mapping[str, Any], distributions: Mapping[str, Distribution]
    ) -> TrialRecord:
        """Add a waiting trial. Values outside the distributions become attributes of its row."""
        inside = {
            name: as_optuna(distributions[name])
            for name, value in params.items()
            if name in distributions and distributions[name].holds(value)
        }
        # Optuna fixes a choice's options for a study's whole life; a choice that has more options
        # now is stored as an attribute, too.
        allowed = {name: d for name, d in inside.items() if self._choices.get(name, d) == d}
        self._store_choices(allowed)
        record = TrialRecord(number=len(self._records), state="waiting", params=dict(params))
        return self._create(record, allowed)

    def retry(self, number: int) -> TrialRecord:
        """Let a failed trial wait again, to go on from its checkpoint.

        Raises:
            LedgerError: if it has not failed.
        """
        return self._reopen(number, "failed")

    def tune_further(self, number: int, steps: int) -> TrialRecord:
        """Let a finished trial wait again, to be tuned for more steps.

        Raises:
            LedgerError: if it is not finished.
        """
        adjustments = self._records[number].adjustments
        steps += adjustments.get(MORE_STEPS, 0)
        return self._reopen(number, "finished", {**adjustments, MORE_STEPS: steps})

    def _reopen(
        self, number: int, state: State, adjustments: Mapping[str, Any] | None = None
    ) -> TrialRecord:
        """Continue a trial in a new row under its old number: Optuna never reopens a row."""
        record = self._records[number]
        if record.state != state:
            raise LedgerError(f"`trial` {number} must be {state}, but is {record.state} instead.")
        self._store_earlier_outcomes(number)
        distributions = self._storage.get_trial(self._ids[number]).distributions
        changed = record.adjustments if adjustments is None else adjustments
        waiting = replace(record, state="waiting", error=None, outcomes=(), adjustments=changed)
        return self._create(waiting, distributions)

    def _create(
        self, record: TrialRecord, distributions: Mapping[str, BaseDistribution]
    ) -> TrialRecord:
        others = {k: v for k, v in record.params.items() if k not in distributions}
        attributes = {NUMBER: record.number, OTHERS: others, ROW: record_to_row(record)}
        trial = FrozenTrial(
            number=-1,
            trial_id=-1,
            state=TrialState.WAITING,
            value=None,
            datetime_start=None,
            datetime_complete=None,
            params={name: record.params[name] for name in distributions},
            distributions=dict(distributions),
            user_attrs=attributes,
            system_attrs={},
            intermediate_values={},
        )
        with self._write_errors():
            self._ids[record.number] = self._storage.create_new_trial(self._study, trial)
        self._records[record.number] = record
        return record

    def _store_earlier_outcomes(self, number: int) -> None:
        """Store the outcomes that a trial had before it is continued."""
        if number in self._records and self._records[number].outcomes:
            self._earlier[number] = self._records[number].outcomes

    def _store_choices(self, distributions: Mapping[str, BaseDistribution]) -> None:
        for name, distribution in distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                self._choices.setdefault(name, distribution)

    def set_attribute(self, key: str, value: str) -> None:
        """Store a value of the sweep itself."""
        with self._write_errors():
            self._storage.set_study_user_attr(self._study, key, value)

    def attribute(self, key: str) -> str | None:
        """The value that `set_attribute` stored; None if there is none."""
        values: dict[str, str] = self._storage.get_study_user_attrs(self._study)
        return values.get(key)

    def start(self, number: int) -> TrialRecord:
        """Start an attempt of a trial."""
        record = self._records[number]
        self._started[number] = time.monotonic()
        self._reached[number] = record.steps
        self._write(replace(record, attempts=record.attempts + 1))
        return self._set_state(number, TrialState.RUNNING)

    def track(self, number: int, run_id: str) -> None:
        """Store the id of a trial's MLflow run; Optuna's row of a trial that is over is fixed."""
        record = replace(self._records[number], mlflow_run_id=run_id)
        if record == self._records[number]:
            return
        # An attribute of the study can still be written then; `late_run_ids` reads it back.
        if record.is_over:
            self.set_attribute(f"{RUN}{number}", run_id)
            self._records[number] = record
        else:
            self._write(record)

    def update_latencies(self, number: int, outcomes: Sequence[Outcome]) -> TrialRecord:
        """Store latencies of a finished trial's outcomes that were measured after its end."""
        text = json.dumps(late_values(outcomes))
        self.set_attribute(f"{LATENCIES}{number}", text)
        self._records[number] = replace(self._records[number], outcomes=tuple(outcomes))
        return self._records[number]

    def advance(self, number: int, report: Report) -> TrialRecord:
        """Store a report of a running trial; one that a resumed trial repeats replaces the old."""
        # Reports up to step 300, checkpoint at 250: the next attempt reports 275 and 300 again, and
        # the time until then is wasted. Step 0 begins a stage and repeats nothing.
        is_repeated = 0 < report.step <= self._reached.get(number, 0)
        record = self._with_time(number, is_wasted=is_repeated)
        # Points at 100, 200, 300 and a repeated report of 200: only 100 and the new 200 stay.
        curve = tuple(point for point in record.curve if point.step < report.step)
        if report.wer is not None and report.gflops is not None:
            curve += (CurvePoint(step=report.step, wer=report.wer, gflops=report.gflops),)
        steps, total_steps = report.step, report.total_steps
        return self._write(replace(record, steps=steps, total_steps=total_steps, curve=curve))

    def finish(self, number: int, outcomes: Sequence[Outcome]) -> TrialRecord:
        """End a trial with its outcomes; one whose objectives are not finite makes it fail."""
        fault = _fault(outcomes, self._objectives)
        if fault:
            return self.fail(number, fault)
        self._write(self._with_time(number))
        # Before the state: after a kill in between, `reconcile` finishes the trial from them.
        values = [asdict(outcome) for outcome in outcomes]
        with self._write_errors():
            self._storage.set_trial_user_attr(self._ids[number], OUTCOMES, values)
        self._records[number] = replace(self._records[number], outcomes=tuple(outcomes))
        return self._set_state(number, TrialState.COMPLETE)

    def fail(self, number: int, error: str) -> TrialRecord:
        """End a trial with an error; outcomes that it had before are restored."""
        self._write(replace(self._with_time(number), error=error))
        # More tuning that failed takes nothing from the front: the old model is still there.
        if number in self._earlier:
            return self.finish(number, self._earlier[number])
        return self._set_state(number, TrialState.FAIL)

    def stop(self, number: int, reason: str) -> TrialRecord:
        """End a trial early: samplers see it as pruned, never as a result."""
        self._write(replace(self._with_time(number), error=reason))
        return self._set_state(number, TrialState.PRUNED)

    def release(self, number: int, adjustments: Mapping[str, Any] | None = None) -> TrialRecord:
        """Let a trial wait to be continued, after its worker was lost or its settings failed.

        Args:
            number: the trial's.
            adjustments: settings that replace those of its parameters.
        """
        record = self._with_time(number, is_wasted=True)
        self._write(replace(record, adjustments={**record.adjustments, **(adjustments or {})}))
        return self._set_state(number, TrialState.WAITING)

    def reconcile(self) -> list[TrialRecord]:
        """Correct the states after a kill: nothing runs, and a trial with outcomes is finished."""
        running = [record for record in self.records() if record.state == "running"]
        return [
            self._set_state(record.number, TrialState.COMPLETE)
            if record.outcomes
            else self._set_state(record.number, TrialState.WAITING)
            for record in running
        ]

    def _with_time(self, number: int, *, is_wasted: bool = False) -> TrialRecord:
        """The record with the wall time since its last change added."""
        record, now = self._records[number], time.monotonic()
        spent = now - self._started.get(number, now)
        self._started[number] = now
        wasted = record.wasted_seconds + (spent if is_wasted else 0.0)
        return replace(record, seconds=record.seconds + spent, wasted_seconds=wasted)

    def _write(self, record: TrialRecord) -> TrialRecord:
        with self._write_errors():
            self._storage.set_trial_user_attr(self._ids[record.number], ROW, record_to_row(record))
        self._records[record.number] = record
        return record

    def _set_state(self, number: int, state: TrialState) -> TrialRecord:
        record = self._records[number]
        values = None
        if state == TrialState.COMPLETE:
            # Optuna has room for one outcome a trial; the further ones are in the attribute alone.
            values = [float(getattr(record.outcomes[0], name)) for name in self._objectives]
        with self._write_errors():
            self._storage.set_trial_state_values(self._ids[number], state, values)
        if state != TrialState.RUNNING:
            self._started.pop(number, None)
        self._records[number] = replace(record, state=STATES[state.name])
        return self._records[number]

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Turn a failed write into an OSError that names the ledger.

        Raises:
            OSError: if the write fails.
        """
        self._opened.check()
        try:
            yield
        except (optuna.exceptions.StorageInternalError, OSError) as error:
            self._opened.roll_back()
            reason = first_line(error.__cause__ or error)
            raise OSError(f"`{self._opened.name}` must be writable, but: {reason}") from error


def as_optuna(distribution: Distribution) -> BaseDistribution:
    """The distribution as an object of Optuna's."""
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.options)
    if distribution.is_integer:
        return IntDistribution(int(distribution.low), int(distribution.high))
    return FloatDistribution(distribution.low, distribution.high, log=distribution.is_log)


def _fault(outcomes: Sequence[Outcome], objectives: Sequence[str]) -> str | None:
    """Why these outcomes cannot be compared, in one line; None if they can."""
    if not outcomes:
        return "A finished trial must have an outcome, but has none instead."
    for outcome in outcomes:
        for name in objectives:
            value = getattr(outcome, name)
            if not math.isfinite(value):
                return f"`{name}` must be a finite number, but is {value} instead."
    return None
