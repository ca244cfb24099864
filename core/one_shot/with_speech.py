"""One-shot pruning with some minutes of speech: no training, no transcripts, any number of sizes.

The order and price of all units come from sensitivity tables (core/pruning/sensitivity.py), which
are computed once; then each size is extracted and repaired in seconds. Speech that was held out
says how far each size is from the unpruned model.
"""

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args

import torch

from core import bundle
from core.bundle import Bundle
from core.config.base import ConfigError
from core.config.pruning import AxisKind, Resource
from core.conformer.axes import Axis
from core.conformer.model import Conformer
from core.data.calibration_speech import CalibrationSpeech
from core.environment import return_freed_memory
from core.files import atomic_folder, atomic_write, remove_leftovers
from core.latency import cache
from core.methods.obs import Settings, all_tables, axes_with_tables
from core.one_shot.by_weights import config_of, pruned_lineage
from core.one_shot.comparison import Comparison, PrunedModel, TestSpeech
from core.outside_files import read_json
from core.pruning.latency_table import LatencyTable
from core.pruning.reconstruction import extract_and_reconstruct
from core.pruning.selection import Budget, Scores, choice_without_empty, choose
from core.pruning.sensitivity import SensitivityTable, table_scores
from core.pruning.space import Choice, Space, unit_share
from core.pruning.table_cost import elimination_cost
from core.pruning.table_files import load_tables, saved_tables, tables_digest
from core.stages import Announce, be_silent

AXES: tuple[AxisKind, ...] = get_args(AxisKind)
REQUEST, TABLES, SENSITIVITY = "request.json", "tables.safetensors", "sensitivity.json"
REMOVE = "--remove"
"""Option of `prune` that errors name."""
UNPRUNED, IMPORTED = "unpruned", "imported.json"
"""Folder of the results with the unpruned model, where it is no bundle of the user's, and the file
that says which model that is."""
MOST_LEVELS = 16
"""Levels of a table that the JSON for people has."""
TOLD_FROM = 0.03
"""Share of the work after which the time of the rest is told."""
NAMES: Mapping[Resource, str] = {"flops": "FLOPs", "params": "parameters", "latency": "latency"}


@dataclass(frozen=True, kw_only=True, slots=True)
class PruningRequest:
    """A model, the sizes to prune it to, and how to choose what goes."""

    model: Path
    remove: tuple[float, ...] = ()
    """Shares of the resource to remove."""
    keep: Mapping[str, int] = field(default_factory=dict)
    """Numbers of units to keep, by axis: one size more, chosen by hand."""
    resource: Resource = "flops"
    utterance_seconds: float = 10.0
    settings: Settings = field(default_factory=Settings)
    """Of the sensitivity tables."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Size:
    """One size of a request."""

    name: str
    """Folder of its bundle."""
    title: str
    target: float
    choice: Choice


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """A model's axes and their tables."""

    model: Conformer
    space: Space
    tables: tuple[SensitivityTable, ...]


def prune_with_speech(
    request: PruningRequest,
    dense: Bundle,
    speech: CalibrationSpeech,
    folder: Path,
    *,
    test: TestSpeech | None = None,
    announce: Announce = be_silent,
) -> Iterator[PrunedModel]:
    """Prune a model to each size and write the bundles; yields the unpruned model first.

    What an interrupted run has finished is not computed again. Sizes that an earlier run was asked
    for are yielded last.

    Args:
        request: what is asked for.
        dense: the model of the request.
        speech: to calibrate on, and held out.
        folder: of the results: new, or of an interrupted run of the same request.
        test: speech with transcripts, for word error rates.
        announce: called as each stage begins.

    Raises:
        ConfigError: if the folder holds other results, or the choice by hand cannot be made.
        ValueError: if a target cannot be met by this model.
    """
    _check_targets(request, dense.model)
    measured = measure_sensitivity(request, dense, speech, folder, announce=announce)
    sizes = [*_chosen_sizes(request, measured), *_sizes_by_hand(request, measured)]
    announce("reading held-out speech with the unpruned model")
    comparison = Comparison.of(
        dense, speech, utterance_seconds=request.utterance_seconds, test=test
    )
    yield comparison.compare(measured.model, measured.space, folder="", target=0.0)
    for size in sizes:
        return_freed_memory()  # of the tables, and of the model before
        announce(size.title)
        own = folder / size.name
        if bundle.is_whole(own):
            yield _read_row(own, comparison)
            continue
        yield _prune_to(size, measured, dense, speech, comparison, folder=own, source=request.model)
    for earlier in _other_sizes(folder, [size.name for size in sizes]):
        yield _read_row(earlier, comparison)


def _prune_to(
    size: _Size,
    measured: Sensitivity,
    dense: Bundle,
    speech: CalibrationSpeech,
    comparison: Comparison,
    *,
    folder: Path,
    source: Path,
) -> PrunedModel:
    """Write the bundle of one size, and compare it; its model is gone with the return."""
    small = extract_and_reconstruct(
        measured.model, {}, size.choice, how="sequential", speech=speech.calibration
    ).eval()
    row = comparison.compare(small, measured.space, folder=folder.name, target=size.target)
    test = comparison.test.name if comparison.test else ""
    lineage = pruned_lineage(dense, size.choice, source=source)
    report = {"pruned": {**asdict(row), "test": test}, **lineage}
    bundle.save(folder, small, dense.tokenizer, report)
    return row


def _other_sizes(folder: Path, names: Collection[str]) -> list[Path]:
    """Return the bundles of sizes that an earlier run was asked for, and this one was not."""
    return [
        path
        for path in sorted(folder.glob("removed-*")) + sorted(folder.glob("kept-*"))
        if path.name not in names and bundle.is_whole(path)
    ]


def measure_sensitivity(
    request: PruningRequest,
    dense: Bundle,
    speech: CalibrationSpeech,
    folder: Path,
    *,
    announce: Announce = be_silent,
) -> Sensitivity:
    """Compute the tables of all axes, and write them for programs and for people.

    Tables that an interrupted run has finished are not computed again.

    Args:
        request: its model, resource, settings and seed.
        dense: the model of the request.
        speech: to calibrate on.
        folder: of the results: new, or of an interrupted run of the same request.
        announce: called as each stage begins.

    Raises:
        ConfigError: if the folder holds other results.
    """
    model = dense.model.eval()
    digest = tables_digest(
        model,
        (*speech.calibration, *speech.held_out),
        request.settings.model_dump_json(),
        seed=request.seed,
    )
    _claim(folder, digest)
    space = Space.of(
        model, AXES, request.utterance_seconds, latency=_latency_table(request, model, folder)
    )
    file, axes = folder / TABLES, axes_with_tables(space)
    tables = load_tables(file, axes, digest=digest)
    announce("measuring how far each part moves the output")
    new = all_tables(
        model, space, speech.calibration, request.settings, seed=request.seed, computed=tables
    )
    clock = _Clock.of(space, [axis for axis in axes if axis.name not in tables])
    for table in saved_tables(new, tables, file, digest=digest):
        announce(f"measured {len(tables)} of {len(axes)} axes{clock.advance(table.axis)}")
    ordered = tuple(tables[axis.name] for axis in axes)
    _write_sensitivity(space, ordered, folder / SENSITIVITY)
    return Sensitivity(model=model, space=space, tables=ordered)


@dataclass(kw_only=True, slots=True)
class _Clock:
    """Tells how long the rest will take, by the third power of what axes' readers read."""

    waiting: dict[str, float]
    """Cost of each axis that has no table yet."""
    done: float = 0.0
    began: float | None = None
    """When the first table was there: before it both passes over the speech were made."""

    @classmethod
    def of(cls, space: Space, axes: Sequence[Axis]) -> "_Clock":
        return cls(waiting={axis.name: elimination_cost(space, axis) for axis in axes})

    def advance(self, axis: Axis) -> str:
        """Count an axis as done, and say how long the others will take, once that can be told."""
        cost, left = self.waiting.pop(axis.name), sum(self.waiting.values())
        if self.began is None:
            self.began = time.monotonic()
            return ""
        self.done += cost
        if self.done < TOLD_FROM * (self.done + left):
            return ""
        return f", about {(time.monotonic() - self.began) * left / self.done:.0f} s left"


def _check_targets(request: PruningRequest, model: Conformer) -> None:
    """Refuse shares that this model cannot lose, before anything takes time.

    Raises:
        ValueError: naming the largest share that it can lose.
    """
    if request.resource == "latency" or not request.remove:  # whose table is measured first
        return
    space = Space.of(model, AXES, request.utterance_seconds)
    scores = {axis.name: torch.zeros(axis.size) for axis in space.units}
    budget = Budget(keep=1 - max(request.remove), resource=request.resource)
    _choose(space, scores, budget)


def _choose(space: Space, scores: Scores, budget: Budget) -> Choice:
    """Choose for a budget; an error names the option that set it."""
    try:
        return choose(space, scores, budget, is_filled=True)
    except ValueError as error:
        raise ValueError(str(error).replace("pruning.target_sparsity", REMOVE)) from None


def _chosen_sizes(request: PruningRequest, measured: Sensitivity) -> Iterator[_Size]:
    scores = table_scores(measured.space, measured.tables, request.resource)
    for target in sorted(request.remove):
        budget = Budget(keep=1 - target, resource=request.resource)
        percent = f"{100 * target:g}"
        of = "" if request.resource == "flops" else f"-{request.resource}"
        yield _Size(
            name=f"removed-{percent}{of}",
            title=f"removing {percent} % of the {NAMES[request.resource]}",
            target=target,
            choice=_choose(measured.space, scores, budget),
        )


def _sizes_by_hand(request: PruningRequest, measured: Sensitivity) -> Iterator[_Size]:
    if not request.keep:
        return
    choice = choice_by_hand(measured, request.keep)
    cost = measured.space.choice_cost(choice)
    counts = sorted(request.keep.items())
    yield _Size(
        name=f"kept-{hashlib.sha256(json.dumps(counts).encode()).hexdigest()[:8]}",
        title="keeping the units chosen by hand",
        target=float(measured.space.sparsity(cost, request.resource)),
        choice=choice,
    )


def choice_by_hand(measured: Sensitivity, keep: Mapping[str, int]) -> Choice:
    """Return the choice that keeps so many units of some axes, the last ones to be removed.

    Raises:
        ConfigError: naming an axis that there is not, or a number that it cannot keep.
    """
    choice = measured.space.open_choice()
    for name, count in keep.items():
        for table in _named_tables(measured.tables, name):
            axis = table.axis
            if not axis.floor <= count <= axis.size:
                raise ConfigError(
                    f"`--keep` must keep from {axis.floor} to {axis.size} units of `{axis.name}`,"
                    f" but keeps {count} instead."
                )
            choice[axis.name][:] = True  # what was said of it before does not count
            choice[axis.name][table.order[: axis.size - count]] = False
    return choice_without_empty(measured.space, choice)


def _named_tables(tables: Sequence[SensitivityTable], name: str) -> list[SensitivityTable]:
    """Return the tables of the axes that a name means, which may be a pattern.

    Example: `blocks.3.ff1` means `blocks.3.ff1.inner`, and `blocks.*.ff1` one axis a block.
    """
    named = [
        table
        for table in tables
        if fnmatchcase(table.axis.name, name) or fnmatchcase(table.axis.parent or "", name)
    ]
    if not named:
        raise ConfigError(
            "`--keep` must name parts of this model"
            f" ({_shortened([table.axis.name for table in tables])}), but names `{name}` instead."
        )
    return named


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:6])}, ..."


def _write_sensitivity(space: Space, tables: Sequence[SensitivityTable], file: Path) -> None:
    """Write some levels of each table for people: the KL when so many units are removed."""
    rows = []
    for table in tables:
        # Of 512 levels every 32nd, the last one among them.
        step = -(-len(table.counts) // MOST_LEVELS)
        chosen = slice((len(table.counts) - 1) % step, None, step)
        rows.append(
            {
                "axis": table.axis.name,
                "kind": table.axis.kind,
                "units": table.axis.size,
                "flops_share": table.axis.size * unit_share(space, table.axis.name, "flops"),
                "params_share": table.axis.size * unit_share(space, table.axis.name, "params"),
                "counts": table.counts[chosen].tolist(),
                "kl": table.increase[chosen].tolist(),
            }
        )
    atomic_write(file, json.dumps(rows, indent=1) + "\n")


def _read_row(folder: Path, comparison: Comparison) -> PrunedModel:
    """Return the measurements of a size that an interrupted run has finished."""
    size = bundle.load(folder)
    values = size.report.get("pruned")
    optional = {"folder", "wer", "latency_busy"}
    numbers = set(PrunedModel.__dataclass_fields__) - optional
    if not isinstance(values, dict) or not all(
        type(values.get(name)) in (int, float) for name in numbers
    ):
        raise ConfigError(
            f"`{folder}` must be a size that `prune --audio` has measured, but is another bundle"
            " instead; name another `--out`."
        )
    row = PrunedModel(folder=folder.name, **{name: values[name] for name in numbers})
    wer, test = values.get("wer"), comparison.test
    if test is not None and (type(wer) not in (int, float) or values.get("test") != test.name):
        wer = comparison.wer(size.model)
    is_busy = values.get("latency_busy") is True
    return replace(row, wer=None if test is None else wer, latency_busy=is_busy)


def _latency_table(request: PruningRequest, model: Conformer, folder: Path) -> LatencyTable | None:
    """Return the table of this machine if latency is to be removed, measured once."""
    if request.resource != "latency":
        return None
    config = config_of(request.model, {"resource": request.resource}, seed=request.seed)
    cache.measure(config, folder, model.shape)
    return cache.open_table(config, folder)


def _claim(folder: Path, digest: str) -> None:
    """Make the folder of the results, or check that it is of the same model and speech."""
    marker = folder / REQUEST
    remove_leftovers(folder)
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            (temporary / marker.name).write_text(json.dumps({"digest": digest}))
        return
    if {path.name for path in folder.iterdir()} <= {UNPRUNED, IMPORTED}:  # a moment ago
        atomic_write(marker, json.dumps({"digest": digest}))
        return
    if not marker.is_file() or read_json(marker) != {"digest": digest}:
        raise ConfigError(
            "`--out` must be a new folder, or one that was made with the same model, speech,"
            f" `--minutes`, `--tables` and `--seed`, but `{folder}` was not; name a new folder."
        )
