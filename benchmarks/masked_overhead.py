"""What gates cost: a training step under gates against a dense one, side by side."""

import statistics
from typing import Any

import torch
from measuring import arguments, emit, interleaved

from core.config import TrialConfig
from core.conformer.gate import fold, gated_forward, tensors_of
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.pruning.constraint import Lagrangian
from core.pruning.hard_concrete import HardConcrete
from core.pruning.space import Space
from core.training.distillation import ctc_loss
from core.training.gating import NARROW_FROM
from core.training.optimizers import primal

SIZES = ("tiny", "small")
UTTERANCES = 15
"""Of 4 s each: the 60 s of speech that are a batch by default."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [measured(size, args.repeats) for size in SIZES]
    emit("masked_overhead", rows, {"ratio": max(row["ratio"] for row in rows)}, args)


def measured(size: str, repeats: int) -> dict[str, Any]:
    """Medians of whole steps: forward, backward and all optimizers, gates as open as they start."""
    config = TrialConfig.parse({"model": {"size": size}})
    torch.manual_seed(0)
    model = Conformer(Shape.of(config.model, 128)).train()
    space = Space.of(model, config.pruning.axes, 10.0)
    start = {axis.name: 3.0 for axis in space.prunable}
    gates = HardConcrete(space.prunable, start=start)
    lagrangian = Lagrangian(quadratic_start=50.0)
    features = torch.randn(UTTERANCES, 400, 80)
    num_frames = torch.full((UTTERANCES,), 400)
    tokens = torch.randint(1, 128, (UTTERANCES, 12))
    num_tokens = torch.full((UTTERANCES,), 12)
    weights = primal(model.parameters(), learning_rate=1e-5, weight_decay=0.0)
    rest = [torch.optim.Adam(gates.parameters(), lr=1e-4)]
    rest.append(torch.optim.Adam(lagrangian.parameters(), lr=1e-4, maximize=True))

    def dense() -> None:
        weights.zero_grad()
        ctc_loss(model(features, num_frames), tokens, num_tokens).backward()
        weights.step()

    def masked() -> None:
        for optimizer in (weights, *rest):
            optimizer.zero_grad()
        folded = fold(tensors_of(model), space.axes, gates.sample(), narrow_from=NARROW_FROM)
        loss = ctc_loss(gated_forward(model, features, num_frames, folded), tokens, num_tokens)
        expected = space.sparsity(space.mask_cost(gates.open_probability()), "flops")
        (loss + lagrangian.penalty(torch.as_tensor(0.1 - expected))).backward()
        for optimizer in (weights, *rest):
            optimizer.step()

    seconds = interleaved({"dense": dense, "masked": masked}, repeats=repeats)
    ratios = [m / d for m, d in zip(seconds["masked"], seconds["dense"], strict=True)]
    return {
        "name": size,
        "dense_ms": 1000 * statistics.median(seconds["dense"]),
        "masked_ms": 1000 * statistics.median(seconds["masked"]),
        "ratio": statistics.median(ratios),
    }


if __name__ == "__main__":
    main()
