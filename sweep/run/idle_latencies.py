"""Latencies of a sweep's models, measured once no trial of it runs any more.

Trials run side by side, and a latency that a worker measures beside others says little. So all
outcomes are measured again when the last trial is over, one after the other on one machine, in
turns with the unpruned model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core.config.trial import TrialConfig
from core.report import Outcome
from sweep.ledger.records import TrialRecord

if TYPE_CHECKING:  # torch takes seconds, needed at the end alone
    from core.conformer.model import Conformer
    from core.latency.idle import IdleLatency

RETRIES = 2
"""Further measurements of a latency, while other programs keep the machine busy."""

ConfigOf = Callable[[TrialRecord], TrialConfig]


def unmeasured(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the finished trials with an outcome whose latency was measured beside trials."""
    finished = [record for record in records if record.state == "finished"]
    return [r for r in finished if not all(outcome.latency_idle for outcome in r.outcomes)]


def measure_latencies(
    folder: Path, records: Sequence[TrialRecord], config_of: ConfigOf
) -> Iterator[tuple[int, tuple[Outcome, ...]]]:
    """Measure the models of trials, and yield each trial's number with its new outcomes.

    A model that is not there any more, or cannot be read, keeps its latency.

    Args:
        folder: of the sweep.
        records: of the trials.
        config_of: returns a trial's configuration.
    """
    whole = _load(folder / "teacher" / "model") if records else None
    for record in records:
        trial, config = folder / "trials" / f"{record.number:04}", config_of(record)
        outcomes = [
            _measured(outcome, _load(trial / outcome.model), whole, config)
            for outcome in record.outcomes
        ]
        yield record.number, tuple(outcomes)


def _load(folder: Path) -> "Conformer | None":
    """Return the model of a bundle; None if it is not there or cannot be read."""
    from core import bundle  # noqa: PLC0415  # seconds of imports, needed at the end alone

    try:
        return bundle.load(folder).model
    except (OSError, ValueError):
        return None


def _measured(
    outcome: Outcome, small: "Conformer | None", whole: "Conformer | None", config: TrialConfig
) -> Outcome:
    """Return an outcome with a new latency; `latency_idle` is false if it could not be measured."""
    from core.latency.idle import measure_idle  # noqa: PLC0415  # seconds of imports
    from core.runtime import select_device  # noqa: PLC0415  # seconds of imports

    if small is None or whole is None:
        return replace(outcome, latency_idle=False)
    seconds = config.pruning.utterance_seconds
    measure = partial(
        measure_idle,
        small,
        whole,
        utterance_seconds=seconds,
        repeats=config.evaluation.latency_repeats,
        threads=config.runtime.threads,
        device=select_device(config),
        judged=config.evaluation.decoder,
    )
    return _believable(measure).updated(outcome, utterance_seconds=seconds)


def _believable(measure: Callable[[], "IdleLatency"]) -> "IdleLatency":
    """Measure again while the machine is busy: a worker's process may not have ended yet."""
    latency = measure()
    for _ in range(RETRIES):
        latency = measure() if latency.is_busy else latency
    return latency
