"""Trials that tables compare: run side by side, kept in a folder, judged on dev and test together.

A cell is one trial. Its models' errors are kept utterance by utterance beside them, so that methods
are compared pair by pair, and an interrupted table goes on where it stopped.
"""

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console

from core import bundle
from core.config.pruning import without_other_methods
from core.config.trial import Decoder, TrialConfig
from core.conformer.model import Conformer
from core.data.prepare import Speech, open_speech
from core.evaluation.batch_decoding import decode_store
from core.evaluation.timer import latency_seconds
from core.evaluation.wer import bootstrap, paired_difference, word_errors
from core.runtime import TrialDirs
from core.teacher import prepare
from core.trial import OUTCOMES, run
from sweep.config.sweep import load

SAMPLES = 10_000
"""Resamples of the utterances behind an interval."""
TIMED_SECONDS = 10.0
"""Of the utterance that models are timed on."""
PLAIN = {
    "frequency_masks": 0,
    "time_masks_per_second": 0.0,
    "silence_share": 0.0,
    "empty_share": 0.0,
    "level_share": 0.0,
    "noise_share": 0.0,
    "band_share": 0.0,
}
UNTAUGHT = {"logit_weight": 0.0, "layer_weight": 0.0}
CPU = torch.device("cpu")

Errors = tuple[list[float], list[float]]
"""Errors and words, an utterance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One trial of a table."""

    name: str
    target: str
    seed: int
    config: TrialConfig

    @property
    def folder(self) -> str:
        return f"{self.name} {self.target} {self.seed}".replace(" ", "-")

    def models(self, root: Path) -> list[Path]:
        """The bundle of each outcome; none as long as the trial is not done."""
        folder = place_of(root, self.folder).trial
        done = folder / OUTCOMES
        outcomes = json.loads(done.read_text()) if done.is_file() else []
        return [folder / outcome["model"] for outcome in outcomes]

    def is_done(self, root: Path) -> bool:
        models = self.models(root)
        return bool(models) and all(errors_file(model).is_file() for model in models)


def training_arguments(parser: argparse.ArgumentParser, space: str) -> None:
    """What all trials of a table have in common: a space, or what it says said otherwise.

    The teacher learns as the space says.
    """
    parser.add_argument("--space", default=space, help="a search space: its fixed values")
    parser.add_argument("--search-steps", type=int, default=0, help="instead of the space's")
    parser.add_argument("--tuning-steps", type=int, default=0, help="instead of the space's")
    parser.add_argument("--untuned", action="store_true", help="no step of any kind of training")
    parser.add_argument("--calibration-batches", type=int, default=0, help="not the space's")
    parser.add_argument("--batch-seconds", type=float, default=0.0, help="instead of the space's")
    parser.add_argument("--plain", action="store_true", help="speech as it is: no SpecAugment")
    parser.add_argument("--untaught", action="store_true", help="no distillation: from transcripts")
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), help="not the space's")
    parser.add_argument("--decoder", choices=get_args(Decoder), help="not the space's")
    parser.add_argument("--predictor", choices=("stateless", "lstm"), help="not the space's")


def base_of(args: argparse.Namespace) -> dict[str, Any]:
    """The fixed values, with one report at the end and one thread."""
    base: dict[str, Any] = load(args.space).space.base.model_dump()
    base["pruning"] |= {"steps": args.search_steps} if args.search_steps else {}
    base["tuning"] |= {"steps": args.tuning_steps} if args.tuning_steps else {}
    if args.untuned:
        base["pruning"] |= {"steps": 0}
        base["tuning"] |= {"steps": 0}
    if args.calibration_batches:
        base["pruning"] |= {"calibration_batches": args.calibration_batches}
    base["training"] |= {"batch_seconds": args.batch_seconds} if args.batch_seconds else {}
    base["training"] |= {"augment": PLAIN} if args.plain else {}
    base["distillation"] |= UNTAUGHT if args.untaught else {}
    base["runtime"] |= {"precision": args.precision} if args.precision else {}
    for key in ("decoder", "predictor"):
        base["model"] |= {key: value} if (value := getattr(args, key)) else {}
    every = max(1, base["pruning"]["steps"] + base["tuning"]["steps"])
    base["runtime"] |= {"report_steps": every, "checkpoint_steps": 100, "threads": 1}
    return base


def cell_of(
    base: dict[str, Any], name: str, overrides: dict[str, Any], target: str, seed: int
) -> Cell:
    """A cell whose config is a base with some values of some sections set otherwise.

    A table of a method's settings is laid over the base's; those of methods not in use are dropped.
    """
    sections = {key: {**base[key], **values} for key, values in overrides.items()}
    pruning = sections.get("pruning", base["pruning"])
    own = pruning.get(pruning["method"])
    if isinstance(own, dict):
        pruning[pruning["method"]] = {**base["pruning"].get(pruning["method"], {}), **own}
    sections["pruning"] = without_other_methods(pruning)
    config = TrialConfig.parse({**base, **sections, "seed": seed})
    return Cell(name=name, target=target, seed=seed, config=config)


def trained(cells: Sequence[Cell], root: Path, workers: int, space: str = "") -> None:
    """Make the teacher and run all cells, so many side by side.

    Where a space is named, the teacher learns as that says, whatever is said of trials otherwise.
    """
    console = Console(stderr=True)
    for cell in cells:  # what the first has made stays; another may want a table of latency beside
        for report in prepare(teaching(cell.config, space), place_of(root, "none")):
            console.print(f"{report.stage} {report.step}/{report.total_steps} WER {report.wer}")
    measure(root, teacher_of(root))
    jobs = [(cell, root) for cell in cells]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, line in enumerate(pool.imap_unordered(_trained_one, jobs), 1):
            console.print(f"{done}/{len(cells)} {line}")


def teaching(config: TrialConfig, space: str) -> TrialConfig:
    """By which the teacher of a trial is made."""
    base: TrialConfig = load(space).space.base if space else config
    # Its runtime, too: without steps, trials report after each.
    return config.model_copy(update={"training": base.training, "runtime": base.runtime})


def _trained_one(job: tuple[Cell, Path]) -> str:
    cell, root = job
    try:
        for _ in run(cell.config, place_of(root, cell.folder)):
            pass
    except ValueError as error:  # a budget beyond its method: no row, and others go on
        return f"{cell.folder}: {error}"
    torch.set_num_threads(1)
    wers = [measure(root, model) for model in cell.models(root)]
    return f"{cell.folder} WER {', '.join(f'{wer:.4f}' for wer in wers)}"


def place_of(root: Path, name: str) -> TrialDirs:
    return TrialDirs(
        teacher=root / "teacher", features=root / "features", trial=root / "cells" / name
    )


def teacher_of(root: Path) -> Path:
    return root / "teacher" / "model"


def errors_file(model: Path) -> Path:
    return model.with_name(f"{model.name}.errors.json")


def measure(root: Path, model: Path) -> float:
    """WER of a bundle on dev and test together; errors an utterance are kept beside it."""
    file = errors_file(model)
    if not file.is_file():
        counted = word_errors(*_heard(bundle.load(model), open_speech(root / "features")))
        file.write_text(json.dumps({"errors": counted.errors, "words": counted.words}))
    kept = json.loads(file.read_text())
    return sum(kept["errors"]) / sum(kept["words"])


def _heard(found: bundle.Bundle, speech: Speech) -> tuple[list[str], list[str]]:
    texts: list[str] = []
    for store in (speech.dev, speech.test):
        texts += decode_store(found.model, store, speech.tokenizer, CPU)
    return [*speech.dev.texts, *speech.test.texts], texts


def errors_of(models: Sequence[Path]) -> Errors:
    """Mean errors over models of different seeds, and words, an utterance."""
    kept = [json.loads(errors_file(model).read_text()) for model in models]
    errors = [sum(each) / len(kept) for each in zip(*(k["errors"] for k in kept), strict=True)]
    return errors, kept[0]["words"]


def outcomes_of(models: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """What trials said of each model; of a teacher nothing."""
    for model in models:
        file = model.parent / OUTCOMES
        outcomes = json.loads(file.read_text()) if file.is_file() else []
        yield next((outcome for outcome in outcomes if outcome["model"] == model.name), {})


def time_share(root: Path, models: Sequence[Path], *, repeats: int) -> float:
    """How long models take, in shares of the teacher's time: batch 1, one thread, median over all.

    Each is timed in turn with the teacher, so that drift of the machine meets both alike.
    """
    torch.set_num_threads(1)
    teacher = bundle.load(teacher_of(root)).model
    return statistics.median(
        _seconds(small) / _seconds(teacher)
        for small in (bundle.load(model).model for model in models)
        for _ in range(repeats)
    )


def _seconds(model: Conformer) -> float:
    return latency_seconds(model, utterance_seconds=TIMED_SECONDS, repeats=1, device=CPU)


def wer_of(own: Errors) -> dict[str, float]:
    errors, words = own
    low, high = bootstrap(errors, words, samples=SAMPLES, confidence=0.95, seed=0)
    return {"wer": sum(errors) / sum(words), "wer_low": low, "wer_high": high}


def against(name: str, own: Errors, other: Errors) -> dict[str, float]:
    """How much more of the words are wrong than with the other, with a paired interval."""
    errors, words = own
    paired = paired_difference(errors, other[0], words, samples=SAMPLES)
    key = f"to_{name}"
    return {key: paired.difference, f"{key}_low": paired.low, f"{key}_high": paired.high}
