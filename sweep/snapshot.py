"""A sweep's directory as it is now: its configuration, its trials and its front."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from core.config.base import ConfigError
from sweep.config.sweep import SweepConfig, open_config
from sweep.ledger.fast_read import records_in
from sweep.ledger.files import is_there
from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.pareto.front import Point
from sweep.storage.lock import driver_pid
from sweep.storage.working_copy import fetch_missing, refresh, resolve_folder

if TYPE_CHECKING:  # torch takes seconds that a table should not
    pass


@dataclass(frozen=True, kw_only=True)
class SweepSnapshot:
    """A sweep's directory as it is now, from outside."""

    folder: Path
    config: SweepConfig
    records: tuple[TrialRecord, ...]
    driver: int | None
    """Process that runs it, if one does."""

    @cached_property
    def points(self) -> list[Point]:
        return front.points(self.records)

    @cached_property
    def front(self) -> list[Point]:
        return front.pareto_front(self.points, self.config.sweep.objectives)

    def record(self, number: int) -> TrialRecord:
        """One trial.

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
    """Read a sweep's directory without touching it.

    Raises:
        ConfigError, LedgerError: if it holds no sweep, or a damaged one.
    """
    folder = folder.resolve()
    refresh(folder)
    config = open_config(folder)
    driver = driver_pid(folder)
    records: list[TrialRecord] = []
    if is_there(folder) or driver is None:
        records = records_in(folder)
    if driver is None:  # whoever ran, runs no more
        records = [replace(r, state="waiting") if r.state == "running" else r for r in records]
    return SweepSnapshot(folder=folder, config=config, records=tuple(records), driver=driver)


def model_path(name: str) -> Path:
    """The bundle that `FOLDER` or `DIR:TRIAL` means; an outcome beyond the first is `7.2`.

    Raises:
        ConfigError: if the trial has no such outcome.
    """
    folder, colon, trial = name.rpartition(":")
    number, _, place = trial.partition(".")
    if not colon or Path(name).exists() or not number.isdigit() or not (place or "0").isdigit():
        return Path(name).absolute()
    seen = load_snapshot(resolve_folder(folder))
    record = seen.record(int(number))
    if int(place or 0) >= len(record.outcomes):
        raise ConfigError(
            f"`{name}` must be a finished trial, but trial {number} is {record.state}"
            f" with {len(record.outcomes)} outcomes instead."
        )
    model = record.outcomes[int(place or 0)].model
    place = f"trials/{record.number:04}/{model}"
    fetch_missing(seen.folder, place)
    return seen.folder / place
