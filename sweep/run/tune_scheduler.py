"""Early stopping as a Ray Tune scheduler: compares a trial's reports, and may stop it."""

from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweep.config.space import SearchSpace
from sweep.ledger.ledger import Ledger
from sweep.ledger.records import CurvePoint, TrialRecord
from sweep.search.early_stopping import Standing, Stopping

CONTROL = "dense"
"""The method of the unpruned control, which is never stopped: no trial dominates it."""


class FrontScheduler(FIFOScheduler):
    """Stops trials that are worse than the others were at equal steps, in earlier segments too.

    Args:
        stopping: the rule.
        ledger: the trials and their curves so far.
        space: makes a trial's configuration from its parameters.
    """

    def __init__(self, stopping: Stopping, ledger: Ledger, space: SearchSpace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stopping = stopping
        self._ledger = ledger
        self._space = space
        for record in ledger.records():
            for point in record.curve:
                if point.step < self._last_step(record):
                    stopping.observe(point.step, self._standing(record, point))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether the trial goes on; Tune calls this before its callbacks."""
        del tune_controller
        wer = result.get("report/wer")  # Tune flattens what it hands to schedulers
        record = self._ledger.record(trial.config["number"])
        if wer is None or result["report/step"] >= self._last_step(record):
            return TrialScheduler.CONTINUE
        point = CurvePoint(step=result["report/step"], wer=wer, gflops=result["report/gflops"])
        should_stop = self._stopping.should_stop(point.step, self._standing(record, point))
        return TrialScheduler.STOP if should_stop else TrialScheduler.CONTINUE

    def _standing(self, record: TrialRecord, point: CurvePoint) -> Standing:
        config = self._space.trial_config(record.settings)
        return Standing(
            trial=record.number,
            wer=point.wer,
            gflops=point.gflops,
            target=config.pruning.target_sparsity,
            is_safe=config.pruning.method == CONTROL,
        )

    def _last_step(self, record: TrialRecord) -> int:
        """The step of a trial's first outcome; later reports are not compared."""
        config = self._space.trial_config(record.settings)
        return config.pruning.steps + config.tuning.steps

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles its scheduler to restore it, which never happens."""
        return {}
