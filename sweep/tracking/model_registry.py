"""A trial's model in MLflow's model registry, under a name and an alias to load it by."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core import bundle
from core.config.base import ConfigError
from core.digests import bundle_digest
from core.safe_text import markdown_text
from sweep.identity import identity
from sweep.ledger.records import TrialRecord
from sweep.snapshot import SweepSnapshot, load_snapshot
from sweep.storage.archive import update_artifact_addresses
from sweep.tracking.mlflow_client import FAILURES, open_client
from sweep.tracking.mlflow_registry import Registry
from sweep.tracking.mlflow_server import database_uri, tracking_error
from sweep.tracking.provenance import code_version
from sweep.wer_labels import wer_name

FOLDER, DIGEST_LETTERS = "model", 16
"""Folder of a bundle among the artifacts of its run, with the first letters of its digest."""
"""The bundle's folder among a run's artifacts."""
DIGEST = "bundle.digest"


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """A version of a registered model, and the alias that means it."""

    name: str
    version: str
    alias: str
    is_new: bool
    """Whether the version is new; else only the alias was moved to it."""

    @property
    def uri(self) -> str:
        """MLflow's address of the version."""
        return f"models:/{self.name}@{self.alias}"


def promote(folder: Path, trial: str, *, name: str, alias: str) -> Promotion:
    """Register a finished trial's bundle; a bundle that is registered already keeps its version.

    Args:
        folder: the sweep's directory.
        trial: its number; an outcome beyond the first is `7.2`.
        name: the registered model's; it is created if it is missing.
        alias: means this version from now on.

    Raises:
        ConfigError: if there is no such trial, it has not finished, or MLflow does not know it.
        BundleError: if its bundle is damaged.
        TrackingError: if MLflow cannot be reached or refuses.
    """
    _check_name("--name", name)
    _check_name("--alias", alias)
    snapshot = load_snapshot(folder)
    record, index = _find_outcome(snapshot, trial)
    model = snapshot.folder / "trials" / f"{record.number:04}" / record.outcomes[index].model
    bundle.check(model)
    uri = snapshot.config.tracking.uri or database_uri(snapshot.folder)
    try:
        update_artifact_addresses(snapshot.folder)
        registry = Registry(open_client(uri))
        if record.mlflow_run_id is None or not registry.has_run(record.mlflow_run_id):
            raise ConfigError(
                f"`trial` {record.number} must have its run in MLflow, but has none;"
                f" `conformer-sweep resume {snapshot.folder}` creates it."
            )
        tags = _tags(snapshot, record, index, model)
        # By the bundle's content: promoted a second time, under another alias or after a kill, it
        # is the same version.
        version = registry.find_version(name, {DIGEST: tags[DIGEST]})
        is_new = version is None
        version = version or registry.register(
            name,
            model,
            run_id=record.mlflow_run_id,
            # By content: a trial that was tuned further must not overwrite what an earlier version
            # of the registered model consists of.
            path=f"{FOLDER}-{tags[DIGEST][:DIGEST_LETTERS]}",
            tags=tags,
            description=_description(snapshot, record, index),
        )
        registry.set_alias(name, alias, version)
    except FAILURES as error:
        raise tracking_error(uri, error) from error
    return Promotion(name=name, version=version, alias=alias, is_new=is_new)


def _find_outcome(snapshot: SweepSnapshot, trial: str) -> tuple[TrialRecord, int]:
    """The record of a trial like `7.2`, and the index of its outcome."""
    number, _, index = trial.partition(".")
    if not number.isdigit() or not (index or "0").isdigit():
        raise ConfigError(f"`trial` must be a number like 7 or 7.2, but is `{trial}` instead.")
    record = snapshot.record(int(number))
    if record.state != "finished" or int(index or 0) >= len(record.outcomes):
        raise ConfigError(
            f"`trial` {trial} must be a finished one, but trial {number} is {record.state}"
            f" with {len(record.outcomes)} outcomes instead."
        )
    return record, int(index or 0)


def _check_name(option: str, name: str) -> None:
    """Refuse names that MLflow's addresses cannot hold; an alias like `v7` is read as a version."""
    if not re.fullmatch(r"[\w.-]+", name) or re.fullmatch(r"(v\d+|latest|\d+)", name.lower()):
        raise ConfigError(
            f"`{option}` must be letters, digits, `_`, `-` and `.`, and no version,"
            f" but is `{name}` instead."
        )


def _tags(
    snapshot: SweepSnapshot, record: TrialRecord, index: int, model: Path
) -> Mapping[str, str]:
    """Tags of a version: its sweep, trial, code and results.

    Args:
        snapshot: the sweep.
        record: the trial.
        index: of its outcome.
        model: the folder of the bundle.
    """
    outcome = record.outcomes[index]
    return {
        "sweep.id": identity(snapshot.folder),
        "sweep.name": snapshot.config.sweep.name,
        "sweep.trial": str(record.number),
        "sweep.outcome": str(index),
        "wer": f"{outcome.wer:.6g}",
        "wer_against": outcome.wer_against,
        "gflops": f"{outcome.gflops:.6g}",
        "params": str(outcome.params),
        "method": outcome.method,
        DIGEST: bundle_digest(model) or "",
        "teacher.digest": bundle_digest(snapshot.folder / "teacher" / "model") or "",
        "code.version": code_version(),
    }


def _description(snapshot: SweepSnapshot, record: TrialRecord, index: int) -> str:
    outcome = record.outcomes[index]
    name, method = markdown_text(snapshot.config.sweep.name), markdown_text(outcome.method)
    return (
        f"Trial {record.number} of {name}: {100 * outcome.wer:.2f} %"
        f" {wer_name([outcome])} on dev,"
        f" {outcome.gflops:.3g} GFLOPs, {outcome.params / 1e6:.3g} M parameters"
        f" ({100 * outcome.flops_sparsity:.0f} % of FLOPs removed by {method})."
    )
