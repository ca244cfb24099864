"""A sweep's directory as it is now: its configuration, its trials and its front.

This is the single door of every command that only reads. Of a directory on this machine it loads
neither torch nor the library of an object store, and it opens the ledger once. Of a working copy
it asks the store once, and everything after that is read from the copy.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from core.config.base import ConfigError
from sweep.config.sweep import SweepConfig, open_config
from sweep.ledger.fast_read import records_in
from sweep.ledger.files import is_there
from sweep.ledger.records import TrialRecord
from sweep.local_lock import driver_here
from sweep.pareto import front
from sweep.pareto.front import Point
from sweep.storage.addresses import address_of, display_name, is_address


@dataclass(frozen=True, kw_only=True)
class SweepSnapshot:
    """A sweep as it was at one moment, read without changing it."""

    folder: Path
    config: SweepConfig
    records: tuple[TrialRecord, ...]
    driver: int | None
    """The process that runs the sweep, or None."""

    @cached_property
    def points(self) -> list[Point]:
        return front.points(self.records)

    @cached_property
    def front(self) -> list[Point]:
        return front.pareto_front(self.points, self.config.sweep.objectives)

    def record(self, number: int) -> TrialRecord:
        """Returns one trial by its number.

        Raises:
            ConfigError: if the sweep has none of that number.
        """
        if not 0 <= number < len(self.records):
            raise ConfigError(
                f"`trial` must be one of the {len(self.records)} of `{self.folder}`,"
                f" counted from 0, but is {number} instead."
            )
        return self.records[number]


def load_snapshot(folder: Path) -> SweepSnapshot:
    """Reads a sweep's directory without changing it.

    Raises:
        ConfigError, LedgerError: if the directory holds no sweep, or a damaged one.
        StoreError: if the object store cannot be reached.
    """
    folder = folder.resolve()
    is_copy = address_of(folder) is not None
    if is_copy:
        _refresh(folder)
    config = open_config(folder)
    driver = _driver_anywhere(folder) if is_copy else driver_here(folder)
    records: list[TrialRecord] = []
    # A driver that has just begun has no ledger yet, which is no fault. Without a driver it is.
    if is_there(folder) or driver is None:
        records = records_in(folder)
    if driver is None:  # nothing runs, so a trial in this state waits for its next attempt
        records = [replace(r, state="waiting") if r.state == "running" else r for r in records]
    return SweepSnapshot(folder=folder, config=config, records=tuple(records), driver=driver)


def _refresh(folder: Path) -> None:
    from sweep.storage.working_copy import refresh  # noqa: PLC0415  # imports fsspec

    refresh(folder)


def _driver_anywhere(folder: Path) -> int | None:
    from sweep.storage.lock import driver_pid  # noqa: PLC0415  # imports fsspec

    return driver_pid(folder)


def fetch_model(folder: Path, name: str) -> None:
    """Fetches what a working copy lacks of a folder in it; any other directory has it all.

    Raises:
        StoreError: if the object store cannot be reached.
    """
    if address_of(folder) is None:
        return
    from sweep.storage.working_copy import fetch_missing  # noqa: PLC0415  # imports fsspec

    fetch_missing(folder, name)


def _locate(name: str) -> Path:
    if not is_address(name):
        return Path(name)
    from sweep.storage.working_copy import locate  # noqa: PLC0415  # imports fsspec

    return locate(name)


def model_path(name: str) -> Path:
    """Returns the folder of the bundle that `FOLDER` or `DIR:TRIAL` means.

    `DIR:7.2` is the outcome of trial 7 that counts 2 from 0.

    Raises:
        ConfigError: if the trial has no such outcome.
    """
    # From the right, as an address has a colon of its own: `s3://bucket/sweep:7` is trial 7. A
    # folder that is really called `a:7` is taken as a folder.
    folder, colon, trial = name.rpartition(":")
    number, _, outcome = trial.partition(".")
    is_trial = number.isdigit() and (outcome or "0").isdigit()
    if not colon or Path(name).exists() or not is_trial:
        return Path(name).absolute()
    return trial_model_path(load_snapshot(_locate(folder)), int(number), int(outcome or 0))


def trial_model_path(snapshot: SweepSnapshot, trial: int, outcome: int = 0) -> Path:
    """Returns the folder of a finished trial's bundle; a working copy fetches it first.

    Raises:
        ConfigError: if there is no such trial, or it has no such outcome.
        StoreError: if the object store cannot be reached.
    """
    record = snapshot.record(trial)
    if not 0 <= outcome < len(record.outcomes):
        number = f"{trial}.{outcome}" if outcome else f"{trial}"
        raise ConfigError(
            f"`{display_name(snapshot.folder)}:{number}` must be a finished trial, but trial"
            f" {trial} is {record.state} with {len(record.outcomes)} outcomes instead."
        )
    path = f"trials/{record.number:04}/{record.outcomes[outcome].model}"
    fetch_model(snapshot.folder, path)
    return snapshot.folder / path
