"""The sweep's single truth: an Optuna study, in the sweep's directory or on a server.

Every change is one or two transactions in an order that a kill between them cannot spoil: what a
trial found is written before its state says that it is finished.
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
from sweep.config.space import Choice, Distribution
from sweep.ledger import backends
from sweep.ledger.backends import Opened, rows_in
from sweep.ledger.files import LedgerError, damaged_error, first_line
from sweep.ledger.optuna_rows import (
    NUMBER,
    OTHERS,
    OUTCOMES,
    ROW,
    RUN,
    STATES,
    record_to_row,
    row_to_record,
    run_ids,
)
from sweep.ledger.records import CurvePoint, State, TrialRecord, in_order

OBJECTIVES = ("wer", "gflops")

MORE_STEPS = "tuning.more_steps"


class Ledger:
    """All trials of a sweep. One process writes; any number may read.

    The writer keeps all records in memory, so that reading them costs no query.
    """

    def __init__(self, opened: Opened) -> None:
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
        spoken: dict[str, str] = {}  # what was first said of each parameter
        for row in rows_in(opened):
            record = row_to_record(row)
            self._remember_earlier(record.number)
            self._ids[record.number], self._records[record.number] = row.id, record
            for name, distribution in row.distributions.items():
                spoken.setdefault(name, distribution)
        self._remember_choices({n: json_to_distribution(text) for n, text in spoken.items()})
        self._records = in_order(self._records)
        known = run_ids(storage.get_study_user_attrs(self._study))
        for number, run_id in known.items():
            self._records[number] = replace(self._records[number], mlflow_run_id=run_id)

    @classmethod
    def create(
        cls, folder: Path, objectives: Sequence[str] = OBJECTIVES, *, kind: str = "sqlite"
    ) -> "Ledger":
        """Start an empty ledger; it appears whole or not at all.

        Args:
            folder: the sweep's directory.
            objectives: what is minimised.
            kind: where it shall lie, as `sweep.ledger.ledger` says it.
        """
        place = backends.backend_for(folder, kind)
        place.create(objectives)
        return cls._of(place.open(is_writer=False))

    @classmethod
    def open(cls, folder: Path, *, is_writer: bool = False) -> "Ledger":
        """Open the ledger of a sweep's directory.

        Args:
            folder: the sweep's directory.
            is_writer: whether the caller holds the directory and writes.

        Raises:
            LedgerError: if there is none, or it is damaged; it is left as it is.
            LockedError: if another writes it, from wherever.
        """
        place = backends.find_backend(folder) or backends.backend_for(folder)
        return cls._of(place.open(is_writer=is_writer))

    @classmethod
    def open_or_create(
        cls, folder: Path, objectives: Sequence[str], *, kind: str = "sqlite"
    ) -> "Ledger":
        """The ledger that is there, or else a new one, for whoever holds the directory and writes.

        Raises:
            LedgerError: if the one there is damaged, or of another kind.
            LockedError: if another writes it, from wherever.
        """
        place, is_there = backends.agree_backend(folder, kind)
        if not is_there:
            place.create(objectives)
        return cls._of(place.open(is_writer=True))

    @classmethod
    def _of(cls, opened: Opened) -> "Ledger":
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
        """A new waiting trial. What lies outside the distributions is kept beside them."""
        wanted = {
            name: as_optuna(distributions[name])
            for name, value in params.items()
            if name in distributions and distributions[name].holds(value)
        }
        # Optuna keeps a choice's options for a study's whole life; more of them go beside, too.
        known = {name: d for name, d in wanted.items() if self._choices.get(name, d) == d}
        self._remember_choices(known)
        record = TrialRecord(number=len(self._records), state="waiting", params=dict(params))
        return self._create(record, known)

    def retry(self, number: int) -> TrialRecord:
        """A failed trial waits again, with all it had reached; any other is a LedgerError."""
        return self._reopen(number, "failed")

    def tune_on(self, number: int, steps: int) -> TrialRecord:
        """A finished trial waits again, to be tuned on; any other is a LedgerError."""
        adjustments = self._records[number].adjustments
        steps += adjustments.get(MORE_STEPS, 0)
        return self._reopen(number, "finished", {**adjustments, MORE_STEPS: steps})

    def _reopen(
        self, number: int, state: State, adjustments: Mapping[str, Any] | None = None
    ) -> TrialRecord:
        """What is over in Optuna stays over: a trial goes on in a new row, under its old number."""
        record = self._records[number]
        if record.state != state:
            raise LedgerError(f"`trial` {number} must be {state}, but is {record.state} instead.")
        self._remember_earlier(number)
        known = self._storage.get_trial(self._ids[number]).distributions
        changed = record.adjustments if adjustments is None else adjustments
        waiting = replace(record, state="waiting", error=None, outcomes=(), adjustments=changed)
        return self._create(waiting, known)

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
        with self._written():
            self._ids[record.number] = self._storage.create_new_trial(self._study, trial)
        self._records[record.number] = record
        return record

    def _remember_earlier(self, number: int) -> None:
        """What a trial had found before it was taken up again."""
        if number in self._records and self._records[number].outcomes:
            self._earlier[number] = self._records[number].outcomes

    def _remember_choices(self, distributions: Mapping[str, BaseDistribution]) -> None:
        for name, distribution in distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                self._choices.setdefault(name, distribution)

    def set_attribute(self, key: str, value: str) -> None:
        """Store a value of the sweep itself."""
        with self._written():
            self._storage.set_study_user_attr(self._study, key, value)

    def attribute(self, key: str) -> str | None:
        """The value that `set_attribute` stored; None if there is none."""
        values: dict[str, str] = self._storage.get_study_user_attrs(self._study)
        return values.get(key)

    def start(self, number: int) -> TrialRecord:
        """One more attempt begins."""
        record = self._records[number]
        self._started[number] = time.monotonic()
        self._reached[number] = record.steps
        self._write(replace(record, attempts=record.attempts + 1))
        return self._turn(number, TrialState.RUNNING)

    def track(self, number: int, run_id: str) -> None:
        """Remember which MLflow run is the trial's; what is over never changes in Optuna's row."""
        record = replace(self._records[number], mlflow_run_id=run_id)
        if record == self._records[number]:
            return
        if record.is_over:
            self.set_attribute(f"{RUN}{number}", run_id)
            self._records[number] = record
        else:
            self._write(record)

    def advance(self, number: int, report: Report) -> TrialRecord:
        """A running trial was heard of; what a resumed one repeats takes its old place."""
        is_repeated = 0 < report.step <= self._reached.get(number, 0)
        record = self._with_time(number, is_wasted=is_repeated)
        curve = tuple(heard for heard in record.curve if heard.step < report.step)
        if report.wer is not None and report.gflops is not None:
            curve += (CurvePoint(step=report.step, wer=report.wer, gflops=report.gflops),)
        steps, total_steps = report.step, report.total_steps
        return self._write(replace(record, steps=steps, total_steps=total_steps, curve=curve))

    def finish(self, number: int, outcomes: Sequence[Outcome]) -> TrialRecord:
        """The trial is over; an outcome that cannot be judged makes it a failed one."""
        fault = _fault(outcomes, self._objectives)
        if fault:
            return self.fail(number, fault)
        self._write(self._with_time(number))
        told = [asdict(outcome) for outcome in outcomes]
        with self._written():
            self._storage.set_trial_user_attr(self._ids[number], OUTCOMES, told)
        self._records[number] = replace(self._records[number], outcomes=tuple(outcomes))
        return self._turn(number, TrialState.COMPLETE)

    def fail(self, number: int, error: str) -> TrialRecord:
        """The trial is over, and has to show but one line, and what it had found before."""
        self._write(replace(self._with_time(number), error=error))
        if number in self._earlier:
            return self.finish(number, self._earlier[number])
        return self._turn(number, TrialState.FAIL)

    def stop(self, number: int, reason: str) -> TrialRecord:
        """The trial was ended before its time: told to samplers as pruned, never as a result."""
        self._write(replace(self._with_time(number), error=reason))
        return self._turn(number, TrialState.PRUNED)

    def release(self, number: int, adjustments: Mapping[str, Any] | None = None) -> TrialRecord:
        """The trial lost its worker, or could not go on as it was: it waits to be continued.

        Args:
            number: the trial's.
            adjustments: what it shall be continued with, beside its parameters.
        """
        record = self._with_time(number, is_wasted=True)
        self._write(replace(record, adjustments={**record.adjustments, **(adjustments or {})}))
        return self._turn(number, TrialState.WAITING)

    def reconcile(self) -> list[TrialRecord]:
        """Put right what a killed driver left: nothing runs now; what has outcomes is finished."""
        left = [record for record in self.records() if record.state == "running"]
        return [
            self._turn(record.number, TrialState.COMPLETE)
            if record.outcomes
            else self._turn(record.number, TrialState.WAITING)
            for record in left
        ]

    def _with_time(self, number: int, *, is_wasted: bool = False) -> TrialRecord:
        """The record with the wall time since it was last noted."""
        record, now = self._records[number], time.monotonic()
        spent = now - self._started.get(number, now)
        self._started[number] = now
        wasted = record.wasted_seconds + (spent if is_wasted else 0.0)
        return replace(record, seconds=record.seconds + spent, wasted_seconds=wasted)

    def _write(self, record: TrialRecord) -> TrialRecord:
        with self._written():
            self._storage.set_trial_user_attr(self._ids[record.number], ROW, record_to_row(record))
        self._records[record.number] = record
        return record

    def _turn(self, number: int, state: TrialState) -> TrialRecord:
        record = self._records[number]
        values = None
        if state == TrialState.COMPLETE:
            values = [float(getattr(record.outcomes[0], name)) for name in self._objectives]
        with self._written():
            self._storage.set_trial_state_values(self._ids[number], state, values)
        if state != TrialState.RUNNING:
            self._started.pop(number, None)
        self._records[number] = replace(record, state=STATES[state.name])
        return self._records[number]

    @contextmanager
    def _written(self) -> Iterator[None]:
        """A write that fails is an OSError, as any other on a full disk is."""
        self._opened.check()
        try:
            yield
        except (optuna.exceptions.StorageInternalError, OSError) as error:
            self._opened.mend()
            reason = first_line(error.__cause__ or error)
            raise OSError(f"`{self._opened.name}` must be writable, but: {reason}") from error


def as_optuna(distribution: Distribution) -> BaseDistribution:
    """The same distribution in Optuna's words."""
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.options)
    if distribution.is_integer:
        return IntDistribution(int(distribution.low), int(distribution.high))
    return FloatDistribution(distribution.low, distribution.high, log=distribution.is_log)


def _fault(outcomes: Sequence[Outcome], objectives: Sequence[str]) -> str | None:
    """Why these outcomes cannot be judged, in one line, if they cannot."""
    if not outcomes:
        return "A finished trial must have an outcome, but has none instead."
    for outcome in outcomes:
        for name in objectives:
            value = getattr(outcome, name)
            if not math.isfinite(value):
                return f"`{name}` must be a finite number, but is {value} instead."
    return None
