"""Hard-concrete gates on all that may go: how they start, and the stage that cools them."""

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
from core.pruning.scoring import ranked_within
from core.training.gate_stage import Control, GateStage
from core.training.method import Method, MethodContext, load_method

NOTHING = 2.0
"""More than all units of an axis: none is left out of a step, however many are shut."""


class ConcreteStage(GateStage):
    """Weights and hard-concrete gates, which know how much of the search is done."""

    def __init__(
        self, bench: MethodContext, control: Control, *, shrink_rounds: int = 1, **settings: Any
    ) -> None:
        """Make a stage from its beginning.

        Args:
            bench: what it may touch.
            control: how the budget is enforced.
            shrink_rounds: after each but the last, what would be cut is shut for good.
            settings: those of any `GateStage`.
        """
        self._rounds = min(shrink_rounds, max(1, bench.config.pruning.steps))
        self.concrete = hard_concrete(bench, is_shrinking=shrink_rounds > 1)
        super().__init__(bench, self.concrete, control, **settings)
        if self.concrete.has_gradient_when_closed:
            self.narrow_from = NOTHING

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        number = step * self._rounds // self.steps
        if number > 0 and (step - 1) * self._rounds // self.steps < number:
            self._shrink(number)
        self.concrete.anneal(step / max(1, self.steps - 1))
        return super().step(batch, step)

    def _shrink(self, number: int) -> None:
        """Shut for good what goes in the first so many rounds; what gates remember, too, ends."""
        share = 1 - (1 - self.bench.target) ** (number / self._rounds)
        self.concrete.shrink(self.bench.choose(self.concrete.scores(), share))
        for optimizer in self.gate_primal:
            optimizer.state.clear()


def hard_concrete(bench: MethodContext, *, is_shrinking: bool = False) -> HardConcrete:
    """Gates on all that may go, open at first, and in the order of another method's scores.

    Those that move many weights at once start more open: they see the larger gradients.

    Raises:
        ConfigError: if `pruning.start_from` is a method that cannot score units at once.
    """
    settings = bench.config.pruning.settings(ConcreteSettings)
    axes = bench.space.prunable
    is_large = {axis.name: axis.is_whole or axis.kind == "width" for axis in axes}
    middle = {
        n: settings.module_log_alpha if large else settings.log_alpha
        for n, large in is_large.items()
    }
    moved = {name: settings.start_spread * order for name, order in start_order(bench).items()}
    start = {
        name: (alike + moved.get(name, torch.zeros(()))).clamp(-CLAMP, CLAMP)
        for name, alike in middle.items()
    }
    gates = KINDS[settings.gates](axes, start=start, is_shrinking=is_shrinking)
    return gates.to(bench.device)


def start_order(bench: MethodContext) -> dict[str, Float[Tensor, " _"]]:
    """By axis, each unit's rank among the scores of `pruning.start_from`, from -1 to 1.

    Inside its axis, as how much each axis is to lose is what the search is for.
    """
    name = bench.config.pruning.settings(ConcreteSettings).start_from
    if not name:
        return {}
    method = load_method(name)
    if not scores_at_once(method):
        able = [other for other in method_names() if scores_at_once(load_method(other))]
        raise ConfigError(
            "`start_from` must be a method that scores the teacher's units at once, one"
            f" of {', '.join(able)}, but is `{name}` instead"
        )
    # The other method reads its own table.
    pruning = bench.config.pruning.model_copy(update={"method": name})
    other = replace(bench, config=bench.config.model_copy(update={"pruning": pruning}))
    scores = method.search_result(other.restricted_to(method.needs), None).scores
    return {axis: centered_ranks(shares) for axis, shares in ranked_within(scores).items()}


def centered_ranks(shares: Float[Tensor, " units"]) -> Float[Tensor, " units"]:
    """Ranks as shares of an axis, 1/n to 1, moved to -1 to 1; a unit that is alone lies at 0."""
    size = len(shares)
    return ((2 * size * shares - size - 1) / max(1, size - 1)).float()


def scores_at_once(method: Method) -> bool:
    """Whether it only says what units are worth, of the teacher as it is and of all its axes."""
    own = type(method)
    return (
        own.search is Method.search
        and own.prepare_model is Method.prepare_model
        and own.axes is Method.axes
        and own.targets is Method.targets
    )
