"""A sweep's runs in MLflow: found by tag, written in batches.

Every call can be repeated with the same effect: one whose answer was lost is made again.
"""

import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlflow import MlflowClient, entities
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.telemetry import set_telemetry_client
from sqlalchemy.exc import SQLAlchemyError

from core.telemetry import disable_telemetry
from sweep.ledger.records import TrialRecord
from sweep.tracking.metrics import (
    AFTER_ALL,
    FILLED,
    curve_metrics,
    last_logged_order,
    metric_key,
    report_metrics,
    report_order,
)
from sweep.tracking.mlflow_database import prepare_database
from sweep.tracking.mlflow_server import set_defaults
from sweep.tracking.provenance import Dataset
from sweep.tracking.retry_queue import TimedReport

FAILURES = (MlflowException, OSError, SQLAlchemyError, sqlite3.Error)
"""Errors of MLflow's client and of the database below it."""
REFUSED = (
    *("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"),
    *("NOT_FOUND", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"),
)
"""Error codes of calls that MLflow will never accept; after all others a call is repeated."""

OPEN = ("RUNNING", "SCHEDULED")
"""MLflow's status of a run that is not over."""

Stage = Literal["active", "deleted", "all"]
STAGES = {"active": ViewType.ACTIVE_ONLY, "deleted": ViewType.DELETED_ONLY, "all": ViewType.ALL}
"""Runs to search: a deleted one lies in MLflow's bin until `mlflow gc` empties that."""

# MLflow's own limits, as its server validates them.
METRICS_A_BATCH = 1000
PARAM_LENGTH = 6000
DIGEST_LENGTH = 36


@dataclass(kw_only=True, slots=True)
class RunState:
    """A copy of a run's state, which saves requests to MLflow."""

    run_id: str
    status: str
    last_order: tuple[int, int]
    """Order of the last report logged; a resumed trial repeats some."""
    params: frozenset[str]
    """Names of those logged already: MLflow's params never change."""
    has_datasets: bool


def open_client(uri: str) -> MlflowClient:
    """MLflow's client for a server or database, without MLflow's own log lines.

    A database that is missing or incomplete is created.
    """
    set_defaults(os.environ)
    disable_telemetry(os.environ)
    set_telemetry_client()  # type: ignore[no-untyped-call]  # follows the environment, which MLflow may have read too early
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    prepare_database(uri)
    return MlflowClient(tracking_uri=uri)


def run_state(run: Run) -> RunState:
    """The state of a run that MLflow has returned."""
    filled = run.data.tags.get(FILLED)
    return RunState(
        run_id=run.info.run_id,
        status=run.info.status,
        last_order=last_logged_order(run.data.metrics, filled=int(filled) if filled else None),
        params=frozenset(run.data.params),
        has_datasets=bool(run.inputs and run.inputs.dataset_inputs),
    )


class Runs:
    """One sweep's runs in one experiment.

    Args:
        client: of the tracking server or database.
        experiment: its id.
        sweep_id: the sweep's identifier, a tag of all its runs.
    """

    def __init__(self, client: MlflowClient, experiment: str, sweep_id: str) -> None:
        self.client = client
        self.experiment = experiment
        self.sweep_id = sweep_id
        self.tags: Mapping[str, str] = {}
        """Tags of the program, which every new run gets."""
        self.num_restored = 0
        """Runs that a person had deleted."""
        self._doubtful: set[str] = set()
        """Names of runs that MLflow may have created although the request failed."""

    def parent(self, name: str) -> Run:
        """The sweep's own run: the existing one, restored if it was deleted, or a new one."""
        run = self.find_parent()
        # Restored, because a second one of the same name would begin with an empty history.
        if run is None and (deleted := self.find_parent("deleted")):
            run = self.restore(deleted.info.run_id)
        return run or self._create("sweep", name)

    def find_parent(self, stage: Stage = "active") -> Run | None:
        """The sweep's own run if MLflow has one."""
        query = f"tags.`sweep.id` = '{self.sweep_id}' AND tags.`sweep.role` = 'sweep'"
        return next(self.search(query, stage), None)

    def restore(self, run_id: str) -> Run | None:
        """The run of that id, taken out of MLflow's bin if it lies there; None if there is none."""
        run = find_run(self.client, run_id)
        if run is None or not is_deleted(run):
            return run
        self.client.restore_run(run_id)
        self.num_restored += 1
        return find_run(self.client, run_id)

    def delete(self, run: Run) -> None:
        """Delete a duplicate run; runs in the bin are ended, too."""
        run_id = run.info.run_id
        if is_deleted(run):
            if run.info.status not in OPEN:
                return
            self.client.restore_run(run_id)
        if run.info.status in OPEN:
            self.client.set_terminated(run_id, status="KILLED")
        self.client.delete_run(run_id)

    def trial(self, record: TrialRecord, parent: str) -> Run:
        """A trial's run: the one that the ledger names, restored if need be, or a new one."""
        tags = {"mlflow.parentRunId": parent, "sweep.trial": str(record.number)}
        name, remembered = f"trial {record.number}", record.mlflow_run_id
        # A trial may have ended before the id of its run reached the ledger.
        # Only then is a search by tag worth its request; a new trial surely has no run.
        if name in self._doubtful or (record.is_over and not remembered):
            run = next(self._children(parent, f"tags.`sweep.trial` = '{record.number}'"), None)
        else:
            run = self.restore(remembered) if remembered else None
        return run or self._create("trial", name, tags)

    def open_children(self, parent: str) -> dict[int, Run]:
        """The trials' runs that are not over; the ledger has all that is needed of the others.

        Of a trial that has two, the older one; the other is deleted.
        """
        runs: dict[int, Run] = {}
        # MLflow's filters have no OR, thus a search for each status.
        for status in OPEN:
            for run in self._children(parent, f"attributes.status = '{status}'"):
                number = int(run.data.tags["sweep.trial"])
                # The search gives the oldest first, so a later one is the duplicate of a repeated
                # request.
                if number in runs:
                    self.delete(run)
                else:
                    runs[number] = run
        return runs

    def _children(self, parent: str, condition: str) -> Iterator[Run]:
        """The trials' runs that meet a condition: MLflow takes milliseconds for each it returns."""
        return self.search(f"tags.`mlflow.parentRunId` = '{parent}' AND {condition}")

    def search(self, query: str, stage: Stage = "active") -> Iterator[Run]:
        """All runs of the experiment that match, oldest first."""
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                query,
                STAGES[stage],
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def set_running(self, state: RunState) -> None:
        """Set a run's status and tags to those of a trial that runs."""
        # An empty reason replaces that of an earlier failure.
        tags = [RunTag("state", "running"), RunTag("reason", "")]
        self.client.log_batch(state.run_id, tags=tags)
        self.client.update_run(state.run_id, status="RUNNING")
        state.status = "RUNNING"

    def set_waiting(self, state: RunState) -> None:
        """Set a run's status to SCHEDULED: its trial waits to be continued."""
        self.client.set_tag(state.run_id, "state", "waiting")
        self.client.update_run(state.run_id, status="SCHEDULED")
        state.status = "SCHEDULED"

    def end(self, state: RunState, status: str) -> None:
        """End a run with a final status of MLflow's."""
        self.client.set_terminated(state.run_id, status=status)
        state.status = status

    def log_params(self, state: RunState, params: Mapping[str, Any]) -> None:
        """Log the params that are not logged yet."""
        fresh = [
            Param(metric_key(name), str(value)[:PARAM_LENGTH])
            for name, value in params.items()
            # MLflow refuses another value of a param that it has, even in a retry's settings; the
            # first stays.
            if metric_key(name) not in state.params
        ]
        if fresh:  # fewer than the hundred that fit a request: a config has no more leaves
            self.client.log_batch(state.run_id, params=fresh)
        state.params |= {param.key for param in fresh}

    def log_tags(self, state: RunState, tags: Mapping[str, object]) -> None:
        self.client.log_batch(state.run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def log_metrics(
        self,
        state: RunState,
        values: Mapping[str, float],
        *,
        at: int,
        step: int = 0,
        tags: Mapping[str, object] | None = None,
    ) -> None:
        """Log values of one moment.

        Args:
            state: the run's.
            values: by metric name.
            at: milliseconds; a repeated call must use the same ones.
            step: of the values.
            tags: set together with them.
        """
        metrics = [Metric(name, float(value), at, step) for name, value in values.items()]
        self._log(state, metrics, tags or {})

    def log_reports(self, state: RunState, reports: Sequence[TimedReport]) -> None:
        """Log the curves of those reports that are not logged yet, so that steps only ever rise."""
        # A trial that resumed from step 250 repeats 275 and 300, which MLflow would draw a second
        # time.
        fresh = [timed for timed in reports if report_order(timed.report) > state.last_order]
        metrics = [
            Metric(name, value, timed.milliseconds, timed.report.step)
            for timed in fresh
            for name, value in report_metrics(timed.report).items()
        ]
        if fresh:
            self._log(state, metrics, {"stage": fresh[-1].report.stage})
            state.last_order = max(report_order(timed.report) for timed in fresh)

    def fill_curve(self, state: RunState, record: TrialRecord, *, at: int) -> None:
        """Log the points of a trial's curve that the ledger has and MLflow lacks.

        Args:
            state: the trial's run.
            record: the trial's.
            at: milliseconds; the ledger does not store when a point was reported.
        """
        # MLflow has up to (200, 3) and the ledger points at 100, 200 and 300: 300 is missing.
        missing = [point for point in record.curve if point.step > state.last_order[0]]
        if not missing:
            return
        metrics = [
            Metric(name, value, at, point.step)
            for point in missing
            for name, value in curve_metrics(point).items()
        ]
        self._log(state, metrics, {FILLED: missing[-1].step})
        state.last_order = (missing[-1].step, AFTER_ALL)

    def log_datasets(self, state: RunState, datasets: Sequence[Dataset]) -> None:
        """Log the speech of training and evaluation, once."""
        if datasets and not state.has_datasets:
            inputs = [_dataset_input(dataset) for dataset in datasets]
            self.client.log_inputs(state.run_id, datasets=inputs)
            state.has_datasets = True

    def _log(self, state: RunState, metrics: Sequence[Metric], tags: Mapping[str, object]) -> None:
        """Log metrics and tags in batches; MLflow stores a point that is sent twice only once."""
        labels = [RunTag(name, str(value)) for name, value in tags.items()]
        # 2500 metrics are batches of 1000, 1000 and 500, the tags with the first. Without any
        # metric there is still one batch, for the tags alone.
        for start in range(0, max(len(metrics), 1), METRICS_A_BATCH):
            batch = metrics[start : start + METRICS_A_BATCH]
            self.client.log_batch(state.run_id, metrics=batch, tags=() if start else labels)

    def _create(self, role: str, name: str, tags: Mapping[str, str] | None = None) -> Run:
        own = {"sweep.id": self.sweep_id, "sweep.role": role, "state": "running"}
        own |= {"mlflow.source.name": "conformer-sweep", "mlflow.source.type": "LOCAL"}
        own |= {**self.tags, **(tags or {})}
        # Noted before and removed after: if the answer is lost in between, the run may exist, and
        # the next try looks for it by its tags instead of creating a second one.
        self._doubtful.add(name)
        run = self.client.create_run(self.experiment, run_name=name, tags=own)
        self._doubtful.discard(name)
        return run


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run, active or in MLflow's bin; None if there is none."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def find_experiment(client: MlflowClient, experiment_id: str) -> entities.Experiment | None:
    """The experiment, active or in MLflow's bin; None if there is none."""
    try:
        return client.get_experiment(experiment_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def is_deleted(entity: Run | entities.Experiment | None) -> bool:
    """Whether a run or an experiment lies in MLflow's bin."""
    if entity is None:
        return False
    stage = entity.info.lifecycle_stage if isinstance(entity, Run) else entity.lifecycle_stage
    return bool(stage != "active")


def is_refusal(error: Exception) -> bool:
    """Whether MLflow has answered, and repeating the call would change nothing."""
    if isinstance(error, MlflowException):
        return str(error.error_code) in REFUSED
    # An OSError is a connection that may return; a file that is missing will not.
    return not isinstance(error, OSError) or isinstance(error, FileNotFoundError)


def _dataset_input(dataset: Dataset) -> entities.DatasetInput:
    return entities.DatasetInput(
        entities.Dataset(
            name=dataset.name,
            digest=dataset.digest[:DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": dataset.source}),
            profile=json.dumps(dict(dataset.profile)),
        ),
        tags=[entities.InputTag("mlflow.data.context", dataset.role)],
    )
