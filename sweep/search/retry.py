"""What becomes of a trial that failed: it is tried again with what may help, or it is over. Pure.

A worker that was lost or preempted is nobody's fault and costs no try. Of faults, too little memory
and divergence have a remedy; all else would fail again.
"""

from collections.abc import Sequence
from typing import Any, Literal

from core.config.methods import methods_with_setting
from core.config.settings import SearchSettings
from core.config.trial import TrialConfig
from sweep.ledger.records import TrialRecord

Kind = Literal["memory", "divergence", "data", "cluster", "program", "disk", "other"]

MOST_MICRO_BATCHES = 16
CALMER = 0.3
"""By so much are the rates of a trial lowered that diverged, once."""
HOPELESS_TRIALS = 3
"""If the first so many end with one and the same line, all will."""

MICRO_BATCHES = "training.micro_batches"
TUNING_RATE = "tuning.learning_rate"


def adjust_config(kind: Kind, config: TrialConfig, record: TrialRecord) -> dict[str, Any] | None:
    """The leaves to change before another try; None if no other try would help.

    Out of memory: half the speech at a time and twice as many times, for the same step.
    Divergence: lower rates of the weights, once.
    """
    if kind == "memory":
        # 1, 2, 4, 8, 16 micro-batches: the optimizer's step stays that of the whole batch.
        # If `auto` was counted too low, the most is tried at once.
        before = config.training.micro_batches
        parts = MOST_MICRO_BATCHES if before == "auto" else 2 * before
        return {MICRO_BATCHES: parts} if parts <= MOST_MICRO_BATCHES else None
    if kind == "divergence" and TUNING_RATE not in record.adjustments:
        return {name: CALMER * rate for name, rate in _rates(config).items()}
    return None


def _rates(config: TrialConfig) -> dict[str, float]:
    """Returns the learning rates of the weights, by name: the search's if the method has one."""
    rates = {TUNING_RATE: config.tuning.learning_rate}
    method = config.pruning.method
    if method in methods_with_setting("learning_rate"):
        rate = config.pruning.settings(SearchSettings).learning_rate
        rates = {f"pruning.{method}.learning_rate": rate, **rates}
    return rates


def is_hopeless(records: Sequence[TrialRecord]) -> bool:
    """Whether the first trials that ended all failed by the same words."""
    over = [r for r in records if r.is_over]
    lines = {r.error for r in over}
    # One that finished shows that the corpus can be read, so the fault lies in the others.
    has_only_failed = all(r.state == "failed" for r in over)
    return len(over) >= HOPELESS_TRIALS and has_only_failed and len(lines) == 1
