"""Whether asking for a share of the latency gives that share, measured end to end: batch 1, 10 s.

A table is measured once a size; then models are cut to shares of it by magnitude and by chance, and
each is timed in turn with the unpruned one. Nothing is trained: time does not ask for it.
"""

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from measuring import arguments, emit

from core.config.pruning import AxisKind
from core.config.trial import ModelConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.evaluation.timer import latency_seconds
from core.latency.measure import latency_table
from core.methods.magnitude import magnitudes
from core.pruning.extraction import as_mask, extract
from core.pruning.scoring import rank_within_axis
from core.pruning.selection import Budget, Scores, choose
from core.pruning.space import Space

SECONDS = 10.0
KINDS: tuple[AxisKind, ...] = ("frontend", "width", "head", "inner", "channel", "module")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"])
    parser.add_argument("--removed", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--table-repeats", type=int, default=7)
    parser.add_argument("--multiple-of", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for size in args.sizes for row in measured(size, args)]
    emit("latency_target", rows, {"worst": max(abs(row["off"]) for row in rows)}, args)


@torch.inference_mode()
def measured(size: str, args: Any) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    shape = Shape.of(ModelConfig(size=size), 128)  # type: ignore[arg-type]
    tables = {
        multiple_of: latency_table(
            shape,
            utterance_seconds=SECONDS,
            repeats=args.table_repeats,
            threads=args.threads,
            device=torch.device("cpu"),
            multiple_of=multiple_of,
        )
        for multiple_of in args.multiple_of
    }
    rows = []
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        model = Conformer(shape).eval()
        for multiple_of, table in tables.items():
            space = Space.of(model, KINDS, SECONDS, latency=table)
            by_size = rank_within_axis(magnitudes(model, space.units))
            for how, worth in {"magnitude": by_size, "chance": noise(space)}.items():
                name = f"{size}, {how}, seed {seed}, multiples of {multiple_of}"
                rows += timed(name, space, worth, multiple_of, args)
    return rows


def noise(space: Space) -> dict[str, torch.Tensor]:
    return {axis.name: torch.rand(axis.size) for axis in space.units}


def timed(
    name: str, space: Space, scores: Scores, multiple_of: int, args: Any
) -> list[dict[str, Any]]:
    """All targets of one order, in turn with the unpruned model."""
    models: dict[float, Conformer] = {0.0: space.model}
    for removed in args.removed:
        budget = Budget(keep=1 - removed, resource="latency")
        choice = choose(space, scores, budget, is_filled=True, multiple_of=multiple_of)
        models[removed] = extract(space.model, as_mask(choice)).eval()
    seconds: dict[float, list[float]] = {share: [] for share in models}
    for _ in range(args.repeats):  # in turn, and each warm, as a trial states its latency
        for share, model in models.items():
            seconds[share].append(warm_seconds(model))
    return [row_of(name, removed, space, models[removed], seconds) for removed in args.removed]


def warm_seconds(model: Conformer) -> float:
    return latency_seconds(model, utterance_seconds=SECONDS, repeats=3, device=torch.device("cpu"))


def row_of(
    name: str,
    removed: float,
    space: Space,
    model: Conformer,
    seconds: Mapping[float, list[float]],
) -> dict[str, Any]:
    pairs = zip(seconds[removed], seconds[0.0], strict=True)
    kept = statistics.median(small / dense for small, dense in pairs)
    cost = space.dense_cost(model)
    return {
        "name": name,
        "asked": 1 - removed,
        "by_table": 1 - float(space.sparsity(cost, "latency")),
        "measured": kept,
        "off": kept / (1 - removed) - 1,
        "flops_kept": 1 - float(space.sparsity(cost, "flops")),
        "dense_ms": 1000 * statistics.median(seconds[0.0]),
        "small_ms": 1000 * statistics.median(seconds[removed]),
    }


if __name__ == "__main__":
    main()
