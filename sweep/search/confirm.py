"""Front points again with fresh seeds: the best of many are lucky, too, and luck comes once.

The confirmations of a sweep are a sweep themselves, in its directory, with its teacher and its
speech; all their trials are there from the beginning, so that nothing is searched.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.report import Outcome, Reference
from sweep.config.sweep import (
    CONFIG_FILE,
    SHARED_FOLDERS,
    EarlyStoppingConfig,
    SweepConfig,
    create,
    rewrite,
)
from sweep.ledger.ledger import Ledger
from sweep.ledger.records import TrialRecord
from sweep.pareto.front import Point, points
from sweep.search.sampler import SEED
from sweep.snapshot import SweepSnapshot
from sweep.storage.lock import sweep_lock
from sweep.storage.working_copy import copy_nested

FOLDER = "confirm"
OF = "confirms"
"""Under this the ledger notes whose confirmation each of its trials is, by number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """A front point, and how it did again."""

    trial: int
    method: str
    gflops: float
    """Mean over the fresh seeds, like all that follow but `wer`."""
    params: float
    wer: float
    """On dev, as it stands on the front."""
    again_wer: float
    again_deviation: float
    """Of one seed from another; 0 with one seed."""
    test_wer: float | None
    wer_against: Reference
    test_wer_against: Reference
    seeds: int


def plan(seen: SweepSnapshot, *, seeds: int) -> Path:
    """Make the sweep of confirmations, or add to it what is missing; gives its directory.

    Raises:
        ConfigError, LedgerError: if what is there cannot be read.
        LockedError: if it runs.
    """
    folder, config = seen.folder / FOLDER, _config(seen.config)
    copy_nested(seen.folder, folder)
    folder.mkdir(exist_ok=True)
    for name in SHARED_FOLDERS:
        if not (folder / name).exists():
            (folder / name).symlink_to(Path("..") / name, target_is_directory=True)
    with sweep_lock(folder):
        ledger = Ledger.open_or_create(folder, config.sweep.objectives, kind=config.sweep.ledger)
        _add_missing(ledger, seen, seeds)
        config = config.with_budget(trials=max(1, len(ledger)))
        if (folder / CONFIG_FILE).exists():
            rewrite(folder, config)
        else:  # only now, or whoever resumed what a kill left would search for more
            create(folder, config, config.toml())
        ledger.close()
    return folder


def confirmations(ledger: Ledger) -> dict[int, int]:
    """Whose confirmation each trial of such a ledger is."""
    noted = json.loads(ledger.attribute(OF) or "{}")
    return {int(number): trial for number, trial in noted.items()}


def summarize_confirmations(
    front: Iterable[Point], records: Iterable[TrialRecord], of: Mapping[int, int]
) -> list[Confirmation]:
    """Returns the confirmation of each front point that has a finished one."""
    again: dict[int, list[TrialRecord]] = defaultdict(list)
    for record in records:
        if record.state == "finished" and record.number in of:
            again[of[record.number]].append(record)
    return [
        _summarize(point, [record.outcomes[point.outcome] for record in again[point.trial]])
        for point in front
        if again[point.trial]
    ]


def _summarize(point: Point, outcomes: list[Outcome]) -> Confirmation:
    wers = [outcome.wer for outcome in outcomes]
    tests = [outcome.test_wer for outcome in outcomes if outcome.test_wer is not None]
    return Confirmation(
        trial=point.trial,
        method=point.result.method,
        gflops=statistics.mean(outcome.gflops for outcome in outcomes),
        params=statistics.mean(outcome.params for outcome in outcomes),
        wer=point.wer,
        again_wer=statistics.mean(wers),
        again_deviation=statistics.stdev(wers) if len(wers) > 1 else 0.0,
        test_wer=statistics.mean(tests) if tests else None,
        wer_against=point.result.wer_against,
        test_wer_against=point.result.test_wer_against,
        seeds=len(outcomes),
    )


def runs(seen: SweepSnapshot) -> list[list[Point]]:
    """The front's confirmed points again, a seed a run; none if nothing was confirmed yet.

    Only whole runs count: with a point missing, one would attain less for no fault of its own.
    """
    folder = seen.folder / FOLDER
    if not (folder / CONFIG_FILE).exists():
        return []
    ledger = Ledger.open(folder)
    of, records = confirmations(ledger), ledger.records()
    ledger.close()
    again: dict[int, list[TrialRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.params.get(SEED, 0)):
        if record.state == "finished" and record.number in of:
            again[of[record.number]].append(record)
    return [
        [point for record in seed_records for point in points([record])]
        # Points a, b, c with 3, 2, 3 finished seeds give two runs of three points; the third seed
        # of a and c is left out.
        for seed_records in zip(*again.values(), strict=False)
    ]


def _config(config: SweepConfig) -> SweepConfig:
    """The same trials, to their end, under a name of their own."""
    # Every confirmation has to finish, or the luckier points would be those that were let through.
    limits = {"hours": None, "plateau_trials": 0, "name": f"{config.sweep.name} confirmed"}
    calm = config.with_budget(**limits)
    return calm.model_copy(update={"early_stopping": EarlyStoppingConfig()})


def _add_missing(ledger: Ledger, seen: SweepSnapshot, seeds: int) -> None:
    of = confirmations(ledger)
    there = {(of[r.number], r.params[SEED]) for r in ledger.records() if r.number in of}
    for trial in dict.fromkeys(point.trial for point in seen.front):
        settings = seen.record(trial).settings
        # From the trial's own seed on: with seed 0 and three seeds, 1, 2 and 3. A seed that was
        # luck on the front is not among them, and a second call with five seeds adds 4 and 5.
        first = seen.config.space.trial_config(settings).seed + 1
        for seed in range(first, first + seeds):
            if (trial, seed) in there:
                continue
            # Noted before it is there: a note without a trial says nothing.
            of[len(ledger)] = trial
            ledger.set_attribute(OF, json.dumps(of))
            ledger.add({**settings, SEED: seed}, seen.config.space.distributions)
