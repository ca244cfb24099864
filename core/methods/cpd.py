"""Comb, Prune, Distill (arXiv 2408.03046), our reading: rounds of scoring, removal and training.

The paper finds out from gradients which weights depend on each other; here the axes of the model
state it, and a test compares both. In each round every unit is scored by the mean over utterances
of (dL/dz)^2, divided by its cost. The lowest units are removed, so that each round removes an equal
part of the target. Then the student is trained with the teacher until the next round.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from core.config.settings import SearchSettings
from core.conformer.axes import Axis, Mask
from core.data.batching import Batch
from core.pruning.gate_gradients import fisher
from core.pruning.scoring import divide_by_cost
from core.training.distillation import gated_loss
from core.training.gate_stage import GateMethod, GateStage
from core.training.loop import Trainable
from core.training.method import MethodContext, SearchResult


class Settings(SearchSettings):
    """Settings of `cpd`."""

    ignores = ("pruning.further_targets",)

    rounds: int = Field(8, ge=1, le=1000)
    """Number of removals into which the search is divided."""


class ClosedGates(nn.Module):
    """Gates that are open or closed for good, and the order of the units."""

    values: Tensor
    order: Tensor

    def __init__(self, axes: list[Axis]) -> None:
        super().__init__()
        self._names = [axis.name for axis in axes]
        self._sizes = [axis.size for axis in axes]
        self.register_buffer("values", torch.ones(sum(self._sizes)))
        self.register_buffer("order", torch.zeros(sum(self._sizes), dtype=torch.float64))

    def close(self, scores: dict[str, Tensor], remaining: dict[str, Tensor], number: int) -> None:
        """Closes the units that do not remain, and orders the others by these scores."""
        worth = torch.cat([scores[name] for name in self._names]).to(self.order)
        stays = torch.cat([remaining[name] for name in self._names]).to(self.values)
        ranks = worth.argsort(stable=True).argsort(stable=True).double() / len(worth)
        # Units that are still open get `number` plus a rank below 1: those that a later round ranks
        # stand above all that closed before. Closed in round 0: 0.x, in round 1: 1.x.
        self.order.copy_(torch.where(self.values > 0, number + ranks, self.order))
        self.values.mul_(stays)

    def sample(self) -> dict[str, Tensor]:
        return self._by_axis(self.values.clone())

    median = open_probability = sample

    def scores(self) -> dict[str, Tensor]:
        return self._by_axis(self.order.clone())

    def clamp(self) -> None:
        """Changes nothing: the gates are exactly 0 or 1."""

    def _by_axis(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._names, values.split(self._sizes), strict=True))


class NoControl:
    """A control without parameters: the rounds hold the budget."""

    optimizers: tuple[torch.optim.Optimizer, ...] = ()

    def penalty(self, expected: Mask, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        del expected, step
        return torch.zeros(()), {}

    def post_step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Rounds(GateStage):
    """Removals, with training steps between them."""

    def __init__(self, ctx: MethodContext) -> None:
        # On the host: which are closed is known between rounds, and closed units are left out.
        self.closed = ClosedGates(list(ctx.space.units))
        super().__init__(ctx, self.closed, NoControl())
        self.rounds = self.config.settings(Settings).rounds
        # Without a search all rounds follow each other, whatever the number of steps.
        self._rounds = min(self.rounds, self.steps) if self.steps else self.rounds

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        for number in range(self._rounds):
            # 10 steps in 3 rounds: removals before steps 0, 3 and 6.
            if step == number * self.steps // self._rounds:
                self.remove(number)
        return super().step(batch, step)

    def remove(self, number: int) -> None:
        """Closes the units that this round removes; round 0 is the first."""
        ctx, model = self.ctx, self.model.eval()
        axes, mask = list(ctx.space.units), self.closed.sample()
        sensitivity = fisher(
            model, axes, ctx.labeled, gated_loss(model, ctx.config.loss), mask=mask
        )
        scores = divide_by_cost(ctx.space, sensitivity, self.config.resource)
        # Closed units stay closed: they come first in the order of removal.
        active = {n: torch.where(mask[n] > 0, v, -1.0) for n, v in scores.items()}
        # Target 0.6 in 3 rounds: 0.2, 0.4 and 0.6 are removed in all after each.
        remaining = ctx.choose(active, ctx.target * (number + 1) / self._rounds)
        self.closed.close(scores, remaining, number)


class CombPruneDistill(GateMethod):
    def stage(self, ctx: MethodContext) -> Rounds:
        return Rounds(ctx)

    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        """Returns the order of removal; without a search, all rounds follow each other."""
        stage = search if isinstance(search, Rounds) else self.stage(ctx)
        for number in range(0 if search else stage.rounds):
            stage.remove(number)
        return SearchResult(scores=stage.closed.scores(), reference={})


METHOD = CombPruneDistill()
