"""Hard-concrete gates on all prunable axes: their start, and the stage that anneals them."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from core.config.base import ConfigError
from core.config.methods import method_names
from core.config.settings import ConcreteSettings
from core.data.batching import Batch
from core.pruning.gates.hard_concrete import CLAMP, KINDS, HardConcrete
from core.pruning.scoring import rank_within_axis
from core.training.gate_stage import Control, GateStage
from core.training.method import Method, MethodContext, load_method


class ConcreteStage(GateStage):
    """Trains weights and hard-concrete gates, which are annealed and may be closed in rounds."""

    def __init__(
        self, ctx: MethodContext, control: Control, *, shrink_rounds: int = 1, **settings: Any
    ) -> None:
        """Make a stage at its first step.

        Args:
            ctx: the trial's student, data and settings.
            control: enforces the budget.
            shrink_rounds: after each but the last, the units to remove are closed permanently.
            settings: those of any `GateStage`.
        """
        self._rounds = min(shrink_rounds, max(1, ctx.config.pruning.steps))
        self.concrete = make_hard_concrete_gates(ctx, is_shrinking=shrink_rounds > 1)
        super().__init__(ctx, self.concrete, control, **settings)
        if self.concrete.has_gradient_when_closed:
            self.narrow_from = None

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        number = step * self._rounds // self.steps
        # The first step of each round but the first: steps 4 and 7 of 10 in 3 rounds.
        if number > 0 and (step - 1) * self._rounds // self.steps < number:
            self._shrink(number)
        self.concrete.anneal(step / max(1, self.steps - 1))
        return super().step(batch, step)

    def _shrink(self, number: int) -> None:
        """Close the units of the first `number` rounds permanently; reset the gates' optimizers."""
        # Target 0.75 in 2 rounds: the first removes 0.5, half of what there is, as does the second.
        share = 1 - (1 - self.ctx.target) ** (number / self._rounds)
        self.concrete.shrink(self.ctx.choose(self.concrete.scores(), share))
        for optimizer in self.gate_primal:
            # Adam's moments belong to gates before they were reset.
            optimizer.state.clear()


def make_hard_concrete_gates(ctx: MethodContext, *, is_shrinking: bool = False) -> HardConcrete:
    """Make gates on all prunable axes, open at first, in the order of another method's scores.

    Gates of modules and of the width start more open, as their gradients are larger.

    Raises:
        ConfigError: if `pruning.start_from` is a method that cannot score units at once.
    """
    settings = ctx.config.pruning.settings(ConcreteSettings)
    axes = ctx.space.prunable
    is_large = {axis.name: axis.is_whole or axis.kind == "width" for axis in axes}
    middle = {
        n: settings.module_log_alpha if large else settings.log_alpha
        for n, large in is_large.items()
    }
    moved = {name: settings.start_spread * order for name, order in start_order(ctx).items()}
    start = {
        name: (alike + moved.get(name, torch.zeros(()))).clamp(-CLAMP, CLAMP).to(ctx.device)
        for name, alike in middle.items()
    }
    return KINDS[settings.gates](axes, start=start, is_shrinking=is_shrinking)


def start_order(ctx: MethodContext) -> dict[str, Float[Tensor, " _"]]:
    """Return each unit's rank among the scores of `pruning.start_from`, from -1 to 1.

    Ranks are within each axis, as the search decides how much each axis loses.

    Raises:
        ConfigError: if that method cannot score units at once.
    """
    name = ctx.config.pruning.settings(ConcreteSettings).start_from
    if not name:
        return {}
    method = load_method(name)
    if not scores_at_once(method):
        scoring_methods = [other for other in method_names() if scores_at_once(load_method(other))]
        raise ConfigError(
            "`start_from` must be a method that scores the teacher's units at once, one"
            f" of {', '.join(scoring_methods)}, but is `{name}` instead"
        )
    pruning = ctx.config.pruning.model_copy(update={"method": name})  # it reads its own table
    other = replace(ctx, config=ctx.config.model_copy(update={"pruning": pruning}))
    scores = method.search_result(other.restricted_to(method.needs), None).scores
    return {axis: centered_ranks(shares) for axis, shares in rank_within_axis(scores).items()}


def centered_ranks(shares: Float[Tensor, " units"]) -> Float[Tensor, " units"]:
    """Map ranks as shares of an axis, 1/n to 1, to -1 to 1; a single unit is at 0.

    For example, the shares 1/3, 2/3 and 1 become -1, 0 and 1.
    """
    size = len(shares)
    # Ranks r = size * share from 1 to size: (2 r - size - 1) / (size - 1).
    return ((2 * size * shares - size - 1) / max(1, size - 1)).float()


def scores_at_once(method: Method) -> bool:
    """Whether a method scores all axes of the unchanged teacher without a search."""
    own = type(method)
    return (
        own.search is Method.search
        and own.prepare_model is Method.prepare_model
        and own.axes is Method.axes
        and own.targets is Method.targets
    )
