"""What gates and a teacher cost: steps under gates, and taught ones, against a dense one, in turn.

A taught step is one under gates with both distillation terms, the teacher's forward pass included.
"""

import statistics
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from benchmarks.lib.measurement import arguments, emit, interleaved
from core.config.trial import TrialConfig
from core.conformer.masking import fold, gated_forward, kept_unit_indices, named_tensors
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.decoders.ctc import ctc_loss
from core.pruning.gates.hard_concrete import HardConcrete
from core.pruning.lagrangian import Lagrangian
from core.pruning.space import Space
from core.training.distillation import Distillation, Student
from core.training.gate_stage import NARROW_FROM, active_blocks
from core.training.optim_step import autocast, weighted_total
from core.training.optimizers import primal

CPU = torch.device("cpu")
SIZES = ("tiny", "small")
UTTERANCES = 15
"""Of 4 s each: the 60 s of speech that are a batch by default."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [measured(size, args.repeats, args.precision) for size in SIZES]
    worst = {key: max(row[key] for row in rows) for key in ("ratio", "ratio_taught")}
    emit("masked_overhead", rows, {**worst, "precision": args.precision}, args)


def measured(size: str, repeats: int, precision: str) -> dict[str, Any]:
    """Medians of whole steps: forward, backward and all optimizers, gates as open as they start."""
    steps = Steps(size, precision)
    runs = {"dense": steps.dense, "masked": steps.masked, "taught": steps.taught}
    return row_of(size, interleaved(runs, repeats=repeats))


class Steps:
    """The three steps, of one model on one batch."""

    def __init__(self, size: str, precision: str, *, device: torch.device = CPU) -> None:
        config = TrialConfig.parse({"model": {"size": size}})
        torch.manual_seed(0)
        self.precision = precision
        # Each part is moved by itself: a device that is not there takes a module but once.
        teacher = Conformer(Shape.of(config.model, 128))
        self.model = deepcopy(teacher).train().to(device)
        self.distillation = Distillation(teacher.to(device), config.distillation)
        self.space = Space.of(self.model, config.pruning.axes, 10.0)
        start = {axis.name: 3.0 for axis in self.space.prunable}
        self.gates = HardConcrete(self.space.prunable, start=start).to(device)
        self.narrow_from = NARROW_FROM if device.type == "cpu" else None
        self.lagrangian = Lagrangian(quadratic_start=50.0).to(device)
        learned = [*self.model.parameters(), *self.distillation.projection.parameters()]
        self.optimizers = [
            primal(learned, learning_rate=1e-5, weight_decay=0.0),
            torch.optim.Adam(self.gates.parameters(), lr=1e-4, fused=True),
            torch.optim.Adam(self.lagrangian.parameters(), lr=1e-4, maximize=True, fused=True),
        ]
        features, tokens = torch.randn(UTTERANCES, 400, 80), torch.randint(1, 128, (UTTERANCES, 12))
        self.speech = features.to(device), torch.full((UTTERANCES,), 400)
        self.words = tokens.to(device), torch.full((UTTERANCES,), 12)

    def dense(self) -> None:
        with autocast(self.speech[0].device, self.precision):
            loss = ctc_loss(self.model(*self.speech), *self.words)
        self._descend(loss)

    def masked(self) -> None:
        self._descend(self._searched(is_taught=False))

    def taught(self) -> None:
        self._descend(self._searched(is_taught=True))

    def _searched(self, *, is_taught: bool) -> Tensor:
        space, mask = self.space, self.gates.sample()
        with autocast(self.speech[0].device, self.precision):
            folded = fold(named_tensors(self.model), space.axes, mask, narrow_from=self.narrow_from)
            output = gated_forward(self.model, *self.speech, folded)
            terms = {"task": ctc_loss(output, *self.words)}
            if is_taught:
                is_read = self.narrow_from is not None
                student = Student(
                    output=output,
                    width=kept_unit_indices(mask["width"]) if is_read else None,
                    is_active=active_blocks(self.model, folded),
                )
                terms |= self.distillation.losses(*self.speech, student)
        expected = space.sparsity(space.mask_cost(self.gates.open_probability()), "flops")
        penalty = self.lagrangian.penalty(torch.as_tensor(0.1 - expected))
        return weighted_total(terms, self.distillation)["total"] + penalty

    def _descend(self, loss: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()


def row_of(size: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Ratios are medians over rounds."""

    def to_dense(name: str) -> float:
        pairs = zip(seconds[name], seconds["dense"], strict=True)
        return statistics.median(each / dense for each, dense in pairs)

    milliseconds = {f"{name}_ms": 1000 * statistics.median(s) for name, s in seconds.items()}
    ratios = {"ratio": to_dense("masked"), "ratio_taught": to_dense("taught")}
    return {"name": size, **milliseconds, **ratios}


if __name__ == "__main__":
    main()
