"""How much of the speed-up its FLOPs promise an extracted model has, in torch and ONNX Runtime.

Batch 1, 10 and 30 s of audio; every axis keeps the same share of its units.
"""

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measuring import arguments, emit, on_one_utterance
from torch import nn

from core.config import ModelConfig, PruningConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.deploy.bench import Runtime, in_runtime
from core.methods.magnitude import magnitudes
from core.pruning.budget import Budget, choose
from core.pruning.extraction import as_mask, extract
from core.pruning.scoring import ranked_within
from core.pruning.space import Space, whole_cost

SECONDS = (10.0, 30.0)
SPARSITIES = (0.5, 0.7)
RUNTIMES: tuple[Runtime, ...] = ("torch", "onnxruntime")
SIZES = ("small", "medium", "tiny")
PROMISED = ("small", "medium")
"""Those the law is about; tiny models are ruled by overheads."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for size in args.sizes for row in measured(size, args.repeats, args.threads)]
    ratios = {f"ratio_{100 * sparsity:.0f}": least(rows, sparsity) for sparsity in SPARSITIES}
    emit("realised_speed", rows, ratios, args)


def measured(size: str, repeats: int, threads: int) -> list[dict[str, Any]]:
    models = cut(size)
    rows = []
    with TemporaryDirectory() as scratch:
        for runtime in RUNTIMES:
            ready: dict[str, nn.Module] = {}
            for sparsity, model in models.items():
                folder = Path(scratch) / f"{runtime} {sparsity}"
                folder.mkdir()
                ready[str(sparsity)] = in_runtime(model, runtime, folder, threads)
            for seconds in SECONDS:
                taken = on_one_utterance(ready, seconds, repeats=repeats)
                dense = flops(models[0.0], seconds)
                rows += [
                    {"name": size, "runtime": runtime, "seconds": seconds}
                    | row_of(sparsity, taken, dense / flops(models[sparsity], seconds))
                    for sparsity in SPARSITIES
                ]
    return rows


def cut(size: str) -> dict[float, Conformer]:
    """The dense model and those with a share of its FLOPs removed.

    What is chosen by a latency target would go here, once there is one.
    """
    torch.manual_seed(0)
    model = Conformer(Shape.of(ModelConfig(size=size), 128)).eval()  # type: ignore[arg-type]
    space = Space.of(model, PruningConfig().axes, SECONDS[0])
    scores = ranked_within(magnitudes(model, space.units))
    models = {0.0: model}
    for sparsity in SPARSITIES:
        budget = Budget(keep=1 - sparsity, resource="flops")
        choice = choose(space, scores, budget, is_filled=True)
        models[sparsity] = extract(model, as_mask(choice)).eval()
    return models


def row_of(sparsity: float, taken: Mapping[str, list[float]], promised: float) -> dict[str, Any]:
    whole, cut_down = taken["0.0"], taken[str(sparsity)]
    pairs = zip(whole, cut_down, strict=True)
    realised = statistics.median(dense / small for dense, small in pairs)
    return {
        "sparsity": sparsity,
        "dense_ms": 1000 * statistics.median(whole),
        "small_ms": 1000 * statistics.median(cut_down),
        "promised": promised,
        "realised": realised,
        "share": realised / promised,
    }


def least(rows: Iterable[Mapping[str, Any]], sparsity: float) -> float | None:
    """The least share of all sizes and lengths, each in the runtime that is fastest for it."""
    best: dict[tuple[str, float], tuple[float, float]] = {}
    for row in rows:
        if row["sparsity"] == sparsity and row["name"] in PROMISED:
            place = (row["name"], row["seconds"])
            best[place] = min(best.get(place, (float("inf"), 0.0)), (row["small_ms"], row["share"]))
    return min((share for _, share in best.values()), default=None)


def flops(model: Conformer, seconds: float) -> float:
    return float(whole_cost(model, seconds).flops)


if __name__ == "__main__":
    main()
