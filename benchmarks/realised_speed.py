"""How much of the speed-up its FLOPs promise an extracted model has, in torch and ONNX Runtime.

Batch 1, 10 and 30 s of audio. Once every axis keeps the same share of its units, and once the same
order is cut to that share of FLOPs and to nearly the share of latency that it promises, by a table
of this machine's times in torch: units go where they take time, too.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measuring import arguments, emit, on_one_utterance
from torch import nn

from core.config.pruning import PruningConfig
from core.config.trial import ModelConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.export.benchmark import load_in_runtime
from core.inference.exported_model import Runtime
from core.latency.measure import latency_table
from core.methods.magnitude import magnitudes
from core.pruning.extraction import as_mask, extract
from core.pruning.scoring import rank_within_axis
from core.pruning.selection import Budget, choose
from core.pruning.space import Space, whole_cost

SECONDS = (10.0, 30.0)
SPARSITIES = (0.5, 0.7)
RUNTIMES: tuple[Runtime, ...] = ("torch", "onnxruntime")
SIZES = ("small", "medium", "tiny")
PROMISED = ("small", "medium")
"""Those the law is about; tiny models are ruled by overheads."""
CHOICES = ("flops", "flops and latency")
REALISED = 0.95
"""Of the promise, what the latency target asks for: a little more than the law wants."""
LANES = 16
"""Units in multiples of the machine's widest vectors, where latency counts."""
TABLE_REPEATS = 5


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for size in args.sizes for row in measured(size, args.repeats, args.threads)]
    least_of = {choice: [least(rows, choice, s) for s in SPARSITIES] for choice in CHOICES}
    best = [
        max((found for found in each if found), default=None)
        for each in zip(*least_of.values(), strict=True)
    ]
    ratios = {f"ratio_{100 * s:.0f}": ratio for s, ratio in zip(SPARSITIES, best, strict=True)}
    emit("realised_speed", rows, {**ratios, "least": least_of}, args)


def measured(size: str, repeats: int, threads: int) -> list[dict[str, Any]]:
    models = cut(size, threads)
    dense = models["", 0.0]
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as scratch:
        for runtime in RUNTIMES:
            ready: dict[str, nn.Module] = {}
            for number, (key, model) in enumerate(models.items()):
                folder = Path(scratch) / f"{runtime} {number}"
                folder.mkdir()
                ready[str(key)] = load_in_runtime(model, runtime, folder, threads)
            for seconds in SECONDS:
                taken = on_one_utterance(ready, seconds, repeats=repeats)
                whole = taken[str(("", 0.0))]
                rows += [
                    {
                        "name": size,
                        "runtime": runtime,
                        "seconds": seconds,
                        "choice": choice,
                        "sparsity": sparsity,
                        **compared(whole, taken[str((choice, sparsity))]),
                        "promised": flops(dense, seconds) / flops(model, seconds),
                    }
                    for (choice, sparsity), model in models.items()
                    if choice
                ]
    return [row | {"share": row["realised"] / row["promised"]} for row in rows]


def cut(size: str, threads: int) -> dict[tuple[str, float], Conformer]:
    """The dense model, and by choice those with a share of its FLOPs removed."""
    torch.manual_seed(0)
    shape = Shape.of(ModelConfig(size=size), 128)  # type: ignore[arg-type]
    model = Conformer(shape).eval()
    table = latency_table(
        shape,
        utterance_seconds=SECONDS[0],
        repeats=TABLE_REPEATS,
        threads=threads,
        device=torch.device("cpu"),
        multiple_of=LANES,
    )
    space = Space.of(model, PruningConfig().axes, SECONDS[0], latency=table)
    scores = rank_within_axis(magnitudes(model, space.units))
    models = {("", 0.0): model}
    for choice, sparsity in product(CHOICES, SPARSITIES):
        keep, has_latency = 1 - sparsity, choice != "flops"
        kept = choose(
            space,
            scores,
            Budget(keep=keep, resource="flops"),
            [Budget(keep=keep / REALISED, resource="latency")] if has_latency else [],
            is_filled=True,
            multiple_of=LANES if has_latency else 1,
        )
        models[choice, sparsity] = extract(model, as_mask(kept)).eval()
    return models


def compared(whole: Sequence[float], small: Sequence[float]) -> dict[str, float]:
    pairs = zip(whole, small, strict=True)
    return {
        "dense_ms": 1000 * statistics.median(whole),
        "small_ms": 1000 * statistics.median(small),
        "realised": statistics.median(dense / less for dense, less in pairs),
    }


def least(rows: Iterable[Mapping[str, Any]], choice: str, sparsity: float) -> float | None:
    """The least share of all sizes and lengths, each in the runtime that is fastest for it."""
    best: dict[tuple[str, float], tuple[float, float]] = {}
    for row in rows:
        is_asked = (row["choice"], row["sparsity"]) == (choice, sparsity)
        if is_asked and row["name"] in PROMISED:
            place = (row["name"], row["seconds"])
            best[place] = min(best.get(place, (float("inf"), 0.0)), (row["small_ms"], row["share"]))
    return min((share for _, share in best.values()), default=None)


def flops(model: Conformer, seconds: float) -> float:
    return float(whole_cost(model, seconds).flops)


if __name__ == "__main__":
    main()
