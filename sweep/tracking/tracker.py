"""A sweep in MLflow: one parent run, one child run a trial.

Only the driver writes here. What MLflow must hear waits in order until it has heard it, so that an
MLflow that goes away costs nothing but delay; what even that cannot save, the ledger tells when
the sweep is opened again. Runs are found by tag: whatever happens, a trial has one run.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from core.report import Report
from sweep.identity import identity
from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.pareto.compute_hours import Hours
from sweep.report.front_files import FrontFiles, csv_text
from sweep.storage.archive import follow
from sweep.storage.foreign_sweep import ARTIFACTS
from sweep.tracking import mlflow_client, mlflow_view
from sweep.tracking import mlflow_repair as repair
from sweep.tracking.metrics import outcome_metrics
from sweep.tracking.mlflow_client import (
    FAILURES,
    KnownRun,
    Runs,
    is_refusal,
    known_run,
    open_client,
)
from sweep.tracking.mlflow_server import cannot_open, database_uri, is_server
from sweep.tracking.provenance import Dataset
from sweep.tracking.retry_queue import RetryQueue, TimedReport

logger = logging.getLogger(__name__)

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""What MLflow calls a trial that is over."""
CLOSE_SECONDS = 15.0
"""How long the end of a segment waits for an MLflow that is away."""


class Tracker:
    """A sweep's runs in MLflow. Once it is open, nothing here raises.

    Args:
        folder: the sweep's directory.
        name: the sweep's name; MLflow's experiment is called so.
        uri: a tracking server or database; by default SQLite in the folder.
        artifacts: what of a finished trial is worth keeping, as texts by file name.

    Raises:
        TrackingError: if MLflow cannot be reached or its experiment not be used.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        uri: str = "",
        artifacts: Callable[[TrialRecord], Mapping[str, str]] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.name = name
        self.uri = uri or database_uri(self.folder)
        self.parent = ""
        self._artifacts = artifacts
        self._sweep: KnownRun
        self._trials: dict[int, KnownRun] = {}
        self._datasets: Sequence[Dataset] = ()
        self._full: set[int | None] = set()
        """Trials whose reports found no room: the ledger tells them, with what comes next."""
        self._logged: dict[str, float] = {}
        self._has_lost = False
        """Whether MLflow has lost for good what this segment had told it."""
        self._outbox = RetryQueue(is_refusal)
        try:
            self._sweep_id = identity(self.folder)
            follow(self.folder)
            self._view_id = f"pareto-{self._sweep_id[:12]}"
            self.client = open_client(self.uri)
            self.experiment = self._open_experiment()
            self.runs = Runs(self.client, self.experiment, self._sweep_id)
        except FAILURES as error:
            raise cannot_open(self.uri, error) from error

    def open_sweep(
        self,
        config_text: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Start the parent run, or open it again with all it has; return its id.

        Args:
            config_text: the sweep's own file, whole.
            params: of the sweep.
            tags: of the code that runs it; every run made from now on carries them, too.

        Raises:
            TrackingError: if MLflow cannot be reached.
        """
        self.runs.tags = dict(tags or {})
        self._config_text, self._params = config_text, params
        try:
            self._open_parent()
            children = self.runs.open_children(self.parent)
        except FAILURES as error:
            raise cannot_open(self.uri, error) from error
        self._trials = {number: known_run(child) for number, child in children.items()}
        return self.parent

    def _open_parent(self) -> None:
        run = self.runs.parent(self.name)
        self._sweep = known_run(run)
        self.parent = self._sweep.run_id
        self.runs.set_running(self._sweep)
        self.runs.log_tags(self._sweep, self.runs.tags)
        self.runs.log_params(self._sweep, self._params)
        self.client.log_text(self.parent, self._config_text, "sweep.toml")
        self._logged = dict(run.data.metrics)

    def close(self, *, is_interrupted: bool = False) -> None:
        """End the parent run; if the sweep is to be resumed, it and its open trials wait instead.

        An MLflow that is away is waited for a little; what it misses, the ledger tells it later.
        """
        self._tell(self._end, is_interrupted, about=None)
        if not self._outbox.deliver_all(CLOSE_SECONDS):
            logger.warning(
                "MLflow has not heard all; `conformer-sweep resume %s` tells it.", self.folder
            )

    @property
    def is_away(self) -> bool:
        """Whether MLflow could not be reached when last tried."""
        return self._outbox.is_away

    def run_id(self, trial: int) -> str | None:
        """Of a trial's run, as far as it is known by now."""
        known = self._trials.get(trial)
        return known.run_id if known else None

    def run_ids(self) -> dict[int, str]:
        """Of all trials' runs."""
        return {number: known.run_id for number, known in self._trials.items()}

    # ---- one trial ----

    def open_trial(self, record: TrialRecord) -> str | None:
        """Start the trial's run, or open it again; return its id, or None while MLflow is away."""
        self._full.discard(record.number)
        self._tell(self._open, record, _now(), about=record.number)
        return self.run_id(record.number)

    def log_reports(self, trial: int | None, reports: Sequence[Report]) -> None:
        """Log what a trial (None: the teacher) reported, in as few requests as can be.

        What a resumed trial repeats is left out, so that steps only ever rise.
        """
        now = _now()
        told = [TimedReport(milliseconds=now, report=report) for report in reports]
        log = partial(self._insist, partial(self._log_reports, trial), trial)
        if trial in self._full or not self._outbox.put_reports(told, log, about=trial):
            self._full.add(trial)
        self._outbox.deliver()

    def finish_trial(self, record: TrialRecord) -> None:
        """End the trial's run in the state of its record, with the outcome it is judged by.

        Of a curve's outcomes the first gives the final metrics; all are in `outcomes.csv`.
        """
        self._full.discard(record.number)
        self._tell(self._attach, record, _now(), about=record.number)
        self._tell(self._finish, record, _now(), about=record.number)

    def reconcile(self, records: Iterable[TrialRecord], *, is_last: bool = False) -> None:
        """Let MLflow hold what the ledger says: a run a trial, in its state, and none beside.

        A driver may have died before it could tell, and anybody may have deleted runs.

        Args:
            records: all of the sweep's.
            is_last: whether this segment has begun with it: then only what was deleted since is
                looked for, unless there is any.
        """
        self._tell(self._reconcile, tuple(records), is_last)

    # ---- the sweep ----

    def log_front(
        self, files: FrontFiles, records: Iterable[TrialRecord], others: Iterable[Path] = ()
    ) -> None:
        """Put the front on the parent run: page, pictures, table, and a note with the table."""
        paths = [files.html, files.svg, files.png, files.csv, files.markdown, *others]
        records = list(records)
        self._tell(self._log_front, paths, files.markdown, records, _now(), topic="front")

    def log_hours(self, hours: Hours) -> None:
        """How long machines have worked for this sweep, and how much of that was for nothing."""
        self._tell(self._log_hours, hours, _now(), topic="hours")

    def log_datasets(self, datasets: Sequence[Dataset], tags: Mapping[str, str]) -> None:
        """What the sweep and its trials are trained and judged on; the tags say more of it."""
        self._datasets = tuple(datasets)
        self._tell(self._log_datasets, tags, topic="datasets")

    def log_text(self, name: str, make: Callable[[], str]) -> None:
        """An artifact of the sweep's run, made when it is told; an empty one is none."""
        self._tell(self._log_text, name, make, topic=name)

    def install_view(self) -> None:
        """Save a view of the trials as points, WER against GFLOPs, in the experiment."""
        self._tell(self._install_view, topic="view")

    def link(self, base_url: str) -> str:
        """Where a browser finds the installed view, if MLflow's pages are at the base."""
        return mlflow_view.scatter_link(base_url, experiment=self.experiment, view_id=self._view_id)

    def front_link(self, base_url: str) -> str:
        """Where a browser finds the front's page, among the artifacts of the parent run."""
        if not self.parent and (run := self.runs.find_parent()):
            self.parent = run.info.run_id
        return mlflow_view.front_link(base_url, experiment=self.experiment, parent=self.parent)

    # ---- deliveries: each may be done twice ----

    def _tell(
        self, call: Callable[..., object], *args: Any, about: int | None = None, topic: str = ""
    ) -> None:
        letter = partial(self._insist, partial(call, *args), about)
        self._outbox.put(letter, about=about, topic=topic)
        self._outbox.deliver()

    def _insist(self, call: Callable[..., object], about: int | None, *args: Any) -> None:
        """Tell it; if MLflow refuses because what it is about was deleted, mend that and repeat."""
        try:
            call(*args)
        except FAILURES as error:
            if not is_refusal(error) or not self._mend(about):
                raise
            call(*args)

    def _mend(self, about: int | None = None) -> bool:
        """See that experiment, parent and a trial's run are there; gives whether any was not."""
        before = self.runs.num_restored
        found = mlflow_client.find_experiment(self.client, self.experiment)
        is_lost = found is None
        if found is None:
            self._open_anew()
        elif mlflow_client.is_deleted(found):
            repair.restore_experiment(self.client, found)
        if self.runs.restore(self.parent) is None:
            self._open_parent()
            is_lost = True
        if about in self._trials and self.runs.restore(self._trials[about].run_id) is None:
            del self._trials[about]  # the ledger tells all of it when it ends
            self._full.add(about)
            is_lost = True
        self._has_lost |= is_lost
        return is_lost or self.runs.num_restored > before or mlflow_client.is_deleted(found)

    def _open_anew(self) -> None:
        """An experiment that is gone for good takes all runs with it."""
        self.experiment = self.runs.experiment = self._open_experiment()
        self._full.update(self._trials)
        self._trials.clear()
        self._open_parent()
        self._install_view()

    def _reconcile(self, records: Sequence[TrialRecord], is_last: bool) -> None:  # noqa: FBT001
        self._mend()
        num_written = 0
        if not is_last or self._has_lost or repair.has_deleted(self.runs):
            found = repair.runs_by_trial(self.runs)
            for record in records:
                num_written += self._reconcile_trial(record, found.get(record.number, ()))
        repair.say_repairs(self.runs, num_written)
        self._has_lost = False

    def _reconcile_trial(self, record: TrialRecord, found: Sequence[Any]) -> bool:
        """Let one run of the trial stand, in its state; gives whether a lost one was written."""
        known = self._trials.get(record.number)
        preferred = (known.run_id if known else None, record.mlflow_run_id)
        run = repair.choose_run(self.runs, found, preferred, parent=self.parent)
        if run is None:
            self._trials.pop(record.number, None)
        elif known is None or known.run_id != run.info.run_id:
            self._trials[record.number] = known_run(run)
        else:
            known.status = run.info.status
        status = run.info.status if run else ""
        if record.state in STATUS and status != STATUS[record.state]:
            self._attach(record, _now())
            self._finish(record, _now())
        elif record.state == "waiting" and status == "RUNNING":
            self.runs.set_waiting(self._trials[record.number])
        return run is None and record.is_over and record.mlflow_run_id is not None

    def _trial(self, record: TrialRecord, at: int) -> KnownRun:
        """The trial's run, at hand or made, with all the ledger knows of it up to here."""
        if record.number not in self._trials:
            self._trials[record.number] = known_run(self.runs.trial(record, self.parent))
        known = self._trials[record.number]
        self.runs.log_params(known, record.params)
        self.runs.log_datasets(known, self._datasets)
        self.runs.fill_up(known, record, at=at)
        return known

    def _open(self, record: TrialRecord, at: int) -> None:
        known = self._trial(record, at)
        if known.status != "RUNNING":
            self.runs.set_running(known)

    def _log_reports(self, trial: int | None, reports: Sequence[TimedReport]) -> None:
        known = self._sweep if trial is None else self._trials.get(trial)
        if known is not None:
            self.runs.log_reports(known, reports)

    def _attach(self, record: TrialRecord, at: int) -> None:
        """Before the run is ended: whoever finds it finished finds all of it."""
        if record.state != "finished":
            return
        known = self._trial(record, at)
        texts = dict(self._artifacts(record)) if self._artifacts else {}
        if len(record.outcomes) > 1:
            params = {record.number: record.params}
            texts["outcomes.csv"] = csv_text(front.points([record]), params)
            for number, outcome in enumerate(record.outcomes):
                values = {f"outcome/{n}": v for n, v in outcome_metrics(outcome).items()}
                self.runs.log_metrics(known, values, at=at, step=number)
        for name, text in texts.items():
            self.client.log_text(known.run_id, text, name)

    def _finish(self, record: TrialRecord, at: int) -> None:
        known = self._trial(record, at)
        if known.status == STATUS[record.state]:
            return
        values = {"seconds": record.seconds, "seconds_wasted": record.wasted_seconds}
        for outcome in record.outcomes[:1]:
            values |= outcome_metrics(outcome)
        tags = {"state": record.state, "reason": record.error or "", "attempts": record.attempts}
        self.runs.log_metrics(known, values, at=at, tags=tags)
        self.runs.end(known, STATUS[record.state])

    def _log_front(
        self, paths: Sequence[Path], table: Path, records: Sequence[TrialRecord], at: int
    ) -> None:
        for path in paths:
            self.client.log_artifact(self.parent, str(path), "front")
        note = mlflow_view.note(table.read_text(encoding="utf-8"))
        self.client.set_tag(self.parent, "mlflow.note.content", note)
        num_finished = sum(record.state == "finished" for record in records)
        points = front.points(records)
        values = {
            "front/hypervolume": front.hypervolume_share(points),
            "front/size": len(front.pareto_front(points)),
            "front/finished": num_finished,
        }
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
        self.runs.log_datasets(self._sweep, self._datasets)
        self.runs.log_tags(self._sweep, tags)

    def _log_text(self, name: str, make: Callable[[], str]) -> None:
        if text := make():
            self.client.log_text(self.parent, text, name)

    def _end(self, is_interrupted: bool) -> None:  # noqa: FBT001  # a letter's content
        if not is_interrupted:
            self.client.set_tag(self.parent, "state", "finished")
            self.runs.end(self._sweep, "FINISHED")
            return
        for known in (*self._trials.values(), self._sweep):
            if known.status == "RUNNING":
                self.runs.set_waiting(known)

    def _install_view(self) -> None:
        view = mlflow_view.pareto_view(self.parent, name=self.name)
        self.client.set_experiment_tag(self.experiment, f"{mlflow_view.TAG}{self._view_id}", view)

    def _open_experiment(self) -> str:
        place, own = None if is_server(self.uri) else self.folder / ARTIFACTS, self._sweep_id
        return repair.open_experiment(self.client, self.name, sweep_id=own, artifacts=place)


def _now() -> int:
    """In milliseconds, as MLflow counts."""
    return int(time.time() * 1000)
