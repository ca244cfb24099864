"""Pruning with some minutes of speech: no training, no transcripts, any number of sizes.

The order and price of all units come from sensitivity tables (core/pruning/sensitivity.py), which
are computed once; then each size is extracted and repaired in seconds. Speech that was held out
says how far each size is from the unpruned model.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from core import bundle
from core.bundle import Bundle
from core.config.base import ConfigError
from core.config.pruning import AxisKind, Resource
from core.conformer.model import Conformer
from core.data.calibration_speech import CalibrationSpeech, SpeechBatch
from core.data.tokenizer import Tokenizer
from core.data_free import config_of, pruned_lineage
from core.digests import bundle_digest
from core.evaluation.greedy import greedy
from core.evaluation.timer import latency_seconds
from core.evaluation.wer import word_errors
from core.files import atomic_folder, atomic_write
from core.latency import cache
from core.methods.obs import Settings, all_tables
from core.outside_files import read_json
from core.pruning.latency_table import LatencyTable
from core.pruning.reconstruction import extract_and_reconstruct
from core.pruning.selection import Budget, choose
from core.pruning.sensitivity import SensitivityTable, mean_kl, table_scores
from core.pruning.space import Choice, Space
from core.pruning.table_files import load_tables, save_tables
from core.stages import Announce, be_silent

AXES: tuple[AxisKind, ...] = ("frontend", "width", "head", "inner", "channel", "module")
TABLES, SENSITIVITY = "tables.safetensors", "sensitivity.json"
MOST_LEVELS = 16
"""Levels of a table that the JSON for people has."""
LATENCY_REPEATS = 3
NAMES: Mapping[Resource, str] = {"flops": "FLOPs", "params": "parameters", "latency": "latency"}


@dataclass(frozen=True, kw_only=True, slots=True)
class PruningRequest:
    """A model, the shares to remove, and how to choose what goes."""

    model: Path
    remove: tuple[float, ...]
    resource: Resource = "flops"
    utterance_seconds: float = 10.0
    settings: Settings = field(default_factory=Settings)
    """Of the sensitivity tables."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunedModel:
    """One size, and how far it is from the unpruned model on held-out speech."""

    folder: str
    """Of its bundle, in the folder of the results; empty for the unpruned model."""
    target: float
    flops_sparsity: float
    params_sparsity: float
    params: int
    gflops: float
    latency_ms: float
    kl: float
    """Mean over held-out frames of the divergence from the unpruned model, in nats."""
    words_changed: float
    """Word errors against the unpruned model's transcripts of held-out speech, a share."""


def prune_with_speech(
    request: PruningRequest,
    dense: Bundle,
    speech: CalibrationSpeech,
    folder: Path,
    *,
    announce: Announce = be_silent,
) -> Iterator[PrunedModel]:
    """Prune a model to each size and write the bundles; yields the unpruned model first.

    What an interrupted run has finished is not computed again.

    Args:
        request: what is asked for.
        dense: the model of the request.
        speech: to calibrate on, and held out.
        folder: of the results: new, or of an interrupted run of the same request.
        announce: called as each stage begins.

    Raises:
        ConfigError: if the folder holds other results.
        ValueError: if a target cannot be met by this model.
    """
    model = dense.model.eval()
    digest = _digest(request, speech)
    _claim(folder, digest)
    space = Space.of(
        model, AXES, request.utterance_seconds, latency=_latency_table(request, model, folder)
    )
    tables = sensitivity_tables(
        request, model, space, speech, file=folder / TABLES, digest=digest, announce=announce
    )
    _write_sensitivity(tables, folder / SENSITIVITY)
    scores = table_scores(space, tables, request.resource)
    announce("reading held-out speech with the unpruned model")
    unpruned = _Unpruned.of(dense, speech, request.utterance_seconds)
    yield unpruned.compare(model, space, folder="", target=0.0)
    for target in sorted(request.remove):
        name = f"removed-{100 * target:g}"
        announce(f"removing {100 * target:g} % of the {NAMES[request.resource]}")
        if bundle.is_whole(folder / name):
            yield _read_row(folder / name)
            continue
        choice = choose(
            space, scores, Budget(keep=1 - target, resource=request.resource), is_filled=True
        )
        small = extract_and_reconstruct(
            model, {}, choice, how="sequential", speech=speech.calibration
        ).eval()
        row = unpruned.compare(small, space, folder=name, target=target)
        _save(folder / name, small, dense, row, choice, source=request.model)
        yield row


def sensitivity_tables(
    request: PruningRequest,
    model: Conformer,
    space: Space,
    speech: CalibrationSpeech,
    *,
    file: Path,
    digest: str,
    announce: Announce = be_silent,
) -> tuple[SensitivityTable, ...]:
    """Return the tables of all axes that may lose units, from a file if they are there.

    Args:
        request: its seed draws labels, and its settings say which tables.
        model: the unpruned model.
        space: of the model.
        speech: to calibrate on.
        file: where the tables lie, or will.
        digest: of request and speech.
        announce: called before each axis.
    """
    found = load_tables(file, space.units, digest=digest)
    if found is not None:
        return found
    announce("measuring how far each part moves the output")
    tables: list[SensitivityTable] = []
    for table in all_tables(model, space, speech.calibration, request.settings, seed=request.seed):
        tables.append(table)
        announce(f"measured {len(tables)} of {len(space.units)} axes")
    ordered = {table.axis.name: table for table in tables}
    result = tuple(ordered[axis.name] for axis in space.units)
    save_tables(result, file, digest=digest)
    return result


def _write_sensitivity(tables: Sequence[SensitivityTable], file: Path) -> None:
    """Write some levels of each table for people: the KL when so many units are removed."""
    rows = []
    for table in tables:
        # Of 512 levels every 32nd, the last one among them.
        step = -(-len(table.counts) // MOST_LEVELS)
        chosen = slice(step - 1, None, step)
        rows.append(
            {
                "axis": table.axis.name,
                "kind": table.axis.kind,
                "units": table.axis.size,
                "counts": table.counts[chosen].tolist(),
                "kl": table.increase[chosen].tolist(),
            }
        )
    atomic_write(file, json.dumps(rows, indent=1) + "\n")


def _read_row(folder: Path) -> PrunedModel:
    """Return the measurements of a size that an interrupted run has finished."""
    values = bundle.load(folder).report.get("pruned")
    numbers = {name for name in PrunedModel.__dataclass_fields__ if name != "folder"}
    if not isinstance(values, dict) or not all(
        type(values.get(name)) in (int, float) for name in numbers
    ):
        raise ConfigError(
            f"`{folder}` must be a size that `prune --audio` has measured, but is another bundle"
            " instead; name another `--out`."
        )
    return PrunedModel(folder=folder.name, **{name: values[name] for name in numbers})


def _latency_table(request: PruningRequest, model: Conformer, folder: Path) -> LatencyTable | None:
    """Return the table of this machine if latency is to be removed, measured once."""
    if request.resource != "latency":
        return None
    config = config_of(request.model, {"resource": request.resource}, seed=request.seed)
    cache.measure(config, folder, model.shape)
    return cache.open_table(config, folder)


def _save(
    folder: Path,
    small: Conformer,
    dense: Bundle,
    row: PrunedModel,
    choice: Choice,
    *,
    source: Path,
) -> None:
    report = {"pruned": asdict(row), **pruned_lineage(dense, choice, source=source)}
    bundle.save(folder, small, dense.tokenizer, report)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Unpruned:
    """What the unpruned model says of held-out speech, to compare with."""

    model: Conformer
    tokenizer: Tokenizer
    held_out: list[SpeechBatch]
    log_probs: list[torch.Tensor]
    texts: list[str]
    seconds: float

    @classmethod
    def of(cls, dense: Bundle, speech: CalibrationSpeech, seconds: float) -> "_Unpruned":
        outputs = [_run(dense.model, dense.tokenizer, batch) for batch in speech.held_out]
        return cls(
            model=dense.model,
            tokenizer=dense.tokenizer,
            held_out=speech.held_out,
            log_probs=[log_probs for log_probs, _ in outputs],
            texts=[text for _, texts in outputs for text in texts],
            seconds=seconds,
        )

    def compare(self, model: Conformer, space: Space, *, folder: str, target: float) -> PrunedModel:
        """Measure a model beside the unpruned one."""
        outputs = [_run(model, self.tokenizer, batch) for batch in self.held_out]
        texts = [text for _, texts in outputs for text in texts]
        cost = space.dense_cost(model)
        return PrunedModel(
            folder=folder,
            target=target,
            flops_sparsity=float(space.sparsity(cost, "flops")),
            params_sparsity=float(space.sparsity(cost, "params")),
            params=int(cost.params),
            gflops=float(cost.flops) / 1e9,
            latency_ms=1000 * _latency(model, self.seconds),
            kl=mean_kl(self.log_probs, [log_probs for log_probs, _ in outputs]),
            words_changed=word_errors(self.texts, texts).wer if any(self.texts) else 0.0,
        )


def _latency(model: Conformer, utterance_seconds: float) -> float:
    return latency_seconds(
        model,
        utterance_seconds=utterance_seconds,
        repeats=LATENCY_REPEATS,
        device=torch.device("cpu"),
    )


@torch.inference_mode()
def _run(
    model: Conformer, tokenizer: Tokenizer, batch: SpeechBatch
) -> tuple[torch.Tensor, list[str]]:
    """Return log-probabilities over real frames, and the text of each window."""
    output = model(*batch)
    log_probs = output.logits.float().log_softmax(-1)
    texts = [tokenizer.decode(ids) for ids in greedy(log_probs, output.num_frames)]
    return log_probs[output.is_frame], texts


def _digest(request: PruningRequest, speech: CalibrationSpeech) -> str:
    """Return a digest of the model, the settings of its tables, and the speech."""
    found = hashlib.sha256()
    values = (bundle_digest(request.model), request.seed, request.settings.model_dump(), list(AXES))
    found.update(json.dumps(values).encode())
    for features, num_frames in (*speech.calibration, *speech.held_out):
        found.update(features.numpy().tobytes())
        found.update(num_frames.numpy().tobytes())
    return found.hexdigest()


def _claim(folder: Path, digest: str) -> None:
    """Make the folder of the results, or check that it is of the same model and speech."""
    marker = folder / "request.json"
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            (temporary / marker.name).write_text(json.dumps({"digest": digest}))
        return
    if not marker.is_file() or read_json(marker) != {"digest": digest}:
        raise ConfigError(
            f"`--out` must be a new folder, or that of an interrupted run with the same model and"
            f" speech, but `{folder}` holds something else."
        )
