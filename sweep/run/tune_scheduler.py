"""Early stopping as a Ray Tune scheduler: a trial's reports are compared, and it may end there."""

from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweep.config.space import SearchSpace
from sweep.ledger.ledger import Ledger
from sweep.ledger.records import CurvePoint, TrialRecord
from sweep.search.early_stopping import Standing, Stopping

CONTROL = "dense"
"""The method of the control, which no trial can be better than at its FLOPs: never stopped."""


class FrontScheduler(FIFOScheduler):
    """Stops trials by how all others stood at equal steps, those of earlier segments too.

    Args:
        stopping: the rule.
        ledger: the trials and their curves so far.
        space: how a trial's parameters become its config.
    """

    def __init__(self, stopping: Stopping, ledger: Ledger, space: SearchSpace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stopping = stopping
        self._ledger = ledger
        self._space = space
        for record in ledger.records():
            for heard in record.curve:
                if heard.step < self._last_step(record):
                    stopping.observe(heard.step, self._standing(record, heard))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Say whether the trial goes on; Tune asks before anyone else hears of the result."""
        del tune_controller
        wer = result.get("report/wer")  # Tune flattens what it hands to schedulers
        record = self._ledger.record(trial.config["number"])
        if wer is None or result["report/step"] >= self._last_step(record):
            return TrialScheduler.CONTINUE
        heard = CurvePoint(step=result["report/step"], wer=wer, gflops=result["report/gflops"])
        should_stop = self._stopping.should_stop(heard.step, self._standing(record, heard))
        return TrialScheduler.STOP if should_stop else TrialScheduler.CONTINUE

    def _standing(self, record: TrialRecord, heard: CurvePoint) -> Standing:
        config = self._space.trial_config(record.settings)
        return Standing(
            trial=record.number,
            wer=heard.wer,
            gflops=heard.gflops,
            target=config.pruning.target_sparsity,
            is_safe=config.pruning.method == CONTROL,
        )

    def _last_step(self, record: TrialRecord) -> int:
        """Where a trial's first outcome is there: what it does beyond is not compared."""
        config = self._space.trial_config(record.settings)
        return config.pruning.steps + config.tuning.steps

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its scheduler, for a restore that is never asked for."""
        return {}
