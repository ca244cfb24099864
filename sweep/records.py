"""What the ledger knows of a trial, as plain data that every view shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.report import Outcome

State = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """A point of a trial's curve: what it reported on its way."""

    step: int
    wer: float
    gflops: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One row of the ledger."""

    number: int
    state: State
    params: Mapping[str, Any] = field(default_factory=dict)
    """The sampled leaves, by dotted name under `[trial]`: `pruning.target_sparsity` and so on."""
    adjustments: Mapping[str, Any] = field(default_factory=dict)
    """Leaves that a retry had to change, by the same names: less memory, lower rates."""
    outcomes: tuple[Outcome, ...] = ()
    """None until the trial is finished; one for a point method, one a budget for a curve."""
    attempts: int = 0
    """How often it was started."""
    steps: int = 0
    """Optimizer steps last heard of."""
    total_steps: int = 0
    curve: tuple[Heard, ...] = ()
    """Evaluations on the way, by step; early stopping compares them."""
    seconds: float = 0.0
    """Wall time spent, over all attempts."""
    wasted_seconds: float = 0.0
    """Of these, what lost attempts did after their last report, and what was done again."""
    mlflow_run_id: str | None = None
    error: str | None = None
    """Why it failed or was stopped, in one line."""

    @property
    def is_over(self) -> bool:
        return self.state in ("finished", "stopped", "failed")

    @property
    def settings(self) -> dict[str, Any]:
        """What the trial is run with."""
        return {**self.params, **self.adjustments}
