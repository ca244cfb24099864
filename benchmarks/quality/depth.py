"""Depth on demand: word error rate at each depth, without tuning, by how the teacher was trained.

Teachers differ in nothing but intermediate CTC and stochastic depth. Each loses blocks from the
end, greedily, or at random (mean of three orders); what is left runs as it is, as `transcribe
--depth` would run it. WER is over dev and test together. Teachers are kept in --dir.
"""

import argparse
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.lib.measurement import arguments, emit
from core import bundle
from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.data.prepare import Speech, open_speech
from core.evaluation.batch_decoding import decode_store
from core.evaluation.wer import word_errors
from core.methods.interctc import order_by_error
from core.pruning.extraction import select_blocks
from core.pruning.space import whole_cost
from core.runtime import TrialDirs
from core.teacher import prepare
from core.training.setup import calibration_batches

TEACHERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "InterCTC": {"interctc_weight": 0.3},
    "stochastic depth": {"stochastic_depth": 0.3},
    "both": {"interctc_weight": 0.3, "stochastic_depth": 0.3},
}
SIZES = {"width": 64, "inner": 192, "heads": 4, "channels": 64, "frontend_channels": 24}
RANDOM_ORDERS = 3
CPU = torch.device("cpu")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--dir", type=Path, default=Path("runs/depth"))
    parser.add_argument("--seeds", type=int, default=1, help="teachers of each kind")
    parser.add_argument("--steps", type=int, default=700, help="of each teacher")
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    parser.add_argument("--blocks", type=int, default=6)
    args = parser.parse_args()
    found: dict[str, list[dict[int, float]]] = {}
    for seed in range(args.seeds):
        for name in args.teachers:
            for order, wers in measured(name, seed, args).items():
                found.setdefault(f"{name}, {order}", []).append(wers)
    rows = [row_of(name, runs) for name, runs in found.items()]
    model = Conformer(
        bundle.load(place_of(args, args.teachers[0], 0).teacher / "model").model.shape
    )
    gflops = {
        depth: float(whole_cost(select_blocks(model, range(depth)), 10.0).flops) / 1e9
        for depth in range(1, args.blocks + 1)
    }
    emit("depth", rows, {"steps": args.steps, "seeds": args.seeds, "gflops": gflops}, args)


def row_of(name: str, runs: Sequence[dict[int, float]]) -> dict[str, Any]:
    """Means over teachers, in %, deepest first."""
    depths = sorted(runs[0], reverse=True)
    means = {d: 100 * statistics.mean(run[d] for run in runs) for d in depths}
    return {"name": name, **{f"{d} blocks": round(means[d], 2) for d in depths}}


def measured(name: str, seed: int, args: argparse.Namespace) -> dict[str, dict[int, float]]:
    """WER by order and depth."""
    config, place = config_of(name, seed, args), place_of(args, name, seed)
    for report in prepare(config, place):
        if report.stage == "teacher":
            Console(stderr=True).print(f"{name} {seed} {report.step} WER {report.wer}")
    torch.set_num_threads(config.runtime.threads)
    model, speech = bundle.load(place.teacher / "model").model, open_speech(place.features)
    labelled = calibration_batches(config, speech, CPU)
    names = [block.name for block in model.typed_blocks()]
    greedy = [names.index(best) for best in order_by_error(model, names, labelled)]
    chance = torch.Generator().manual_seed(seed)
    random = [torch.randperm(len(names), generator=chance).tolist() for _ in range(RANDOM_ORDERS)]
    wer = cache(lambda blocks: wer_of(model, blocks, speech))  # orders share their beginnings

    def wers_of(order: Sequence[int]) -> dict[int, float]:
        return {d: wer(frozenset(order[:d])) for d in range(1, len(order) + 1)}

    by_chance = [wers_of(order) for order in random]
    return {
        "from the end": wers_of(list(range(len(names)))),
        "greedy": wers_of(greedy),
        "random": {d: statistics.mean(wers[d] for wers in by_chance) for d in by_chance[0]},
    }


def wer_of(model: Conformer, blocks: frozenset[int], speech: Speech) -> float:
    """With these blocks alone, of dev and test together."""
    small = select_blocks(model, blocks)
    texts = [
        text
        for store in (speech.dev, speech.test)
        for text in decode_store(small, store, speech.tokenizer, CPU)
    ]
    return word_errors([*speech.dev.texts, *speech.test.texts], texts).wer


def config_of(name: str, seed: int, args: argparse.Namespace) -> TrialConfig:
    """A teacher of 0.4 M parameters on the demo's commands."""
    return TrialConfig.parse(
        {
            "seed": seed,
            "corpus": {"tokens": "word", "vocabulary": 64},
            "model": SIZES | {"blocks": args.blocks},
            "teacher": {"steps": args.steps, **TEACHERS[name]},
            "training": {"batch_seconds": 16.0},
            "runtime": {"report_steps": 350, "checkpoint_steps": 350},
        }
    )


def place_of(args: argparse.Namespace, name: str, seed: int) -> TrialDirs:
    """Speech is shared; each teacher has a folder of its own."""
    root = args.dir.resolve()
    own = root / f"{name} {seed} {args.steps}".replace(" ", "-")
    return TrialDirs(teacher=own, features=root / "features", trial=own / "trial")


if __name__ == "__main__":
    main()
