"""The sweep's single truth: an Optuna study in the sweep's directory, and the lock on it.

Every change is one or two SQLite transactions in an order that a kill between them cannot spoil:
what a trial found is written before its state says that it is finished.
"""

import fcntl
import math
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from core.report import Outcome
from sweep.records import State, TrialRecord
from sweep.space import Choice, Distribution

STUDY = "sweep"
OBJECTIVES = ("wer", "gflops")
FILE = "ledger.db"
LOCK = "lock"

STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}

# User attributes, for what Optuna has no place for.
OTHERS = "params"
"""Parameters outside the search space: the control trial sets the method, mostly not searched."""
ROW = "record"
"""Attempts, steps, time, MLflow's run and the error."""
OUTCOMES = "outcomes"


class LedgerError(ValueError):
    """A ledger that cannot be read; nothing was changed."""


class LockedError(RuntimeError):
    """Another driver lives in the sweep's directory."""


class Ledger:
    """All trials of a sweep. One process writes; any number may read.

    The writer keeps all records in memory, so that reading them costs no query.
    """

    def __init__(self, storage: RDBStorage) -> None:
        self._storage = storage
        self._study = storage.get_study_id_from_name(STUDY)
        self._ids: dict[int, int] = {}
        self._records: dict[int, TrialRecord] = {}
        self._started: dict[int, float] = {}
        for trial in storage.get_all_trials(self._study, deepcopy=False):
            self._ids[trial.number] = trial._trial_id  # noqa: SLF001  # the storage's own handle
            self._records[trial.number] = _record(trial)

    @classmethod
    def create(cls, folder: Path) -> "Ledger":
        """Start an empty ledger; it appears whole or not at all."""
        beside = folder / f"{FILE}.new"
        beside.unlink(missing_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = RDBStorage(f"sqlite:///{beside}")
        optuna.create_study(
            study_name=STUDY, storage=storage, directions=["minimize"] * len(OBJECTIVES)
        )
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
        _check_database(path)
        # Whoever reads while the driver writes, or the other way round, waits for its turn.
        storage = RDBStorage(
            f"sqlite:///{path}",
            engine_kwargs={"connect_args": {"timeout": 60}},
            skip_table_creation=True,
        )
        try:
            return cls(storage)
        except Exception as error:
            storage.engine.dispose()
            raise LedgerError(_damaged(path, error)) from error

    def close(self) -> None:
        self._storage.engine.dispose()

    # ---- reading ----

    def records(self) -> list[TrialRecord]:
        return [self._records[number] for number in sorted(self._records)]

    def record(self, number: int) -> TrialRecord:
        return self._records[number]

    def __len__(self) -> int:
        return len(self._records)

    # ---- writing ----

    def add(
        self, params: Mapping[str, Any], distributions: Mapping[str, Distribution]
    ) -> TrialRecord:
        """A new waiting trial. What lies outside the distributions is kept beside them."""
        known = {name: as_optuna(distributions[name]) for name in params if name in distributions}
        searched = {name: params[name] for name in known}
        others = {name: value for name, value in params.items() if name not in known}
        trial = FrozenTrial(
            number=-1,
            trial_id=-1,
            state=TrialState.WAITING,
            value=None,
            datetime_start=None,
            datetime_complete=None,
            params=searched,
            distributions=known,
            user_attrs={OTHERS: others},
            system_attrs={},
            intermediate_values={},
        )
        number = len(self._records)
        with _written():
            self._ids[number] = self._storage.create_new_trial(self._study, trial)
        self._records[number] = TrialRecord(number=number, state="waiting", params=dict(params))
        return self._records[number]

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

    def advance(self, number: int, *, steps: int, total_steps: int) -> TrialRecord:
        """A running trial was heard of."""
        record = self._with_time(number)
        return self._write(replace(record, steps=steps, total_steps=total_steps))

    def finish(self, number: int, outcomes: Sequence[Outcome]) -> TrialRecord:
        """The trial is over; an outcome that cannot be judged makes it a failed one."""
        fault = _fault(outcomes)
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

    def stop(self, number: int) -> TrialRecord:
        """The trial was ended before its time: told to samplers as pruned, never as a result."""
        self._write(self._with_time(number))
        return self._turn(number, TrialState.PRUNED)

    def release(self, number: int) -> TrialRecord:
        """The trial lost its worker or its driver, and waits to be continued."""
        self._write(self._with_time(number))
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
        row = {
            "attempts": record.attempts,
            "steps": record.steps,
            "total_steps": record.total_steps,
            "seconds": record.seconds,
            "mlflow_run_id": record.mlflow_run_id,
            "error": record.error,
        }
        with _written():
            self._storage.set_trial_user_attr(self._ids[record.number], ROW, row)
        self._records[record.number] = record
        return record

    def _turn(self, number: int, state: TrialState) -> TrialRecord:
        record = self._records[number]
        values = None
        if state == TrialState.COMPLETE:
            values = [float(getattr(record.outcomes[0], name)) for name in OBJECTIVES]
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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the sweep's directory: two drivers never write one ledger.

    The system frees the lock with the process that holds it, however that ends.

    Raises:
        LockedError: if another live process holds it.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        if not _seize(file):
            raise LockedError(
                f"`{folder}` must be free, but process {_holder(folder)} runs this sweep;"
                " wait for it, or end it and resume."
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def driver_pid(folder: Path) -> int | None:
    """The process that runs the sweep now, or None."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _holder(folder)
    return None


def _seize(file: TextIO) -> bool:
    for _ in range(5):  # `driver_pid` holds it too, for an instant
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return True
    return False


def _holder(folder: Path) -> int:
    text = (folder / LOCK).read_text(encoding="utf-8").strip()
    return int(text) if text.isdigit() else 0


def _record(trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    return TrialRecord(
        number=trial.number,
        state=STATES[trial.state],
        params={**trial.params, **attributes.get(OTHERS, {})},
        outcomes=tuple(Outcome(**told) for told in attributes.get(OUTCOMES, ())),
        **attributes.get(ROW, {}),
    )


def _fault(outcomes: Sequence[Outcome]) -> str | None:
    """Why these outcomes cannot be judged, in one line, if they cannot."""
    if not outcomes:
        return "A finished trial must have an outcome, but has none instead."
    for outcome in outcomes:
        for name in OBJECTIVES:
            value = getattr(outcome, name)
            if not math.isfinite(value):
                return f"`{name}` must be a finite number, but is {value} instead."
    return None


def _check_database(path: Path) -> None:
    """Refuse what Optuna would try to mend: it fills empty files and half databases."""
    if not path.is_file():
        raise LedgerError(f"`{path.parent}` must hold a sweep, but has no {FILE}.")
    try:
        # Not read-only: what a kill left half written, SQLite rolls back here.
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as database:
            verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            studies = database.execute("SELECT study_name FROM studies").fetchall()
    except sqlite3.Error as error:
        raise LedgerError(_damaged(path, error)) from error
    if verdict != "ok" or (STUDY,) not in studies:
        raise LedgerError(_damaged(path, verdict if verdict != "ok" else f"no study `{STUDY}`"))


def _damaged(path: Path, reason: object) -> str:
    return (
        f"`{path}` must be an intact ledger, but is damaged: {_first_line(reason)}."
        " Nothing was changed; put a copy in its place."
    )


def _first_line(reason: object) -> str:
    lines = str(reason).strip().splitlines()
    return lines[0] if lines else type(reason).__name__
