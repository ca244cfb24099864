"""Controlled Sparsity (Gallego-Posada et al., 2022): the budget is a constraint without a rate.

Hard-concrete gates are trained together with the weights as in `l0`, but the constraint is an
inequality, and its multiplier is 0 whenever the constraint holds:

    min over weights and gates, max over lambda >= 0, of
    task + logit + layer + lambda * (c - allowed)

c is the expected cost as a share of the whole model. There is one constraint for the model, or one
for each kind of unit. If several resources have targets, each has one constraint for the model.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from core.config.settings import ConcreteSettings
from core.conformer.axes import Mask
from core.pruning.lagrangian import MinMax
from core.pruning.selection import uniform_share
from core.pruning.space import Space
from core.training.gate_stage import GateMethod, GateStage, expected_sparsities
from core.training.hard_concrete_stage import ConcreteStage
from core.training.method import MethodContext


class Settings(ConcreteSettings):
    """Settings of `constrained`."""

    ignores = ("pruning.further_targets",)

    constraint: Literal["model", "kind"] = "model"
    """One constraint for the whole model's resource, or one for the units of each kind."""


# A multiplier must be able to outweigh the loss within a part of the run, however long that is.
ASCENT = 200.0
# Gates that remember run on when the constraint holds: with Adam's own betas 50 % became 73 %.
GATE_BETAS = (0.0, 0.9)
# An inequality is met from both sides in turn; gates that come to rest stay at it.
SETTLING = 0.3


class Constraints:
    """The budget as inequalities, each with a multiplier."""

    def __init__(self, ctx: MethodContext, *, is_restarted: bool = True) -> None:
        config = ctx.config.pruning
        self._ctx = ctx
        self._is_whole = config.settings(Settings).constraint == "model"
        self._kinds = [] if self._is_whole else kinds(ctx.space)
        shares = [uniform_share(ctx.space, t, name) for name, t in config.targets.items()]
        # Of several resources, the one that leaves the smallest share of units open decides.
        self._allowed = min(shares)
        self.minmax = MinMax(
            len(config.targets) if self._is_whole else max(1, len(self._kinds)),
            rate=ASCENT / max(1, config.steps),
            # rate * gain is 200 whatever the number of steps: a rise of the violation by 0.01
            # raises lambda by 2 at once, and a violation of 0.01 over the whole run does the same.
            gain=float(max(1, config.steps)),
            is_restarted=is_restarted,
            device=ctx.device,
        )
        self.optimizers = [self.minmax.dual]

    def penalty(self, expected: Mask, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        del step
        violations = self.violations(expected)
        metrics = {"violation": violations.max(), "lambda": self.minmax.values.max()}
        return self.minmax.penalty(violations), metrics

    def violations(self, expected: Mask) -> Tensor:
        """Returns the excess over each constraint, as a share; negative where it holds."""
        if self._is_whole:
            targets = self._ctx.config.pruning.targets
            removed = expected_sparsities(self._ctx, expected)
            return torch.stack([targets[name] - share for name, share in removed.items()])
        return torch.stack(
            [self._open_share(expected, kind) - self._allowed for kind in self._kinds]
        )

    def _open_share(self, expected: Mask, kind: str) -> Tensor:
        axes = [axis for axis in self._ctx.space.prunable if axis.kind == kind]
        return torch.cat([expected[axis.name] for axis in axes]).mean()

    def post_step(self) -> None:
        self.minmax.post_step()

    def state_dict(self) -> dict[str, Any]:
        return self.minmax.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.minmax.load_state_dict(state)


class Constrained(GateMethod):
    def stage(self, ctx: MethodContext) -> GateStage:
        return stage(ctx)


def stage(ctx: MethodContext, *, is_restarted: bool = True) -> GateStage:
    control = Constraints(ctx, is_restarted=is_restarted)
    return ConcreteStage(ctx, control, gate_betas=GATE_BETAS, settling=SETTLING)


def kinds(space: Space) -> list[str]:
    """Returns the kinds of units that may be removed; a module is removed with its last unit."""
    return list(dict.fromkeys(axis.kind for axis in space.units))


METHOD = Constrained()
