"""The only file that imports MLflow: a sweep's runs, found again by tag, written in batches.

Everything here may be done twice: whoever does not know whether MLflow heard, says it again.
"""

import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sweep.ledger.records import TrialRecord
from sweep.tracking.metrics import (
    AFTER_ALL,
    FILLED,
    curve_metrics,
    key,
    last_logged,
    order,
    report_metrics,
)
from sweep.tracking.mlflow_database import prepare_database
from sweep.tracking.provenance import Dataset
from sweep.tracking.retry_queue import TimedReport

# MLflow reads the first when it is imported, the others at each call; a user may overrule them.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A request repeated by itself makes a second run of one whose answer was lost: we ask first.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")

from mlflow import MlflowClient, entities
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

FAILURES = (MlflowException, OSError, SQLAlchemyError, sqlite3.Error)
"""What MLflow's client raises, or the database below it."""
REFUSED = (
    *("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"),
    *("NOT_FOUND", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"),
)
"""MLflow heard, and will never take it; all else is worth saying again."""

OPEN = ("RUNNING", "SCHEDULED")
"""What MLflow calls a run that is not over."""

Stage = Literal["active", "deleted", "all"]
STAGES = {"active": ViewType.ACTIVE_ONLY, "deleted": ViewType.DELETED_ONLY, "all": ViewType.ALL}
"""Where runs are looked for: a deleted one lies in MLflow's bin until `mlflow gc` empties that."""

# MLflow's own limits, as its server validates them.
METRICS_A_BATCH = 1000
PARAM_LENGTH = 6000
DIGEST_LENGTH = 36


@dataclass(kw_only=True, slots=True)
class KnownRun:
    """What is known of a run without asking MLflow again."""

    run_id: str
    status: str
    heard: tuple[int, int]
    """Order of the last report logged; a resumed trial repeats some."""
    params: frozenset[str]
    """Logged already: MLflow's params never change."""
    has_datasets: bool


def open_client(uri: str) -> MlflowClient:
    """MLflow's client for a server or database; it is silent, as we say ourselves what fails.

    A database that is not there, or was never finished, is made.
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    prepare_database(uri)
    return MlflowClient(tracking_uri=uri)


def known_run(run: Run) -> KnownRun:
    filled = run.data.tags.get(FILLED)
    return KnownRun(
        run_id=run.info.run_id,
        status=run.info.status,
        heard=last_logged(run.data.metrics, filled=int(filled) if filled else None),
        params=frozenset(run.data.params),
        has_datasets=bool(run.inputs and run.inputs.dataset_inputs),
    )


class Runs:
    """One sweep's runs in one experiment.

    Args:
        client: of the tracking server or database.
        experiment: its id.
        sweep_id: by what the runs are found again.
    """

    def __init__(self, client: MlflowClient, experiment: str, sweep_id: str) -> None:
        self.client = client
        self.experiment = experiment
        self.sweep_id = sweep_id
        self.tags: Mapping[str, str] = {}
        """What every new run says of where it comes from."""
        self.num_restored = 0
        """Runs that somebody had deleted."""
        self._doubtful: set[str] = set()
        """Runs that MLflow may have made without our hearing of it, by name."""

    def parent(self, name: str) -> Run:
        """The sweep's own run: from an earlier day, restored if it was deleted, or a new one."""
        found = self.find_parent()
        if found is None and (deleted := self.find_parent("deleted")):
            found = self.restore(deleted.info.run_id)
        return found or self._create("sweep", name)

    def find_parent(self, stage: Stage = "active") -> Run | None:
        query = f"tags.`sweep.id` = '{self.sweep_id}' AND tags.`sweep.role` = 'sweep'"
        return next(self.search(query, stage), None)

    def restore(self, run_id: str) -> Run | None:
        """A run as it is, taken out of MLflow's bin if it lies there; None if there is none."""
        run = find_run(self.client, run_id)
        if run is None or not is_deleted(run):
            return run
        self.client.restore_run(run_id)
        self.num_restored += 1
        return find_run(self.client, run_id)

    def delete(self, run: Run) -> None:
        """Delete a run that is one too many; even in the bin none is left open."""
        run_id = run.info.run_id
        if is_deleted(run):
            if run.info.status not in OPEN:
                return
            self.client.restore_run(run_id)
        if run.info.status in OPEN:
            self.client.set_terminated(run_id, status="KILLED")
        self.client.delete_run(run_id)

    def trial(self, record: TrialRecord, parent: str) -> Run:
        """A trial's run: the one that the ledger remembers, restored if need be, or a new one."""
        tags = {"mlflow.parentRunId": parent, "sweep.trial": str(record.number)}
        name, remembered = f"trial {record.number}", record.mlflow_run_id
        # One that was over may have ended before the ledger heard which run is its.
        if name in self._doubtful or (record.is_over and not remembered):
            found = next(self._children(parent, f"tags.`sweep.trial` = '{record.number}'"), None)
        else:
            found = self.restore(remembered) if remembered else None
        return found or self._create("trial", name, tags)

    def open_children(self, parent: str) -> dict[int, Run]:
        """The trials' runs that are not over: of the others the ledger knows enough.

        Of a trial that has two, the one made first; the other is deleted.
        """
        found: dict[int, Run] = {}
        for status in OPEN:
            for run in self._children(parent, f"attributes.status = '{status}'"):
                number = int(run.data.tags["sweep.trial"])
                if number in found:
                    self.delete(run)
                else:
                    found[number] = run
        return found

    def _children(self, parent: str, which: str) -> Iterator[Run]:
        """Some of them: MLflow takes milliseconds for each that it tells."""
        return self.search(f"tags.`mlflow.parentRunId` = '{parent}' AND {which}")

    def search(self, query: str, stage: Stage = "active") -> Iterator[Run]:
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

    def set_running(self, known: KnownRun) -> None:
        tags = [RunTag("state", "running"), RunTag("reason", "")]
        self.client.log_batch(known.run_id, tags=tags)
        self.client.update_run(known.run_id, status="RUNNING")
        known.status = "RUNNING"

    def set_waiting(self, known: KnownRun) -> None:
        """SCHEDULED in MLflow's words, so that RUNNING is only what runs."""
        self.client.set_tag(known.run_id, "state", "waiting")
        self.client.update_run(known.run_id, status="SCHEDULED")
        known.status = "SCHEDULED"

    def end(self, known: KnownRun, status: str) -> None:
        self.client.set_terminated(known.run_id, status=status)
        known.status = status

    def log_params(self, known: KnownRun, params: Mapping[str, Any]) -> None:
        fresh = [
            Param(key(name), str(value)[:PARAM_LENGTH])
            for name, value in params.items()
            if key(name) not in known.params
        ]
        if fresh:  # fewer than the hundred that fit a request: a config has no more leaves
            self.client.log_batch(known.run_id, params=fresh)
        known.params |= {param.key for param in fresh}

    def log_tags(self, known: KnownRun, tags: Mapping[str, object]) -> None:
        self.client.log_batch(known.run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def log_metrics(
        self,
        known: KnownRun,
        values: Mapping[str, float],
        *,
        at: int,
        step: int = 0,
        tags: Mapping[str, object] | None = None,
    ) -> None:
        """Values of one moment, `at` so many milliseconds; said again it must be the same one."""
        metrics = [Metric(name, float(value), at, step) for name, value in values.items()]
        self._log(known, metrics, tags or {})

    def log_reports(self, known: KnownRun, reports: Sequence[TimedReport]) -> None:
        """Their curves, but for what was logged before: so that steps only ever rise."""
        fresh = [told for told in reports if order(told.report) > known.heard]
        metrics = [
            Metric(name, value, told.milliseconds, told.report.step)
            for told in fresh
            for name, value in report_metrics(told.report).items()
        ]
        if fresh:
            self._log(known, metrics, {"stage": fresh[-1].report.stage})
            known.heard = max(order(told.report) for told in fresh)

    def fill_up(self, known: KnownRun, record: TrialRecord, *, at: int) -> None:
        """What the ledger heard of a trial and MLflow never did: its curve, at least."""
        missing = [point for point in record.curve if point.step > known.heard[0]]
        if not missing:
            return
        metrics = [
            Metric(name, value, at, point.step)
            for point in missing
            for name, value in curve_metrics(point).items()
        ]
        self._log(known, metrics, {FILLED: missing[-1].step})
        known.heard = (missing[-1].step, AFTER_ALL)

    def log_datasets(self, known: KnownRun, datasets: Sequence[Dataset]) -> None:
        """What the run is trained and judged on, once."""
        if datasets and not known.has_datasets:
            self.client.log_inputs(known.run_id, datasets=[_input(each) for each in datasets])
            known.has_datasets = True

    def _log(self, known: KnownRun, metrics: Sequence[Metric], tags: Mapping[str, object]) -> None:
        """Equal points at equal times are one to MLflow, so that a part may be said twice."""
        labels = [RunTag(name, str(value)) for name, value in tags.items()]
        for start in range(0, max(len(metrics), 1), METRICS_A_BATCH):
            part = metrics[start : start + METRICS_A_BATCH]
            self.client.log_batch(known.run_id, metrics=part, tags=() if start else labels)

    def _create(self, role: str, name: str, tags: Mapping[str, str] | None = None) -> Run:
        own = {"sweep.id": self.sweep_id, "sweep.role": role, "state": "running"}
        own |= {"mlflow.source.name": "conformer-sweep", "mlflow.source.type": "LOCAL"}
        own |= {**self.tags, **(tags or {})}
        self._doubtful.add(name)
        run = self.client.create_run(self.experiment, run_name=name, tags=own)
        self._doubtful.discard(name)
        return run


class Registry:
    """MLflow's model registry."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client

    def has_run(self, run_id: str) -> bool:
        """Whether the run is there; one that lies in MLflow's bin is restored."""
        run = find_run(self.client, run_id)
        if run is not None and is_deleted(run):
            self.client.restore_run(run_id)
        return run is not None

    def version_with(self, name: str, tags: Mapping[str, str]) -> str | None:
        """The first version of a model that has these tags, and whose run still keeps its files."""
        told = "".join(f" AND tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self.client.search_model_versions(f"name = '{name}'{told}")
        whole = (str(each.version) for each in found if self.has_run(str(each.run_id)))
        return min(whole, key=int, default=None)

    def register(
        self,
        name: str,
        folder: Path,
        *,
        run_id: str,
        path: str,
        tags: Mapping[str, str],
        description: str,
    ) -> str:
        """A new version of what lies in the folder, kept among the run's artifacts."""
        self.client.log_artifacts(run_id, str(folder), path)
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self.client.get_run(run_id).info.artifact_uri}/{path}"
        made = self.client.create_model_version(
            name, source, run_id=run_id, tags=dict(tags), description=description
        )
        return str(made.version)

    def point(self, name: str, alias: str, version: str) -> None:
        self.client.set_registered_model_alias(name, alias, version)


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run, if MLflow has it, and be it in its bin."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def find_experiment(client: MlflowClient, experiment_id: str) -> entities.Experiment | None:
    """The experiment, if MLflow has it, and be it in its bin."""
    try:
        return client.get_experiment(experiment_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def is_deleted(found: Run | entities.Experiment | None) -> bool:
    """Whether a run or an experiment lies in MLflow's bin."""
    if found is None:
        return False
    stage = found.info.lifecycle_stage if isinstance(found, Run) else found.lifecycle_stage
    return bool(stage != "active")


def is_refusal(error: Exception) -> bool:
    """Whether MLflow is there, and saying it again would change nothing."""
    if isinstance(error, MlflowException):
        return str(error.error_code) in REFUSED
    return not isinstance(error, OSError) or isinstance(error, FileNotFoundError)


def _input(dataset: Dataset) -> entities.DatasetInput:
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
