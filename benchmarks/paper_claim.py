"""The paper's claim in our terms: its method, ablations and baselines at equal steps.

Every row is trained with the same total steps from the same teacher, several seeds each; WER is
over dev and test together, intervals by a bootstrap over utterances, differences paired: to the
teacher, to dense, and to L0 at the same target. Speed-ups are measured when all training is over,
each model side by side with the teacher. Trials are kept in --dir, so an interrupted run goes on
where it stopped.
"""

import argparse
import json
import multiprocessing
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import arguments, emit, interleaved
from rich.console import Console

from core.config import TrialConfig
from core.conformer.shape import MELS
from core.corpora.prepared import Speech, open_speech
from core.deploy import bundle
from core.evaluation.recognition import recognised
from core.evaluation.wer import bootstrap, paired_difference, word_errors
from core.setting import Place
from core.teacher import prepare
from core.trial import run
from sweep.config import load

UNTAUGHT = {"distillation": {"logit_weight": 0.0, "layer_weight": 0.0}}
METHODS: dict[str, dict[str, Any]] = {
    "l0": {"pruning": {"method": "l0"}},
    "l0 without distillation": {"pruning": {"method": "l0"}, **UNTAUGHT},
    "magnitude": {"pruning": {"method": "magnitude"}},
    "uniform": {"pruning": {"method": "uniform"}},
    "random": {"pruning": {"method": "random"}},
    "scratch": {"pruning": {"method": "scratch"}},
}
TARGETS = (
    ("flops", 0.5),
    ("params", 0.5),
    ("flops", 0.75),
    ("flops", 0.9),
    ("flops", 0.95),
)
LATENCY_REPEATS = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One trial of the table."""

    name: str
    target: str
    seed: int
    config: TrialConfig

    @property
    def folder(self) -> str:
        return f"{self.name} {self.target} {self.seed}".replace(" ", "-")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--space", default="commands", help="a search space: its fixed values")
    parser.add_argument("--dir", type=Path, default=Path("runs/paper_claim"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="trials side by side")
    parser.add_argument("--search-steps", type=int, default=200)
    parser.add_argument("--tuning-steps", type=int, default=200)
    parser.add_argument("--tuning-rate", type=float, default=6e-4, help="its peak")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--removed", nargs="+", type=float, help="only these shares")
    parser.add_argument("--table-only", action="store_true", help="of the trials that are done")
    args = parser.parse_args()
    root = args.dir.resolve()
    cells = list(planned(args))
    if not args.table_only:
        trained(cells, root, args.workers)
    finished = [cell for cell in cells if (root / "cells" / cell.folder / "errors.json").is_file()]
    values = {
        "steps": args.search_steps + args.tuning_steps,
        "tuning_rate": args.tuning_rate,
        "trials": len(finished),
    }
    emit(root.name, tabulated(finished, root), values, args)


def planned(args: argparse.Namespace) -> Iterator[Cell]:
    """Seed by seed and target by target, so that whatever is done can be compared."""
    base = load(args.space).space.base.model_dump()
    base["pruning"]["steps"], base["tuning"]["steps"] = args.search_steps, args.tuning_steps
    base["tuning"]["learning_rate"] = args.tuning_rate
    every = args.search_steps + args.tuning_steps
    base["runtime"] |= {"report_steps": every, "checkpoint_steps": 100, "threads": 1}
    for seed in range(args.seeds):
        yield cell(base, "dense", {"pruning": {"method": "dense"}}, "", seed)
        for resource, sparsity in TARGETS:
            if args.removed and sparsity not in args.removed:
                continue
            target = f"{round(100 * sparsity)} % {resource}"
            for name in args.methods:
                overrides = METHODS[name]
                wanted = {"resource": resource, "target_sparsity": sparsity}
                merged = {**overrides, "pruning": {**overrides["pruning"], **wanted}}
                yield cell(base, name, merged, target, seed)


def cell(
    base: dict[str, Any], name: str, overrides: dict[str, Any], target: str, seed: int
) -> Cell:
    sections = {key: {**base[key], **values} for key, values in overrides.items()}
    config = TrialConfig.parse({**base, **sections, "seed": seed})
    return Cell(name=name, target=target, seed=seed, config=config)


def trained(cells: list[Cell], root: Path, workers: int) -> None:
    console = Console(stderr=True)
    for report in prepare(cells[0].config, place_of(root, "none")):
        console.print(f"{report.stage} {report.step}/{report.total_steps} WER {report.wer}")
    measure(root, root / "teacher", bundle.load(root / "teacher" / "model"))
    jobs = [(cell, root) for cell in cells]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, line in enumerate(pool.imap_unordered(trained_one, jobs), 1):
            console.print(f"{done}/{len(cells)} {line}")


def trained_one(job: tuple[Cell, Path]) -> str:
    cell, root = job
    place = place_of(root, cell.folder)
    for _ in run(cell.config, place):
        pass
    torch.set_num_threads(1)
    wer = measure(root, place.trial, bundle.load(place.trial / "model"))
    return f"{cell.folder} WER {wer:.4f}"


def place_of(root: Path, name: str) -> Place:
    return Place(teacher=root / "teacher", features=root / "features", trial=root / "cells" / name)


def measure(root: Path, folder: Path, found: bundle.Bundle) -> float:
    """Errors an utterance of dev and test together, kept beside the model."""
    file = folder / "errors.json"
    if not file.is_file():
        speech = open_speech(root / "features")
        counted = word_errors(*heard(found, speech))
        file.write_text(json.dumps({"errors": counted.errors, "words": counted.words}))
    kept = json.loads(file.read_text())
    return sum(kept["errors"]) / sum(kept["words"])


def heard(found: bundle.Bundle, speech: Speech) -> tuple[list[str], list[str]]:
    texts: list[str] = []
    for store in (speech.dev, speech.test):
        texts += recognised(found.model, store, speech.tokenizer, torch.device("cpu"))
    return [*speech.dev.texts, *speech.test.texts], texts


def tabulated(cells: list[Cell], root: Path) -> list[dict[str, Any]]:
    """One row a name and target, seeds pooled utterance by utterance."""
    groups: dict[tuple[str, str], list[Path]] = defaultdict(list)
    groups["teacher", ""] = [root / "teacher"]
    for cell in cells:
        groups[cell.name, cell.target].append(root / "cells" / cell.folder)
    errors = {key: errors_of(folders) for key, folders in groups.items()}
    speedups = measured_speedups(groups)
    return [
        {
            "name": name,
            "target": target,
            **outcome_of(groups[name, target]),
            "speedup": speedups[name, target],
            **wer_of(own),
            **against("teacher", own, errors["teacher", ""]),
            **against("dense", own, errors.get(("dense", ""), own)),
            **against("l0", own, errors.get(("l0", target), own)),
            "seeds": len(groups[name, target]),
        }
        for (name, target), own in errors.items()
    ]


Key = tuple[str, str]
"""A row's name and target."""
Errors = tuple[list[float], list[float]]
"""Errors and words, an utterance."""


def errors_of(folders: list[Path]) -> Errors:
    """Mean errors over seeds, and words, an utterance."""
    kept = [json.loads((folder / "errors.json").read_text()) for folder in folders]
    errors = [sum(each) / len(kept) for each in zip(*(k["errors"] for k in kept), strict=True)]
    return errors, kept[0]["words"]


def outcome_of(folders: list[Path]) -> dict[str, float]:
    """What the models are, in the mean over seeds."""
    reports = [bundle.load(folder / "model").report["outcome"] for folder in folders]

    def mean(key: str) -> float:
        return sum(outcome[key] for outcome in reports) / len(reports)

    return {
        "params": round(mean("params")),
        "gflops": mean("gflops"),
        "params_removed": mean("params_sparsity"),
        "flops_removed": mean("flops_sparsity"),
    }


def wer_of(own: Errors) -> dict[str, float]:
    errors, words = own
    low, high = bootstrap(errors, words, samples=10_000, confidence=0.95, seed=0)
    return {"wer": sum(errors) / sum(words), "wer_low": low, "wer_high": high}


def against(name: str, own: Errors, other: Errors) -> dict[str, float]:
    """How much more of the words are wrong than with the other, with a paired interval."""
    errors, words = own
    paired = paired_difference(errors, other[0], words, samples=10_000)
    key = f"to_{name}"
    return {key: paired.difference, f"{key}_low": paired.low, f"{key}_high": paired.high}


@torch.inference_mode()
def measured_speedups(groups: dict[Key, list[Path]]) -> dict[Key, float]:
    """Teacher's time over the model's, batch 1, 10 s of audio, one thread: median over seeds."""
    torch.set_num_threads(1)
    teacher = bundle.load(groups["teacher", ""][0] / "model").model.eval()
    features, num_frames = torch.randn(1, 1000, MELS), torch.tensor([1000])

    def speedup(folder: Path) -> float:
        model = bundle.load(folder / "model").model.eval()
        seconds = interleaved(
            {
                "teacher": lambda: teacher(features, num_frames),
                "model": lambda: model(features, num_frames),
            },
            repeats=LATENCY_REPEATS,
        )
        pairs = zip(seconds["teacher"], seconds["model"], strict=True)
        return statistics.median(whole / small for whole, small in pairs)

    return {key: statistics.median(map(speedup, folders)) for key, folders in groups.items()}


if __name__ == "__main__":
    main()
