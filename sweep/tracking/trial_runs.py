"""The child runs of a sweep in MLflow, one for each trial.

Every method can be called twice with the same effect, because a call whose answer was lost is
repeated. What is logged comes from the trial's record, so that a lost run can be written again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.report import LATENCY_FIELDS
from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.report.front_files import csv_text
from sweep.tracking import mlflow_repair as repair
from sweep.tracking.metrics import outcome_metrics
from sweep.tracking.mlflow_client import Runs, RunState, run_state
from sweep.tracking.provenance import Dataset
from sweep.tracking.retry_queue import TimedReport

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""MLflow's status of a trial that is over, by its state in the ledger."""

MakeArtifacts = Callable[[TrialRecord], Mapping[str, str]]
"""Texts that are stored with a finished trial, by file name."""


class TrialRuns:
    """The runs of a sweep's trials.

    Args:
        runs: the sweep's runs in its experiment.
        artifacts: makes the texts that are stored with a finished trial.
    """

    def __init__(self, runs: Runs, artifacts: MakeArtifacts | None = None) -> None:
        self.parent = ""
        """The id of the sweep's own run."""
        self.datasets: Sequence[Dataset] = ()
        """Logged to every trial's run."""
        self.states: dict[int, RunState] = {}
        """The runs that were opened, by trial."""
        self._runs = runs
        self._artifacts = artifacts

    def open(self, record: TrialRecord, at: int) -> None:
        """Set the trial's run to running; it is created if there is none."""
        state = self._state(record, at)
        if state.status != "RUNNING":
            self._runs.set_running(state)

    def log_reports(self, trial: int, reports: Sequence[TimedReport]) -> None:
        """Log reports of a trial whose run is open; others are logged from the ledger later."""
        state = self.states.get(trial)
        if state is not None:
            self._runs.log_reports(state, reports)

    def log_artifacts(self, record: TrialRecord, at: int) -> None:
        """Store the files of a finished trial.

        Called before the run ends: a run that is over in MLflow is complete.
        """
        if record.state != "finished":
            return
        state = self._state(record, at)
        texts = dict(self._artifacts(record)) if self._artifacts else {}
        if len(record.outcomes) > 1:
            params = {record.number: record.params}
            texts["outcomes.csv"] = csv_text(front.points([record]), params)
            for index, outcome in enumerate(record.outcomes):
                values = {f"outcome/{name}": v for name, v in outcome_metrics(outcome).items()}
                # A family of three sizes: `outcome/wer` at steps 0, 1 and 2, as a curve over its
                # outcomes.
                self._runs.log_metrics(state, values, at=at, step=index)
        for name, text in texts.items():
            self._runs.client.log_text(state.run_id, text, name)

    def end(self, record: TrialRecord, at: int) -> None:
        """Log the final metrics of a trial that is over, and end its run."""
        state = self._state(record, at)
        # A call whose answer was lost is made again, and has then nothing to do.
        if state.status == STATUS[record.state]:
            return
        values = {"seconds": record.seconds, "seconds_wasted": record.wasted_seconds}
        for outcome in record.outcomes[:1]:
            values |= outcome_metrics(outcome)
        tags = {"state": record.state, "reason": record.error or "", "attempts": record.attempts}
        self._runs.log_metrics(state, values, at=at, tags=tags)
        self._runs.end(state, STATUS[record.state])

    def log_latencies(self, record: TrialRecord, at: int) -> None:
        """Log the latency of a finished trial's first outcome, as it was measured after its end."""
        values = outcome_metrics(record.outcomes[0])
        latencies = {name: values[name] for name in LATENCY_FIELDS if name in values}
        self._runs.log_metrics(self._state(record, at), latencies, at=at, step=1)

    def reconcile(self, record: TrialRecord, candidates: Sequence[Any]) -> bool:
        """Make MLflow agree with a trial's record.

        Args:
            record: of the trial.
            candidates: all runs of the trial that MLflow has, deleted ones too.

        Returns:
            Whether a run that was lost has been written again.
        """
        state = self.states.get(record.number)
        # The run that this segment writes to, then the one that the ledger names; others are
        # duplicates.
        preferred = (state.run_id if state else None, record.mlflow_run_id)
        run = repair.choose_run(self._runs, candidates, preferred, parent=self.parent)
        if run is None:
            self.states.pop(record.number, None)
        elif state is None or state.run_id != run.info.run_id:
            self.states[record.number] = run_state(run)
        else:
            state.status = run.info.status
        status = run.info.status if run else ""
        if record.state in STATUS and status != STATUS[record.state]:
            self.log_artifacts(record, milliseconds_now())
            self.end(record, milliseconds_now())
        elif record.state == "waiting" and status == "RUNNING":
            self._runs.set_waiting(self.states[record.number])
        # A trial without an id never had a run, so that writing it repairs nothing.
        return run is None and record.is_over and record.mlflow_run_id is not None

    def set_waiting(self) -> None:
        """Set every run that is running to waiting: its trial will be continued."""
        for state in self.states.values():
            if state.status == "RUNNING":
                self._runs.set_waiting(state)

    def _state(self, record: TrialRecord, at: int) -> RunState:
        """The trial's run with everything that the ledger knows so far; created if missing."""
        if record.number not in self.states:
            self.states[record.number] = run_state(self._runs.trial(record, self.parent))
        state = self.states[record.number]
        self._runs.log_params(state, record.params)
        self._runs.log_datasets(state, self.datasets)
        self._runs.fill_curve(state, record, at=at)
        return state


def milliseconds_now() -> int:
    """The time in milliseconds, as MLflow counts it."""
    return int(time.time() * 1000)
