"""Makes MLflow agree with the ledger after runs or experiments were deleted there.

Deleted runs are restored from MLflow's bin, and of several runs of a trial one remains. Runs are
found by the sweep's own tag alone, so that those of other programs are never touched.
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sweep.tracking.mlflow_client import Runs, is_deleted
from sweep.tracking.mlflow_server import TrackingError

logger = logging.getLogger(__name__)


def open_experiment(client: Any, name: str, *, sweep_id: str, artifacts: Path | None) -> str:
    """The id of the experiment of that name, created if missing, restored if it is this sweep's.

    Args:
        client: MLflow's.
        name: the experiment's.
        sweep_id: the sweep's identifier, a tag of all its runs.
        artifacts: the folder for a new experiment's artifacts; None leaves it to the server.

    Raises:
        TrackingError: if it is deleted and holds nothing of this sweep.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # A server has its own folder; without one MLflow would use the current directory.
        location = artifacts.as_uri() if artifacts else None
        return str(client.create_experiment(name, artifact_location=location))
    if is_deleted(experiment):
        runs = Runs(client, str(experiment.experiment_id), sweep_id)
        if next(runs.search(f"tags.`sweep.id` = '{sweep_id}'", "all"), None) is None:
            raise TrackingError(
                f"MLflow's experiment `{name}` must be active, but is deleted instead;"
                " restore it there or give the sweep another name."
            )
        restore_experiment(client, experiment)
    return str(experiment.experiment_id)


def restore_experiment(client: Any, experiment: Any) -> None:
    """Take an experiment out of MLflow's bin, with all runs that were deleted with it."""
    client.restore_experiment(str(experiment.experiment_id))
    logger.warning("MLflow's experiment `%s` was deleted, and is restored.", experiment.name)


def has_deleted(runs: Runs) -> bool:
    """Whether any run of the sweep lies in MLflow's bin."""
    query = f"tags.`sweep.id` = '{runs.sweep_id}'"
    return next(runs.search(query, "deleted"), None) is not None


def runs_by_trial(runs: Runs) -> dict[int, list[Any]]:
    """Every trial's runs, oldest first, with deleted ones and duplicates.

    One search with a thousand runs a page: one request a trial would take minutes.
    """
    query = f"tags.`sweep.id` = '{runs.sweep_id}' AND tags.`sweep.role` = 'trial'"
    by_trial: dict[int, list[Any]] = {}
    for run in runs.search(query, "all"):
        by_trial.setdefault(int(run.data.tags["sweep.trial"]), []).append(run)
    return by_trial


def log_repairs(runs: Runs, num_written: int) -> None:
    """Log how many runs were restored since the last call, and how many were written again."""
    if runs.num_restored or num_written:
        logger.warning(
            "MLflow lacked runs of this sweep: %d restored from its bin,"
            " %d written again from the ledger.",
            *(runs.num_restored, num_written),
        )
    runs.num_restored = 0


def choose_run(
    runs: Runs, candidates: Sequence[Any], preferred: Collection[str | None], *, parent: str
) -> Any | None:
    """Choose one of a trial's runs, put it under the sweep's own, and delete the others.

    Args:
        runs: the sweep's.
        candidates: the trial's runs, oldest first.
        preferred: ids of runs that are chosen before others.
        parent: the sweep's own run.

    Returns:
        The chosen run, restored if it was deleted; None if there is none.
    """
    # Active before deleted, then known before unknown; `sorted` is stable, so of equal ones the
    # oldest.
    order = sorted(candidates, key=lambda run: (is_deleted(run), run.info.run_id not in preferred))
    if not order:
        return None
    chosen = runs.restore(order[0].info.run_id) if is_deleted(order[0]) else order[0]
    for duplicate in order[1:]:
        runs.delete(duplicate)
    # The parent may be a new one, if the old was deleted for good.
    if chosen is not None and chosen.data.tags.get("mlflow.parentRunId") != parent:
        runs.client.set_tag(chosen.info.run_id, "mlflow.parentRunId", parent)
    return chosen
