"""The sweep's single truth: an Optuna study in the sweep's directory.

Every change is one or two SQLite transactions in an order that a kill between them cannot spoil:
what a trial found is written before its state says that it is finished.
"""

import json
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from core.report import Outcome, Report
from sweep.records import Heard, State, TrialRecord, in_order, record_of
from sweep.space import Choice, Distribution

STUDY = "sweep"
OBJECTIVES = ("wer", "gflops")
FILE = "ledger.db"

STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}

# User attributes, for what Optuna has no place for.
NUMBER = "trial"
"""The trial's number; a retried one takes a second row of Optuna's, and keeps its number."""
OTHERS = "params"
"""Parameters outside the search space: the control trial sets the method, mostly not searched."""
ROW = "record"
"""Attempts, steps, the curve, time, MLflow's run and the error."""
OUTCOMES = "outcomes"


class LedgerError(ValueError):
    """A ledger that cannot be read; nothing was changed."""


class Ledger:
    """All trials of a sweep. One process writes; any number may read.

    The writer keeps all records in memory, so that reading them costs no query.
    """

    def __init__(self, storage: RDBStorage) -> None:
        self._storage = storage
        self._study = storage.get_study_id_from_name(STUDY)
        self._objectives = json.loads(self.noted("objectives") or json.dumps(OBJECTIVES))
        self._ids: dict[int, int] = {}
        self._records: dict[int, TrialRecord] = {}
        self._started: dict[int, float] = {}
        self._choices: dict[str, BaseDistribution] = {}
        for trial in storage.get_all_trials(self._study, deepcopy=False):
            record = recorded(trial.number, trial.state.name, trial.params, trial.user_attrs)
            self._ids[record.number] = trial._trial_id  # noqa: SLF001  # the storage's own handle
            self._records[record.number] = record
            self._remember_choices(trial.distributions)
        self._records = in_order(self._records)

    @classmethod
    def create(cls, folder: Path, objectives: Sequence[str] = OBJECTIVES) -> "Ledger":
        """Start an empty ledger; it appears whole or not at all."""
        beside = folder / f"{FILE}.new"
        beside.unlink(missing_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = RDBStorage(f"sqlite:///{beside}")
        study = optuna.create_study(
            study_name=STUDY, storage=storage, directions=["minimize"] * len(objectives)
        )
        study.set_user_attr("objectives", json.dumps(list(objectives)))
        storage.engine.dispose()
        beside.rename(folder / FILE)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "Ledger":
        """Read the ledger of a sweep's directory.

        Raises:
            LedgerError: if there is none, or it is damaged; it is left as it is.
        """
        path = folder / FILE
        check_database(path)
        # Whoever reads while the driver writes, or the other way round, waits for its turn.
        storage = None
        try:
            storage = RDBStorage(
                f"sqlite:///{path}",
                engine_kwargs={"connect_args": {"timeout": 60}},
                skip_table_creation=True,
            )
            return cls(storage)
        except Exception as error:
            if storage is not None:
                storage.engine.dispose()
            raise damaged(path, error) from error

    @classmethod
    def open_or_create(cls, folder: Path, objectives: Sequence[str]) -> "Ledger":
        """The ledger that is there, or else a new one.

        Raises:
            LedgerError: if the one there is damaged.
        """
        exists = (folder / FILE).exists()
        return cls.open(folder) if exists else cls.create(folder, objectives)

    def close(self) -> None:
        self._storage.engine.dispose()

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
        wanted = {name: as_optuna(distributions[name]) for name in params if name in distributions}
        # Optuna keeps a choice's options for a study's whole life; more of them go beside, too.
        known = {name: d for name, d in wanted.items() if self._choices.get(name, d) == d}
        self._remember_choices(known)
        record = TrialRecord(number=len(self._records), state="waiting", params=dict(params))
        return self._create(record, known)

    def retry(self, number: int) -> TrialRecord:
        """A failed trial waits again, with all it had reached.

        What is over in Optuna stays over: it goes on in a new row there, under its old number.

        Raises:
            LedgerError: if it has not failed.
        """
        record = self._records[number]
        if record.state != "failed":
            raise LedgerError(f"`trial` {number} must have failed, but is {record.state} instead.")
        known = self._storage.get_trial(self._ids[number]).distributions
        return self._create(replace(record, state="waiting", error=None), known)

    def _create(
        self, record: TrialRecord, distributions: Mapping[str, BaseDistribution]
    ) -> TrialRecord:
        others = {k: v for k, v in record.params.items() if k not in distributions}
        attributes = {NUMBER: record.number, OTHERS: others, ROW: _row(record)}
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
        with _written():
            self._ids[record.number] = self._storage.create_new_trial(self._study, trial)
        self._records[record.number] = record
        return record

    def _remember_choices(self, distributions: Mapping[str, BaseDistribution]) -> None:
        for name, distribution in distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                self._choices.setdefault(name, distribution)

    def note(self, key: str, value: str) -> None:
        """Remember something of the sweep itself."""
        with _written():
            self._storage.set_study_user_attr(self._study, key, value)

    def noted(self, key: str) -> str | None:
        """What `note` was told."""
        found: dict[str, str] = self._storage.get_study_user_attrs(self._study)
        return found.get(key)

    def start(self, number: int) -> TrialRecord:
        """One more attempt begins."""
        record = self._records[number]
        self._started[number] = time.monotonic()
        self._write(replace(record, attempts=record.attempts + 1))
        return self._turn(number, TrialState.RUNNING)

    def track(self, number: int, run_id: str) -> None:
        """Remember which MLflow run is the trial's."""
        if self._records[number].mlflow_run_id != run_id:
            self._write(replace(self._records[number], mlflow_run_id=run_id))

    def advance(self, number: int, report: Report) -> TrialRecord:
        """A running trial was heard of; what a resumed one repeats takes its old place."""
        record = self._with_time(number)
        curve = tuple(heard for heard in record.curve if heard.step < report.step)
        if report.wer is not None and report.gflops is not None:
            curve += (Heard(step=report.step, wer=report.wer, gflops=report.gflops),)
        steps, total_steps = report.step, report.total_steps
        return self._write(replace(record, steps=steps, total_steps=total_steps, curve=curve))

    def finish(self, number: int, outcomes: Sequence[Outcome]) -> TrialRecord:
        """The trial is over; an outcome that cannot be judged makes it a failed one."""
        fault = _fault(outcomes, self._objectives)
        if fault:
            return self.fail(number, fault)
        self._write(self._with_time(number))
        told = [asdict(outcome) for outcome in outcomes]
        with _written():
            self._storage.set_trial_user_attr(self._ids[number], OUTCOMES, told)
        self._records[number] = replace(self._records[number], outcomes=tuple(outcomes))
        return self._turn(number, TrialState.COMPLETE)

    def fail(self, number: int, error: str) -> TrialRecord:
        """The trial is over, and has nothing to show but one line."""
        self._write(replace(self._with_time(number), error=error))
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
        record = self._with_time(number)
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

    def _with_time(self, number: int) -> TrialRecord:
        """The record with the wall time since it was last noted."""
        record, now = self._records[number], time.monotonic()
        spent = now - self._started.get(number, now)
        self._started[number] = now
        return replace(record, seconds=record.seconds + spent)

    def _write(self, record: TrialRecord) -> TrialRecord:
        with _written():
            self._storage.set_trial_user_attr(self._ids[record.number], ROW, _row(record))
        self._records[record.number] = record
        return record

    def _turn(self, number: int, state: TrialState) -> TrialRecord:
        record = self._records[number]
        values = None
        if state == TrialState.COMPLETE:
            values = [float(getattr(record.outcomes[0], name)) for name in self._objectives]
        with _written():
            self._storage.set_trial_state_values(self._ids[number], state, values)
        if state != TrialState.RUNNING:
            self._started.pop(number, None)
        self._records[number] = replace(record, state=STATES[state])
        return self._records[number]


@contextmanager
def _written() -> Iterator[None]:
    """A write that fails is an OSError, as any other on a full disk is."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        reason = error.__cause__ or error
        raise OSError(f"`{FILE}` must be writable, but: {_first_line(reason)}") from error


def as_optuna(distribution: Distribution) -> BaseDistribution:
    """The same distribution in Optuna's words."""
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.options)
    if distribution.is_integer:
        return IntDistribution(int(distribution.low), int(distribution.high))
    return FloatDistribution(distribution.low, distribution.high, log=distribution.is_log)


def _row(record: TrialRecord) -> dict[str, Any]:
    return {
        "attempts": record.attempts,
        "steps": record.steps,
        "total_steps": record.total_steps,
        "adjustments": dict(record.adjustments),
        "curve": [[heard.step, heard.wer, heard.gflops] for heard in record.curve],
        "seconds": record.seconds,
        "mlflow_run_id": record.mlflow_run_id,
        "error": record.error,
    }


def recorded(
    number: int, state: str, params: Mapping[str, Any], attributes: Mapping[str, Any]
) -> TrialRecord:
    """The record of a row of Optuna's, by its number, its state's name and what it holds.

    Raises:
        ValueError: if it holds what none can.
    """
    return record_of(
        {
            "curve": (),
            **attributes.get(ROW, {}),
            "number": attributes.get(NUMBER, number),
            "state": STATES[TrialState[state]],
            "params": {**params, **attributes.get(OTHERS, {})},
            "outcomes": attributes.get(OUTCOMES, ()),
        }
    )


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


def check_database(path: Path) -> None:
    """Refuse what Optuna would try to mend: it fills empty files and half databases."""
    if not path.is_file():
        raise LedgerError(f"`{path.parent}` must hold a sweep, but has no {FILE}.")
    try:
        # Not read-only: what a kill left half written, SQLite rolls back here.
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as database:
            verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            studies = database.execute("SELECT study_name FROM studies").fetchall()
            if verdict == "ok":
                verdict = _missing_version(database) or verdict
    except (sqlite3.Error, UnicodeError) as error:  # names in the schema are bytes, too
        raise damaged(path, error) from error
    if verdict != "ok" or (STUDY,) not in studies:
        raise damaged(path, verdict if verdict != "ok" else f"no study `{STUDY}`")


def _missing_version(database: sqlite3.Connection) -> str | None:
    """Which table is empty that must not be: Optuna would write its own version there."""
    for table in ("version_info", "alembic_version"):
        if database.execute(f"SELECT count(*) FROM {table}").fetchone() != (1,):  # noqa: S608
            return f"`{table}` is empty"
    return None


def damaged(path: Path, reason: object) -> LedgerError:
    """What to raise for a ledger that cannot be read."""
    return LedgerError(
        f"`{path}` must be an intact ledger, but is damaged: {_first_line(reason)}."
        " Nothing was changed; put a copy in its place."
    )


def _first_line(reason: object) -> str:
    lines = str(reason).strip().splitlines()
    return lines[0] if lines else type(reason).__name__
