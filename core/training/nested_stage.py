"""Training of a family: models of several sizes that share weights.

A smaller model's units are a subset of a larger one's. Each step trains the largest, the smallest
and some sampled between them (the sandwich rule, Yu & Huang, 2019), all distilled from the frozen
teacher, which computes a batch once. Each size is computed without its closed units, so a step
takes as long as its sizes one after the other and the teacher's forward pass.

Batch-norm statistics of the shared model fit no size: each size gets its own at its extraction.
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
from core.training.method import MethodContext, tuning_rates
from core.training.optim_step import Losses, autocast, optimizer_step
from core.training.optimizers import primal


class Nested:
    """The training steps of a family."""

    def __init__(
        self, ctx: MethodContext, choices: Sequence[Choice], *, steps: int, drawn_sizes: int = 0
    ) -> None:
        """Make them from their beginning.

        Args:
            ctx: whose student holds the weights.
            choices: what each size keeps, the largest first.
            steps: in all; rates rise and fall over them as in tuning.
            drawn_sizes: sizes that a step draws in addition to the largest and the smallest.
        """
        config = ctx.config
        self.ctx, self.steps, self._num_drawn = ctx, steps, 2 + drawn_sizes
        # On the host, where they are read without waiting: closed units are left out.
        self.masks = [as_mask(dict(choice)) for choice in choices]
        self.rates = tuning_rates(config)
        ctx.student.set_dropout(config.tuning.dropout)
        ctx.student.repeats_blocks = config.runtime.checkpointing
        projection = ctx.distillation.projection
        self.primal = primal(
            [*ctx.student.parameters(), *projection.parameters()],
            learning_rate=self.rates.peak,
            weight_decay=self.rates.weight_decay,
        )

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        self.ctx.student.train()
        masks = self._sample_masks()
        return optimizer_step(
            batch,
            lambda part: self._losses(part, masks),
            parts=self.ctx.config.training.parts,
            optimizer=self.primal,
            rate=self.rates.at(step, steps=self.steps),
            clip=self.rates.clip,
        )

    def _sample_masks(self) -> list[Mask]:
        """The sizes of a step, the largest first."""
        chances = broadcast_draw(torch.rand(len(self.masks)))
        # Infinite: the largest and the smallest size are always among the first `count`.
        chances[[0, -1]] = math.inf
        count = min(len(self.masks), self._num_drawn)
        # 5 sizes, 2 drawn: indices 0, 4 and two of 1, 2 and 3, sorted.
        return [self.masks[i] for i in chances.topk(count).indices.sort().values]

    def _losses(self, batch: Batch, masks: Sequence[Mask]) -> Iterator[Losses]:
        """Yield each size's part of the mean over sizes."""
        ctx = self.ctx
        with autocast(batch.features.device, ctx.config.runtime.precision):
            targets = ctx.distillation.teacher_output(
                batch.features, batch.num_frames, batch.tokens
            )
        for mask in masks:
            losses = masked_losses(ctx, mask, batch, targets=targets)
            yield {name: loss / len(masks) for name, loss in losses.items()}

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def restore(self, state: dict[str, Any]) -> None:
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])

    def _stateful(self) -> dict[str, Any]:
        return {
            "model": self.ctx.student,
            "projection": self.ctx.distillation.projection,
            "primal": self.primal,
        }


def nested_scores(
    scores: Scores, targets: Sequence[float], choose: Callable[[Scores, float], Choice]
) -> dict[str, Tensor]:
    """Return scores by which every size holds all smaller ones, also when budgets are filled.

    Units of the smallest size get the highest scores, then those that the next size adds, and so
    on; within such a tier the order stays. (Where several resources have targets, each size
    reweights the order to meet all of them, and a size may not hold all smaller ones.)

    Example: scores (3, 2, 1), of which the smaller size keeps the first and, to fill its budget,
    the third. With a height of 3, the scores become (6, 2, 4): the larger size keeps both.

    Args:
        scores: of each unit.
        targets: the shares to remove.
        choose: returns the choice of scores for such a share.
    """
    tiers = {name: values.double() for name, values in scores.items()}
    every = torch.cat([values.flatten() for values in tiers.values()])
    # More than any difference of scores: a unit of a higher tier outranks all of a lower one.
    height = 1 + every.max() - every.min()
    # The smallest size first: each later, larger one lifts again what the earlier ones hold.
    for target in sorted(set(targets), reverse=True):
        choice = choose(tiers, target)
        tiers = {name: v + height * choice[name].to(v) for name, v in tiers.items()}
    return tiers


@torch.no_grad()
def absorb(model: Conformer, gates: Mask, choice: Choice) -> None:
    """Fold gates into the weights, so that the model computes the same without them.

    Closed gates are not folded: the weights of their units stay as they are.
    """
    # Gates of 0 count as 1 here: nothing is removed, and every tensor has its old shape.
    values = reference_gates(model.axes(), gates, choice)
    folded = fold(named_tensors(model), model.axes(), values, narrow_from=math.inf)
    for name, parameter in model.named_parameters():
        parameter.copy_(folded.tensors[name])
