"""Models of several sizes, trained together in the weights that they share.

A smaller model's units are among a larger one's. Each step trains the largest, the smallest and
some drawn between them (the sandwich rule, Yu & Huang, 2019), all taught by the frozen teacher,
which hears a batch once. Each size runs narrowed, so that it costs what its own FLOPs are: a step
takes as long as its sizes one after the other, and the teacher's forward pass.

Batch-norm statistics are nobody's while all train: each size has its own estimated when it is cut.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from core.conformer.axes import Mask
from core.conformer.masking import fold, named_tensors
from core.conformer.model import Conformer
from core.data.batching import Batch
from core.distributed import broadcast_draw
from core.pruning.extraction import as_mask
from core.pruning.reconstruction import reference_gates
from core.pruning.selection import Scores
from core.pruning.space import Choice
from core.training.gate_stage import masked_losses
from core.training.loop import Losses, autocast, optimizer_step
from core.training.method import MethodContext, tuning_rates
from core.training.optimizers import primal


class Nested:
    """The steps in which all sizes learn."""

    def __init__(
        self, bench: MethodContext, choices: Sequence[Choice], *, steps: int, drawn_sizes: int = 0
    ) -> None:
        """Make them from their beginning.

        Args:
            bench: whose student holds the weights.
            choices: what each size keeps, the largest first.
            steps: in all; rates rise and fall over them as in tuning.
            drawn_sizes: sizes that a step draws in addition to the largest and the smallest.
        """
        config = bench.config
        self.bench, self.steps, self._num_drawn = bench, steps, 2 + drawn_sizes
        self.masks = [as_mask(_on(choice, bench.device)) for choice in choices]
        self.rates = tuning_rates(config)
        bench.student.set_dropout(config.tuning.dropout)
        projection = bench.distillation.projection
        self.primal = primal(
            [*bench.student.parameters(), *projection.parameters()],
            learning_rate=self.rates.peak,
            weight_decay=self.rates.weight_decay,
        )

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        self.bench.student.train()
        masks = self._drawn()
        return optimizer_step(
            batch,
            lambda part: self._losses(part, masks),
            parts=self.bench.config.training.micro_batches,
            optimizer=self.primal,
            rate=self.rates.at(step, steps=self.steps),
            clip=self.rates.clip,
        )

    def _drawn(self) -> list[Mask]:
        """The sizes of a step, the largest first."""
        chances = broadcast_draw(torch.rand(len(self.masks)))
        chances[[0, -1]] = math.inf
        count = min(len(self.masks), self._num_drawn)
        return [self.masks[i] for i in chances.topk(count).indices.sort().values]

    def _losses(self, batch: Batch, masks: Sequence[Mask]) -> Iterator[Losses]:
        """Each size's part of the mean over sizes."""
        bench = self.bench
        with autocast(batch.features.device, bench.config.runtime.precision):
            taught = bench.distillation.taught(batch.features, batch.num_frames)
        for mask in masks:
            losses = masked_losses(bench, mask, batch, taught=taught)
            yield {name: loss / len(masks) for name, loss in losses.items()}

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def restore(self, state: dict[str, Any]) -> None:
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])

    def _stateful(self) -> dict[str, Any]:
        return {
            "model": self.bench.student,
            "projection": self.bench.distillation.projection,
            "primal": self.primal,
        }


def nested_scores(
    scores: Scores, targets: Sequence[float], choose: Callable[[Scores, float], Choice]
) -> dict[str, Tensor]:
    """Scores by which every size holds all smaller ones, though what is left of a budget is filled.

    What the smallest size keeps is worth more than all else, then what the next one adds, and so
    on; within a tier the order stays. (Where several resources have targets, each size tilts the
    order to meet all of them, and sizes may overlap instead.)

    Args:
        scores: what each unit is worth.
        targets: the shares to remove.
        choose: the structure that scores give for such a share.
    """
    tiers = {name: values.double() for name, values in scores.items()}
    every = torch.cat([values.flatten() for values in tiers.values()])
    height = 1 + every.max() - every.min()
    for target in sorted(set(targets), reverse=True):
        choice = choose(tiers, target)
        tiers = {name: v + height * choice[name].to(v) for name, v in tiers.items()}
    return tiers


@torch.no_grad()
def absorb(model: Conformer, gates: Mask, choice: Choice) -> None:
    """Fold gates into the weights, so that these compute without them what they did with them.

    Gates that are shut are let be: their units begin again where they were left.
    """
    values = reference_gates(model.axes(), gates, choice)
    folded = fold(named_tensors(model), model.axes(), values, narrow_from=math.inf)
    for name, parameter in model.named_parameters():
        parameter.copy_(folded.tensors[name])


def _on(choice: Choice, device: torch.device) -> dict[str, Tensor]:
    return {name: units.to(device) for name, units in choice.items()}
