"""A trial's model in MLflow's model registry, under a name and an alias that others load it by."""

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
from sweep.storage.archive import follow
from sweep.tracking.mlflow_client import FAILURES, Registry, open_client
from sweep.tracking.mlflow_server import cannot_open, database_uri
from sweep.tracking.provenance import code_version
from sweep.wer_labels import wer_name

FOLDER = "model"
"""Of a run's artifacts, where its bundle lies."""
DIGEST = "bundle.digest"


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """What the registry has now."""

    name: str
    version: str
    alias: str
    is_new: bool
    """Whether the version was made now; else only the alias has moved."""

    @property
    def uri(self) -> str:
        """By what MLflow finds it."""
        return f"models:/{self.name}@{self.alias}"


def promote(folder: Path, trial: str, *, name: str, alias: str) -> Promotion:
    """Register a finished trial's bundle; the same bundle twice is one version.

    Args:
        folder: the sweep's directory.
        trial: its number; an outcome beyond the first is `7.2`.
        name: of the registered model; is made if it is not there.
        alias: points at this version from now on.

    Raises:
        ConfigError: if there is no such trial, it has not finished, or MLflow does not know it.
        BundleError: if its bundle is damaged.
        TrackingError: if MLflow cannot be reached or refuses.
    """
    _check_name("--name", name)
    _check_name("--alias", alias)
    seen = load_snapshot(folder)
    record, place = _outcome(seen, trial)
    model = seen.folder / "trials" / f"{record.number:04}" / record.outcomes[place].model
    bundle.check(model)
    uri = seen.config.tracking.uri or database_uri(seen.folder)
    try:
        follow(seen.folder)
        registry = Registry(open_client(uri))
        if record.mlflow_run_id is None or not registry.has_run(record.mlflow_run_id):
            raise ConfigError(
                f"`trial` {record.number} must have its run in MLflow, but has none;"
                f" `conformer-sweep resume {seen.folder}` makes it."
            )
        tags = _tags(seen, record, place, model)
        version = registry.version_with(name, {DIGEST: tags[DIGEST]})
        is_new = version is None
        version = version or registry.register(
            name,
            model,
            run_id=record.mlflow_run_id,
            path=f"{FOLDER}.{place}" if place else FOLDER,
            tags=tags,
            description=_description(seen, record, place),
        )
        registry.point(name, alias, version)
    except FAILURES as error:
        raise cannot_open(uri, error) from error
    return Promotion(name=name, version=version, alias=alias, is_new=is_new)


def _outcome(seen: SweepSnapshot, trial: str) -> tuple[TrialRecord, int]:
    """The trial that is meant, and the place of its outcome."""
    number, _, place = trial.partition(".")
    if not number.isdigit() or not (place or "0").isdigit():
        raise ConfigError(f"`trial` must be a number like 7 or 7.2, but is `{trial}` instead.")
    record = seen.record(int(number))
    if record.state != "finished" or int(place or 0) >= len(record.outcomes):
        raise ConfigError(
            f"`trial` {trial} must be a finished one, but trial {number} is {record.state}"
            f" with {len(record.outcomes)} outcomes instead."
        )
    return record, int(place or 0)


def _check_name(option: str, name: str) -> None:
    """As MLflow's addresses can hold it; an alias like `v7` would be read as a version."""
    if not re.fullmatch(r"[\w.-]+", name) or re.fullmatch(r"(v\d+|latest|\d+)", name.lower()):
        raise ConfigError(
            f"`{option}` must be letters, digits, `_`, `-` and `.`, and no version,"
            f" but is `{name}` instead."
        )


def _tags(seen: SweepSnapshot, record: TrialRecord, place: int, model: Path) -> Mapping[str, str]:
    """Where the version comes from, and what it is worth."""
    outcome = record.outcomes[place]
    return {
        "sweep.id": identity(seen.folder),
        "sweep.name": seen.config.sweep.name,
        "sweep.trial": str(record.number),
        "sweep.outcome": str(place),
        "wer": f"{outcome.wer:.6g}",
        "wer_against": outcome.wer_against,
        "gflops": f"{outcome.gflops:.6g}",
        "params": str(outcome.params),
        "method": outcome.method,
        DIGEST: bundle_digest(model) or "",
        "teacher.digest": bundle_digest(seen.folder / "teacher" / "model") or "",
        "code.version": code_version(),
    }


def _description(seen: SweepSnapshot, record: TrialRecord, place: int) -> str:
    outcome = record.outcomes[place]
    name, method = markdown_text(seen.config.sweep.name), markdown_text(outcome.method)
    return (
        f"Trial {record.number} of {name}: {100 * outcome.wer:.2f} %"
        f" {wer_name([outcome])} on dev,"
        f" {outcome.gflops:.3g} GFLOPs, {outcome.params / 1e6:.3g} M parameters"
        f" ({100 * outcome.flops_sparsity:.0f} % of FLOPs removed by {method})."
    )
