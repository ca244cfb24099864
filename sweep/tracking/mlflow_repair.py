"""Lets MLflow hold what the ledger says, whatever was deleted there meanwhile.

What lies in MLflow's bin is restored, what is gone is made anew by whoever asks, of doubles one
stands. Nothing is looked for but by the sweep's own tag: what others made is left alone.
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sweep.tracking.mlflow_client import Runs, is_deleted
from sweep.tracking.mlflow_server import TrackingError

logger = logging.getLogger(__name__)


def open_experiment(client: Any, name: str, *, sweep_id: str, artifacts: Path | None) -> str:
    """The id of the experiment of that name; a new one is made, a deleted one of ours restored.

    Args:
        client: MLflow's.
        name: the experiment's.
        sweep_id: by what the sweep's runs are known.
        artifacts: where a new one keeps them; None leaves it to the server.

    Raises:
        TrackingError: if it is deleted and holds nothing of this sweep.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server keeps artifacts where it likes; beside a mere database they would go astray.
        location = artifacts.as_uri() if artifacts else None
        return str(client.create_experiment(name, artifact_location=location))
    if is_deleted(found):
        runs = Runs(client, str(found.experiment_id), sweep_id)
        if next(runs.search(f"tags.`sweep.id` = '{sweep_id}'", "all"), None) is None:
            raise TrackingError(
                f"MLflow's experiment `{name}` must be active, but is deleted instead;"
                " restore it there or give the sweep another name."
            )
        restore_experiment(client, found)
    return str(found.experiment_id)


def restore_experiment(client: Any, experiment: Any) -> None:
    """Take an experiment out of MLflow's bin, with all runs that went there with it."""
    client.restore_experiment(str(experiment.experiment_id))
    logger.warning("MLflow's experiment `%s` was deleted, and is restored.", experiment.name)


def has_deleted(runs: Runs) -> bool:
    """Whether any run of the sweep lies in MLflow's bin."""
    query = f"tags.`sweep.id` = '{runs.sweep_id}'"
    return next(runs.search(query, "deleted"), None) is not None


def runs_by_trial(runs: Runs) -> dict[int, list[Any]]:
    """Every trial's runs in the order of their making, deleted ones and doubles too.

    One search for all, a page a thousand runs: a request a trial would take minutes.
    """
    query = f"tags.`sweep.id` = '{runs.sweep_id}' AND tags.`sweep.role` = 'trial'"
    found: dict[int, list[Any]] = {}
    for run in runs.search(query, "all"):
        found.setdefault(int(run.data.tags["sweep.trial"]), []).append(run)
    return found


def say_repairs(runs: Runs, num_written: int) -> None:
    """Say how many runs were restored since this was last said, and how many were written anew."""
    if runs.num_restored or num_written:
        logger.warning(
            "MLflow lacked runs of this sweep: %d restored from its bin,"
            " %d written again from the ledger.",
            *(runs.num_restored, num_written),
        )
    runs.num_restored = 0


def choose_run(
    runs: Runs, found: Sequence[Any], preferred: Collection[str | None], *, parent: str
) -> Any | None:
    """Let one of a trial's runs stand, under the sweep's own, and no other be open.

    Args:
        runs: the sweep's.
        found: the trial's runs in the order of their making.
        preferred: ids of those that stand rather than others.
        parent: the sweep's own run.

    Returns:
        The one that stands, restored if it was deleted; None if there is none.
    """
    order = sorted(found, key=lambda run: (is_deleted(run), run.info.run_id not in preferred))
    if not order:
        return None
    chosen = runs.restore(order[0].info.run_id) if is_deleted(order[0]) else order[0]
    for double in order[1:]:
        runs.delete(double)
    if chosen is not None and chosen.data.tags.get("mlflow.parentRunId") != parent:
        runs.client.set_tag(chosen.info.run_id, "mlflow.parentRunId", parent)
    return chosen
