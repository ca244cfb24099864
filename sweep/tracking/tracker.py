"""A sweep in MLflow: one parent run, and one child run for each trial.

Only the driver writes here. Calls to MLflow wait in order until they succeed, so that an outage
only delays them; what an outage beyond the end of a segment loses is written from the ledger when
the sweep is opened again. Runs are found by tag, so that a trial always has one run.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from core.report import Report
from sweep.identity import identity
from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.pareto.compute_hours import Hours
from sweep.report.front_files import FrontFiles
from sweep.storage.archive import update_artifact_addresses
from sweep.storage.foreign_sweep import ARTIFACTS
from sweep.tracking import mlflow_client, mlflow_view
from sweep.tracking import mlflow_repair as repair
from sweep.tracking.mlflow_client import (
    FAILURES,
    Runs,
    RunState,
    is_refusal,
    open_client,
    run_state,
)
from sweep.tracking.mlflow_server import database_uri, is_server, tracking_error
from sweep.tracking.provenance import Dataset
from sweep.tracking.retry_queue import RetryQueue, TimedReport
from sweep.tracking.trial_runs import MakeArtifacts, TrialRuns, milliseconds_now

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 15.0
"""The end of a segment waits so long for an MLflow that cannot be reached."""


class Tracker:
    """A sweep's runs in MLflow. Once it is open, no method raises.

    Args:
        folder: the sweep's directory.
        name: the sweep's name, and that of its experiment in MLflow.
        uri: a tracking server or database; by default SQLite in the folder.
        artifacts: makes the texts that are stored with a finished trial, by file name.

    Raises:
        TrackingError: if MLflow cannot be reached or its experiment cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        uri: str = "",
        artifacts: MakeArtifacts | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.name = name
        self.uri = uri or database_uri(self.folder)
        self._sweep: RunState
        self._full: set[int | None] = set()
        """Trials whose reports found no room: the ledger fills their curves later."""
        self._logged: dict[str, float] = {}
        self._has_lost = False
        """Whether MLflow has lost for good what this segment had logged."""
        self._queue = RetryQueue(is_refusal)
        try:
            self._sweep_id = identity(self.folder)
            update_artifact_addresses(self.folder)
            self._view_id = f"pareto-{self._sweep_id[:12]}"
            self.client = open_client(self.uri)
            self.experiment = self._open_experiment()
            self.runs = Runs(self.client, self.experiment, self._sweep_id)
            self._trials = TrialRuns(self.runs, artifacts)
        except FAILURES as error:
            raise tracking_error(self.uri, error) from error

    @property
    def parent(self) -> str:
        """The id of the sweep's own run; empty until it is open."""
        return self._trials.parent

    def open_sweep(
        self,
        config_text: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Start the parent run, or open it again with all it has; return its id.

        Args:
            config_text: the text of the sweep's configuration.
            params: of the sweep.
            tags: of the code that runs it; every run created from now on has them, too.

        Raises:
            TrackingError: if MLflow cannot be reached.
        """
        self.runs.tags = dict(tags or {})
        self._config_text, self._params = config_text, params
        try:
            self._open_parent()
            children = self.runs.open_children(self.parent)
        except FAILURES as error:
            raise tracking_error(self.uri, error) from error
        self._trials.states = {number: run_state(child) for number, child in children.items()}
        return self.parent

    def _open_parent(self) -> None:
        run = self.runs.parent(self.name)
        self._sweep = run_state(run)
        self._trials.parent = self._sweep.run_id
        self.runs.set_running(self._sweep)
        self.runs.log_tags(self._sweep, self.runs.tags)
        self.runs.log_params(self._sweep, self._params)
        self.client.log_text(self.parent, self._config_text, "sweep.toml")
        self._logged = dict(run.data.metrics)

    def close(self, *, is_interrupted: bool = False) -> None:
        """End the parent run; if the sweep is to be resumed, it and its open trials wait instead.

        Waits a little for an MLflow that cannot be reached; `resume` sends what it misses.
        """
        self._enqueue(self._end, is_interrupted, about=None)
        if not self._queue.deliver_all(CLOSE_SECONDS):
            logger.warning(
                "MLflow has not received all updates; `conformer-sweep resume %s` sends them.",
                self.folder,
            )

    @property
    def is_unreachable(self) -> bool:
        """Whether MLflow could not be reached when last tried."""
        return self._queue.is_unreachable

    def run_id(self, trial: int) -> str | None:
        """The id of a trial's run, or None if it is not open yet."""
        state = self._trials.states.get(trial)
        return state.run_id if state else None

    def run_ids(self) -> dict[int, str]:
        """The ids of all open runs, by trial."""
        return {number: state.run_id for number, state in self._trials.states.items()}

    # ---- one trial ----

    def open_trial(self, record: TrialRecord) -> str | None:
        """Start the trial's run, or open it again; returns its id, or None during an outage."""
        self._full.discard(record.number)
        self._enqueue(self._trials.open, record, milliseconds_now(), about=record.number)
        return self.run_id(record.number)

    def log_reports(self, trial: int | None, reports: Sequence[Report]) -> None:
        """Log reports of a trial (None: the teacher) in as few requests as possible.

        Reports that a resumed trial repeats are left out, so that steps only ever rise.
        """
        now = milliseconds_now()
        timed = [TimedReport(milliseconds=now, report=report) for report in reports]
        log = partial(self._call_or_repair, partial(self._log_reports, trial), trial)
        # Once one report of a trial finds no room, none is queued before its end: a gap in the
        # middle would stay, since `fill_curve` only adds points after the last.
        if trial in self._full or not self._queue.put_reports(timed, log, about=trial):
            self._full.add(trial)
        self._queue.deliver()

    def finish_trial(self, record: TrialRecord) -> None:
        """End the trial's run in the state of its record, with its outcome.

        The first outcome of a curve gives the final metrics; all are in `outcomes.csv`.
        """
        self._full.discard(record.number)
        self._enqueue(self._trials.log_artifacts, record, milliseconds_now(), about=record.number)
        self._enqueue(self._trials.end, record, milliseconds_now(), about=record.number)

    def update_latencies(self, record: TrialRecord) -> None:
        """Log the latencies of a finished trial that were measured after its end."""
        at = milliseconds_now()
        self._enqueue(self._trials.log_latencies, record, at, about=record.number)

    def reconcile(self, records: Iterable[TrialRecord], *, is_last: bool = False) -> None:
        """Make MLflow agree with the ledger: one run a trial, in its state, and no others.

        A driver may have been killed before it could log, and a person may have deleted runs.

        Args:
            records: all trials of the sweep.
            is_last: whether this segment has already reconciled at its start: then only runs that
                were deleted since are looked for, unless there are any.
        """
        self._enqueue(self._reconcile, tuple(records), is_last)

    # ---- the sweep ----

    def log_front(
        self, files: FrontFiles, records: Iterable[TrialRecord], others: Iterable[Path] = ()
    ) -> None:
        """Store the front with the parent run: page, pictures, table, and the table as its note."""
        paths = [files.html, files.svg, files.png, files.csv, files.markdown, *others]
        records, now = list(records), milliseconds_now()
        self._enqueue(self._log_front, paths, files.markdown, records, now, topic="front")

    def log_hours(self, hours: Hours) -> None:
        """Log how long machines have worked for this sweep, and how much of that was wasted."""
        self._enqueue(self._log_hours, hours, milliseconds_now(), topic="hours")

    def log_datasets(self, datasets: Sequence[Dataset], tags: Mapping[str, str]) -> None:
        """Log the speech that the sweep and its trials use, and tags that describe it."""
        self._trials.datasets = tuple(datasets)
        self._enqueue(self._log_datasets, tags, topic="datasets")

    def log_text(self, name: str, make: Callable[[], str]) -> None:
        """Store a text with the parent run; it is made when it is sent, and left out if empty."""
        self._enqueue(self._log_text, name, make, topic=name)

    def install_view(self) -> None:
        """Save a view of the trials as points, WER against GFLOPs, in the experiment."""
        self._enqueue(self._install_view, topic="view")

    def link(self, base_url: str) -> str:
        """The address of the installed view, if MLflow's pages are at the base."""
        return mlflow_view.scatter_link(base_url, experiment=self.experiment, view_id=self._view_id)

    def front_link(self, base_url: str) -> str:
        """The address of the front's page, an artifact of the parent run."""
        if not self.parent and (run := self.runs.find_parent()):
            self._trials.parent = run.info.run_id
        return mlflow_view.front_link(base_url, experiment=self.experiment, parent=self.parent)

    # ---- calls that wait in the queue: making one twice has the same effect as once ----

    def _enqueue(
        self, call: Callable[..., object], *args: Any, about: int | None = None, topic: str = ""
    ) -> None:
        deliver = partial(self._call_or_repair, partial(call, *args), about)
        self._queue.put(deliver, about=about, topic=topic)
        self._queue.deliver()

    def _call_or_repair(self, call: Callable[..., object], about: int | None, *args: Any) -> None:
        """Make a call; if MLflow refuses it because something was deleted, restore and repeat."""
        try:
            call(*args)
        except FAILURES as error:
            if not is_refusal(error) or not self._restore_deleted(about):
                raise
            call(*args)

    def _restore_deleted(self, about: int | None = None) -> bool:
        """Restore experiment, parent and a trial's run; returns whether any was missing."""
        before = self.runs.num_restored
        experiment = mlflow_client.find_experiment(self.client, self.experiment)
        # From the outside in: a run cannot be restored in an experiment that is deleted.
        is_lost = experiment is None
        if experiment is None:
            self._open_new_experiment()
        elif mlflow_client.is_deleted(experiment):
            repair.restore_experiment(self.client, experiment)
        if self.runs.restore(self.parent) is None:
            self._open_parent()
            is_lost = True
        states = self._trials.states
        if about in states and self.runs.restore(states[about].run_id) is None:
            del states[about]  # written again from the ledger when the trial ends
            self._full.add(about)
            is_lost = True
        self._has_lost |= is_lost
        was_deleted = mlflow_client.is_deleted(experiment)
        return is_lost or self.runs.num_restored > before or was_deleted

    def _open_new_experiment(self) -> None:
        """Start again in a new experiment: one that is gone for good takes all runs with it."""
        self.experiment = self.runs.experiment = self._open_experiment()
        self._full.update(self._trials.states)
        self._trials.states.clear()
        self._open_parent()
        self._install_view()

    def _reconcile(self, records: Sequence[TrialRecord], is_last: bool) -> None:  # noqa: FBT001
        self._restore_deleted()
        num_written = 0
        if not is_last or self._has_lost or repair.has_deleted(self.runs):
            runs = repair.runs_by_trial(self.runs)
            for record in records:
                num_written += self._trials.reconcile(record, runs.get(record.number, ()))
        repair.log_repairs(self.runs, num_written)
        self._has_lost = False

    def _log_reports(self, trial: int | None, reports: Sequence[TimedReport]) -> None:
        if trial is None:
            self.runs.log_reports(self._sweep, reports)
        else:
            self._trials.log_reports(trial, reports)

    def _log_front(
        self, paths: Sequence[Path], table: Path, records: Sequence[TrialRecord], at: int
    ) -> None:
        for path in paths:
            self.client.log_artifact(self.parent, str(path), "front")
        description = mlflow_view.description(table.read_text(encoding="utf-8"))
        self.client.set_tag(self.parent, "mlflow.note.content", description)
        num_finished = sum(record.state == "finished" for record in records)
        points = front.points(records)
        values = {
            "front/hypervolume": front.hypervolume_share(points),
            "front/size": len(front.pareto_front(points)),
            "front/finished": num_finished,
        }
        # `_logged` begins with what the run already has, so a resumed sweep repeats no step of the
        # curve.
        if num_finished > self._logged.get("front/finished", -1):
            self._log_numbers(values, at, step=num_finished)

    def _log_hours(self, hours: Hours, at: int) -> None:
        values = {"hours/used": hours.used, "hours/wasted": hours.wasted}
        if hours.used > self._logged.get("hours/used", 0.0):
            self._log_numbers(values, at, step=round(hours.seconds))

    def _log_numbers(self, values: Mapping[str, float], at: int, *, step: int) -> None:
        self.runs.log_metrics(self._sweep, values, at=at, step=step)
        self._logged |= values

    def _log_datasets(self, tags: Mapping[str, str]) -> None:
        self.runs.log_datasets(self._sweep, self._trials.datasets)
        self.runs.log_tags(self._sweep, tags)

    def _log_text(self, name: str, make: Callable[[], str]) -> None:
        if text := make():
            self.client.log_text(self.parent, text, name)

    def _end(self, is_interrupted: bool) -> None:  # noqa: FBT001  # called through the queue
        if not is_interrupted:
            self.client.set_tag(self.parent, "state", "finished")
            self.runs.end(self._sweep, "FINISHED")
            return
        self._trials.set_waiting()
        if self._sweep.status == "RUNNING":
            self.runs.set_waiting(self._sweep)

    def _install_view(self) -> None:
        view = mlflow_view.pareto_view(self.parent, name=self.name)
        self.client.set_experiment_tag(self.experiment, f"{mlflow_view.TAG}{self._view_id}", view)

    def _open_experiment(self) -> str:
        folder = None if is_server(self.uri) else self.folder / ARTIFACTS
        return repair.open_experiment(
            self.client, self.name, sweep_id=self._sweep_id, artifacts=folder
        )
