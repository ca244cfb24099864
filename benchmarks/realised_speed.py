"""How much of the speed-up its FLOPs promise an extracted model has: batch 1, 10 s of audio."""

import statistics

import torch
from measuring import arguments, emit, interleaved

from core.config import ModelConfig, PruningConfig
from core.conformer.model import Conformer
from core.conformer.shape import MELS, Shape
from core.methods.magnitude import magnitudes
from core.pruning.budget import Budget, choose
from core.pruning.extraction import as_mask, extract
from core.pruning.scoring import ranked_within
from core.pruning.space import Space

SECONDS = 10.0
SPARSITIES = (0.5, 0.7)
PROMISED = ("small", "tiny")
"""The first is the one the law is about; tiny models are ruled by overheads."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for size in PROMISED for row in measured(size, args.repeats)]
    shares = {row["sparsity"]: row["share"] for row in rows if row["name"] == PROMISED[0]}
    emit("realised_speed", rows, {"ratio_50": shares[0.5], "ratio_70": shares[0.7]}, args)


@torch.inference_mode()
def measured(size: str, repeats: int) -> list[dict[str, object]]:
    torch.manual_seed(0)
    model = Conformer(Shape.of(ModelConfig(size=size), 128)).eval()  # type: ignore[arg-type]
    space = Space.of(model, PruningConfig().axes, SECONDS)
    scores = ranked_within(magnitudes(model, space.units))
    models = {"dense": model}
    for sparsity in SPARSITIES:
        budget = Budget(keep=1 - sparsity, resource="flops")
        choice = choose(space, scores, budget, is_filled=True)
        models[str(sparsity)] = extract(model, as_mask(choice)).eval()
    features, num_frames = torch.randn(1, 1000, MELS), torch.tensor([1000])
    runs = {name: lambda m=m: m(features, num_frames) for name, m in models.items()}
    seconds = interleaved(runs, repeats=repeats)
    return [
        row_of(size, sparsity, seconds, flops(models["dense"]) / flops(models[str(sparsity)]))
        for sparsity in SPARSITIES
    ]


def row_of(
    size: str, sparsity: float, seconds: dict[str, list[float]], promised: float
) -> dict[str, object]:
    pairs = zip(seconds["dense"], seconds[str(sparsity)], strict=True)
    realised = statistics.median(dense / small for dense, small in pairs)
    return {
        "name": size,
        "sparsity": sparsity,
        "dense_ms": 1000 * statistics.median(seconds["dense"]),
        "small_ms": 1000 * statistics.median(seconds[str(sparsity)]),
        "promised": promised,
        "realised": realised,
        "share": realised / promised,
    }


def flops(model: Conformer) -> float:
    counts = {axis.name: axis.size for axis in model.axes()}
    return float(model.cost(counts, SECONDS).flops)


if __name__ == "__main__":
    main()
