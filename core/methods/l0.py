"""The method of arXiv 2305.19549, reconstructed from its abstract, with the parts of CoFi.

Hard-concrete gates on every unit and every module are trained together with the weights. A
Lagrangian with two multipliers drives the cost to a target that rises during a warm-up, while the
unpruned model teaches by its outputs and its layers:

    min over weights and gates, max over both lambdas, of
    task + logit + layer + lambda_linear * (t - s) + lambda_quadratic * (t - s)^2

If several resources have targets, each has a pair of lambdas. The pairs of the additional resources
act only while too little is removed: the first target may remove more of them than was asked for,
and nothing should undo that.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from core.config.settings import ConcreteSettings, WarmedTargetSettings
from core.conformer.axes import Mask
from core.pruning.lagrangian import Lagrangian, staged_target
from core.training.gate_stage import GateMethod, GateStage, expected_sparsities
from core.training.hard_concrete_stage import ConcreteStage
from core.training.method import MethodContext


class Settings(WarmedTargetSettings, ConcreteSettings):
    """Settings of `l0`."""

    ignores = ("pruning.further_targets",)

    shrink_rounds: int = Field(1, ge=1, le=100)
    """Rounds of removal, each of the same share of what remains; after a round, the units that it
    would remove are closed for good and all other gates start anew."""


class WarmedTarget:
    """Two multipliers for each resource, which grow while expected sparsity is not the target.

    The targets warm up, within each of `rounds` rounds of removal.
    """

    def __init__(self, ctx: MethodContext, *, rounds: int = 1) -> None:
        config = ctx.config.pruning
        settings = config.settings(WarmedTargetSettings)
        self._ctx, self._rounds = ctx, rounds
        self._warmup_share = settings.warmup_share
        with ctx.device:
            pairs = [Lagrangian(quadratic_start=settings.lambda_quadratic) for _ in config.targets]
        self._lagrangian = nn.ModuleList(pairs)
        parameters = self._lagrangian.parameters()
        self._dual = torch.optim.Adam(parameters, lr=settings.lambda_lr, maximize=True, fused=True)
        self.optimizers = [self._dual]

    def penalty(self, expected: Mask, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        penalties: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        sparsities = expected_sparsities(self._ctx, expected)
        config = self._ctx.config.pruning
        for pair, (resource, sparsity) in zip(self._lagrangian, sparsities.items(), strict=True):
            assert isinstance(pair, Lagrangian)
            target = staged_target(
                config.targets[resource],
                step=step,
                steps=config.steps,
                rounds=self._rounds,
                warmup_share=self._warmup_share,
            )
            # `metrics` is empty for the first resource alone, whose constraint is an equality.
            violation = (target - sparsity).clamp(min=0) if metrics else target - sparsity
            penalties.append(pair.penalty(violation))
            # The first resource has the plain names, whichever it is.
            suffix = f"_{resource}" if metrics else ""
            metrics |= {
                f"violation{suffix}": violation,
                f"sparsity_{resource}": sparsity,
                # Copies: the step that follows changes the multipliers in place.
                f"lambda_linear{suffix}": pair.lambda_linear.clone(),
                f"lambda_quadratic{suffix}": pair.lambda_quadratic.clone(),
            }
        return torch.stack(penalties).sum(), metrics

    def post_step(self) -> None:
        """Changes nothing: the multipliers of an equality may have either sign."""

    def state_dict(self) -> dict[str, Any]:
        return {"lagrangian": self._lagrangian.state_dict(), "dual": self._dual.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._lagrangian.load_state_dict(state["lagrangian"])
        self._dual.load_state_dict(state["dual"])


class L0(GateMethod):
    def stage(self, ctx: MethodContext) -> GateStage:
        rounds = ctx.config.pruning.settings(Settings).shrink_rounds
        return ConcreteStage(ctx, WarmedTarget(ctx, rounds=rounds), shrink_rounds=rounds)


METHOD = L0()
