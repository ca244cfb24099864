"""The only file that imports MLflow: one parent run a sweep, one child run a trial.

Only the driver writes here, in batches. Runs are found again by tag, so that whatever happens in
between, a trial has one run. Once open, an MLflow that goes away costs records, never the sweep.
"""

import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from core.report import Report
from sweep import front, mlflow_view
from sweep.figures import FrontFiles, csv_text
from sweep.metrics import heard, key, order, outcome_metrics, report_metrics
from sweep.moving import ARTIFACTS, follow
from sweep.provenance import identity
from sweep.records import TrialRecord

# MLflow reads the first when it is imported, the others at each call; a user may overrule them.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""What MLflow calls a trial that is over."""
RETRY_SECONDS = 30.0
"""How long MLflow is left alone after it failed: each attempt may block the driver for seconds."""

# MLflow's own limits, as its server validates them.
METRICS_A_BATCH = 1000
PARAM_LENGTH = 6000


class TrackingError(RuntimeError):
    """MLflow cannot be opened for this sweep."""


@dataclass(kw_only=True, slots=True)
class _Known:
    """What is known of a run without asking MLflow again."""

    run_id: str
    status: str
    heard: tuple[int, int]
    """Order of the last report logged; a resumed trial repeats some."""
    params: frozenset[str]
    """Logged already: MLflow's params never change."""


def _survives(
    method: Callable[Concatenate["Tracker", P], R],
) -> Callable[Concatenate["Tracker", P], R | None]:
    """Go on without MLflow when it fails: say so once, then leave it alone for a while."""

    @functools.wraps(method)
    def wrapped(self: "Tracker", /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        if time.monotonic() < self._retry_at:
            return None
        try:
            result = method(self, *args, **kwargs)
        except (MlflowException, OSError) as error:
            self._lost(error)
            return None
        self._found()
        return result

    return wrapped


class Tracker:
    """A sweep's runs in MLflow.

    Args:
        folder: the sweep's directory.
        name: the sweep's name; MLflow's experiment is called so.
        uri: a tracking server or database; by default SQLite in the folder.

    Raises:
        TrackingError: if MLflow cannot be reached or its experiment not be used.
    """

    def __init__(self, folder: Path, name: str, uri: str = "") -> None:
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.folder = folder.absolute()
        self.name = name
        self.uri = uri or database_uri(self.folder)
        self.parent = ""
        self._runs: dict[str, _Known] = {}
        self._trials: dict[int, _Known] = {}
        self._finished_at_front = -1
        self._retry_at = 0.0
        self._is_away = False
        try:
            self.sweep_id = identity(self.folder)
            follow(self.folder)
            self._view_id = f"pareto-{self.sweep_id[:12]}"
            self.client = MlflowClient(tracking_uri=self.uri)
            self.experiment = self._open_experiment()
        except (MlflowException, OSError) as error:
            raise self._cannot_open(error) from error

    def open_sweep(self, config_text: str, params: Mapping[str, Any]) -> str:
        """Start the parent run, or open it again with all it has; return its id.

        Raises:
            TrackingError: if MLflow cannot be reached.
        """
        try:
            run = self._find() or self._create("sweep", self.name)
            known = self._know(run)
            self.parent = known.run_id
            self._set_running(known)
            self._log_params(known, params)
            self.client.log_text(self.parent, config_text, "sweep.toml")
            self._finished_at_front = int(run.data.metrics.get("front/finished", -1))
            for status in ("RUNNING", "SCHEDULED"):  # of the others the ledger knows enough
                for child in self._children(f"attributes.status = '{status}'"):
                    self._trials[int(child.data.tags["sweep.trial"])] = self._know(child)
        except (MlflowException, OSError) as error:
            raise self._cannot_open(error) from error
        return self.parent

    def close(self, *, is_interrupted: bool = False) -> None:
        """End the parent run; if the sweep is to be resumed, it and its open trials wait instead.

        A waiting run is SCHEDULED in MLflow's words, so that RUNNING is only what runs.
        """
        self._retry_at = 0.0  # the last chance
        if is_interrupted:
            for known in self._trials.values():
                if known.status == "RUNNING":
                    self._set_waiting(known)
        self._end_parent(is_interrupted=is_interrupted)

    @_survives
    def open_trial(self, record: TrialRecord) -> str:
        """Start the trial's run, or open it again; return its id, or None while MLflow is away."""
        known = self._trial(record)
        self._log_params(known, record.params)
        if known.status != "RUNNING":
            self._set_running(known)
        return known.run_id

    @_survives
    def log_reports(self, run_id: str | None, reports: Sequence[Report]) -> None:
        """Log what a trial (or, to the parent's id, the teacher) reported, in one request.

        What a resumed trial repeats is left out, so that steps only ever rise.
        """
        known = self._runs.get(run_id or "")
        fresh = [report for report in reports if known and order(report) > known.heard]
        if not known or not fresh:
            return
        now = _now()
        metrics = [
            Metric(name, value, now, report.step)
            for report in fresh
            for name, value in report_metrics(report).items()
        ]
        self._log_metrics(known.run_id, metrics, [RunTag("stage", fresh[-1].stage)])
        known.heard = max(map(order, fresh))

    @_survives
    def finish_trial(self, record: TrialRecord) -> None:
        """End the trial's run in the state of its record, with the outcome it is judged by.

        Of a curve's outcomes the first gives the final metrics; all are in `outcomes.csv`.
        """
        known = self._trial(record)
        if known.status == STATUS[record.state]:
            return
        now = _now()
        metrics = [Metric("seconds", record.seconds, now, 0)]
        for outcome in record.outcomes[:1]:
            metrics += [Metric(k, v, now, 0) for k, v in outcome_metrics(outcome).items()]
        tags = {"state": record.state, "reason": record.error or "", "attempts": record.attempts}
        self._log_metrics(known.run_id, metrics, [RunTag(k, str(v)) for k, v in tags.items()])
        if len(record.outcomes) > 1:
            table = csv_text(front.points([record]), {record.number: record.params})
            self.client.log_text(known.run_id, table, "outcomes.csv")
        self.client.set_terminated(known.run_id, status=STATUS[record.state])
        known.status = STATUS[record.state]

    def reconcile(self, records: Iterable[TrialRecord]) -> None:
        """Let the runs know how their trials stand, where a driver died before it could tell."""
        for record in records:
            known = self._trials.get(record.number)
            if known is None and record.is_over and record.mlflow_run_id:
                continue  # its run was not among the open ones: it is over, too
            status = known.status if known else ""
            if record.state in STATUS and status != STATUS[record.state]:
                self.finish_trial(record)
            elif record.state == "waiting" and known and status == "RUNNING":
                self._set_waiting(known)

    @_survives
    def log_front(self, files: FrontFiles, records: Iterable[TrialRecord]) -> None:
        """Put the front on the parent run: page, pictures, table, and a note with the table."""
        for path in (files.html, files.svg, files.png, files.csv, files.markdown):
            self.client.log_artifact(self.parent, str(path), "front")
        note = files.markdown.read_text(encoding="utf-8")
        self.client.set_tag(self.parent, "mlflow.note.content", mlflow_view.note(note))
        records = list(records)
        num_finished = sum(record.state == "finished" for record in records)
        if num_finished <= self._finished_at_front:
            return
        points = front.points(records)
        values = {
            "front/hypervolume": front.hypervolume_share(points),
            "front/size": len(front.pareto_front(points)),
            "front/finished": num_finished,
        }
        now = _now()
        metrics = [Metric(name, float(value), now, num_finished) for name, value in values.items()]
        self._log_metrics(self.parent, metrics)
        self._finished_at_front = num_finished

    @_survives
    def install_view(self) -> None:
        """Save a view of the trials as points, WER against GFLOPs, in the experiment."""
        value = mlflow_view.pareto_view(self.parent, name=self.name)
        self.client.set_experiment_tag(self.experiment, f"{mlflow_view.TAG}{self._view_id}", value)

    def link(self, base_url: str) -> str:
        """Where a browser finds the installed view, if MLflow's pages are at the base."""
        return mlflow_view.scatter_link(base_url, experiment=self.experiment, view_id=self._view_id)

    def front_link(self, base_url: str) -> str:
        """Where a browser finds the front's page, among the artifacts of the parent run."""
        if not self.parent and (run := self._find()):
            self.parent = run.info.run_id
        return mlflow_view.front_link(base_url, experiment=self.experiment, parent=self.parent)

    def _open_experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.name)
        if found is None:
            # A server keeps artifacts where it likes; beside a mere database they would go astray.
            is_server = self.uri.startswith(("http:", "https:", "databricks"))
            location = None if is_server else (self.folder / ARTIFACTS).as_uri()
            return str(self.client.create_experiment(self.name, artifact_location=location))
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"MLflow's experiment `{self.name}` must be active, but is deleted instead;"
                " restore it there or give the sweep another name."
            )
        return str(found.experiment_id)

    def _find(self) -> Run | None:
        """The parent run, from an earlier day."""
        query = f"tags.`sweep.id` = '{self.sweep_id}' AND tags.`sweep.role` = 'sweep'"
        return next(self._search(query), None)

    def _children(self, which: str) -> Iterator[Run]:
        """Some of the trials' runs: MLflow takes milliseconds for each that it tells."""
        return self._search(f"tags.`mlflow.parentRunId` = '{self.parent}' AND {which}")

    def _trial(self, record: TrialRecord) -> _Known:
        """The trial's run: the one at hand, the one that the ledger remembers, or a new one."""
        if record.number not in self._trials:
            # One that was over may have ended before the ledger heard which run is its.
            lost = self._children(f"tags.`sweep.trial` = '{record.number}'")
            run = self._remembered(record.mlflow_run_id) or (record.is_over and next(lost, None))
            run = run or self._create(
                "trial",
                f"trial {record.number}",
                {"mlflow.parentRunId": self.parent, "sweep.trial": str(record.number)},
            )
            self._trials[record.number] = self._know(run)
        return self._trials[record.number]

    def _create(self, role: str, name: str, tags: Mapping[str, str] | None = None) -> Run:
        own = {"sweep.id": self.sweep_id, "sweep.role": role, "state": "running"}
        own |= {"mlflow.source.name": "conformer-sweep", "mlflow.source.type": "LOCAL"}
        return self.client.create_run(self.experiment, run_name=name, tags={**own, **(tags or {})})

    def _remembered(self, run_id: str | None) -> Run | None:
        """The run, if MLflow has it still."""
        if run_id is None:
            return None
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _know(self, run: Run) -> _Known:
        known = _Known(
            run_id=run.info.run_id,
            status=run.info.status,
            heard=heard(run.data.metrics),
            params=frozenset(run.data.params),
        )
        self._runs[known.run_id] = known
        return known

    def _search(self, query: str) -> Iterator[Run]:
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                query,
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _set_running(self, known: _Known) -> None:
        tags = [RunTag("state", "running"), RunTag("reason", "")]
        self.client.log_batch(known.run_id, tags=tags)
        self.client.update_run(known.run_id, status="RUNNING")
        known.status = "RUNNING"

    @_survives
    def _set_waiting(self, known: _Known) -> None:
        self.client.set_tag(known.run_id, "state", "waiting")
        self.client.update_run(known.run_id, status="SCHEDULED")
        known.status = "SCHEDULED"

    @_survives
    def _end_parent(self, *, is_interrupted: bool) -> None:
        if is_interrupted:
            self._set_waiting(self._runs[self.parent])
        else:
            self.client.set_tag(self.parent, "state", "finished")
            self.client.set_terminated(self.parent, status="FINISHED")

    def _log_params(self, known: _Known, params: Mapping[str, Any]) -> None:
        fresh = [
            Param(key(name), str(value)[:PARAM_LENGTH])
            for name, value in params.items()
            if key(name) not in known.params
        ]
        if fresh:  # fewer than the hundred that fit a request: a config has no more leaves
            self.client.log_batch(known.run_id, params=fresh)
        known.params |= {param.key for param in fresh}

    def _log_metrics(self, run_id: str, metrics: list[Metric], tags: Sequence[RunTag] = ()) -> None:
        for start in range(0, max(len(metrics), 1), METRICS_A_BATCH):
            part = metrics[start : start + METRICS_A_BATCH]
            self.client.log_batch(run_id, metrics=part, tags=tags if start == 0 else ())

    def _lost(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if not self._is_away:
            logger.warning("MLflow failed; the sweep goes on without it: %s", _first_line(error))
        self._is_away = True

    def _found(self) -> None:
        if self._is_away:
            logger.warning("MLflow is back; what happened in between is in the ledger.")
        self._is_away = False

    def _cannot_open(self, error: Exception) -> TrackingError:
        return TrackingError(f"MLflow at `{self.uri}` cannot be opened: {_first_line(error)}")


def database_uri(folder: Path) -> str:
    """The SQLite database in the sweep's directory."""
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def ui_command(folder: Path, port: int) -> list[str]:
    """The command that serves the sweep's MLflow pages to this machine alone."""
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", database_uri(folder)),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]


def _now() -> int:
    """In milliseconds, as MLflow counts."""
    return int(time.time() * 1000)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
