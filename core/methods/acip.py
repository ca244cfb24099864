"""ACIP: all sizes from one training run (Genzel et al., 2025, arXiv 2502.01717), for a Conformer.

Each linear layer of the blocks becomes two factors by its singular value decomposition. Each
singular direction gets a mask, and so does every other unit that can be removed. Masks and weights
are trained together:

    min over weights and masks of    task + logit + layer + lambda * sum of p_j relu(m_j)

lambda grows from step to step, so that one unit after the other reaches 0. p_j is the cost of unit
j. The order in which the units reach 0 is the order for all sizes.

What differs from the paper: units other than singular directions have masks, too. The weights p_j
are costs; in the paper all are 1. lambda grows so that a run of any length reaches the smallest
size. The factors themselves are trained; the paper freezes them and trains low-rank adapters in
addition, whose parameters would count here.
"""

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from core.config.settings import GateSettings
from core.config.trial import TrialConfig
from core.conformer.axes import Axis, Mask
from core.conformer.masking import close_empty_modules
from core.conformer.model import Conformer
from core.pruning.calibration import Calibration
from core.pruning.gates.straight_through import StraightThrough
from core.pruning.low_rank import factorize
from core.pruning.space import resource_cost
from core.training.gate_stage import GateMethod, GateStage, gate_rate
from core.training.method import MethodContext


class Settings(GateSettings):
    """Settings of `acip`."""

    smallest: float = Field(0.1, gt=0, lt=1)
    """Share of the resource at which the masks stand still; all larger sizes are found on the
    way."""


# A mask needs time to fall and to be pulled back: it reaches 0 after a sixth of a run at least.
FALLS = 6.0
# Lambda is in units of loss for the whole resource: it starts below the worth of any unit and may
# grow beyond it.
START, DECADES = 1e-2, 8.0
# Adam on the masks must not measure a penalty that grows by the gradients of long ago.
MEMORY = (0.9, 0.95)
# The smallest size is due before the end, so that the weights can adapt to the last removals.
DUE = 0.75


class GrowingL1:
    """A penalty on masks that grows while more remains than the course of the run allows.

    Example: with `smallest = 0.1` the course falls from 1 to 0.1 in the first 75 % of the steps.
    While the share that remains lies above the course, lambda is multiplied by a constant.
    """

    def __init__(self, ctx: MethodContext, gates: StraightThrough) -> None:
        config = ctx.config.pruning
        self._ctx, self._gates = ctx, gates
        self._smallest = config.settings(Settings).smallest
        self._prices = prices(ctx)
        # 400 steps: lambda grows by 4.7 % a step, from 0.01 to at most 1e6.
        self._growth = 10 ** (DECADES / max(1, config.steps))
        # On the device: whether it grows is decided there, without waiting.
        self._strength, self._step = torch.tensor(START, device=ctx.device), 0
        self.optimizers: list[torch.optim.Optimizer] = []

    def penalty(self, expected: Mask, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        del step
        whole = torch.stack([price * expected[name].sum() for name, price in self._prices.items()])
        metrics = {"lambda": self._strength.clone(), "kept": self._remaining_share()}
        return self._strength * whole.sum(), metrics

    def post_step(self) -> None:
        config, remaining = self._ctx.config.pruning, self._remaining_share()
        self._step += 1
        # `smallest` 0.1 and 400 steps: 0.55 after 150 steps, 0.1 from step 300 on.
        course = 1 - (1 - self._smallest) * min(1.0, self._step / (DUE * config.steps))
        self._gates.freeze_if(remaining <= self._smallest)
        grows = (remaining > self._smallest) & (remaining > course)
        self._strength.mul_(torch.where(grows, self._growth, 1.0))

    @torch.no_grad()
    def _remaining_share(self) -> Float[Tensor, ""]:
        """Return the share of the resource that the open units cost."""
        space = self._ctx.space
        # In float64, where counts of FLOPs are exact up to 2**53.
        is_open = {name: (z > 0).double() for name, z in self._gates.sample().items()}
        remaining = 1 - space.sparsity(
            space.mask_cost(close_empty_modules(space.axes, is_open)),
            self._ctx.config.pruning.resource,
        )
        assert isinstance(remaining, Tensor)
        return remaining.float()

    def state_dict(self) -> dict[str, Any]:
        return {"strength": float(self._strength), "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._strength.fill_(state["strength"])
        self._step = state["step"]


def prices(ctx: MethodContext) -> dict[str, float]:
    """Returns the cost of one unit of each axis, as a share of the whole model.

    It is what the model would save without the axis, divided by the number of its units.
    """
    space, resource = ctx.space, ctx.config.pruning.resource
    whole = float(resource_cost(space.counted_cost({}), resource))
    saved = {
        # The axis as a whole: the cost of one unit is the mean of all, also where costs are not
        # linear.
        axis.name: whole - float(resource_cost(space.counted_cost({axis.name: 0}), resource))
        for axis in units(ctx)
    }
    return {axis.name: saved[axis.name] / axis.size / whole for axis in units(ctx)}


def units(ctx: MethodContext) -> list[Axis]:
    """Returns the axes with masks: all that may be removed, except modules with units of their own.

    Such a module is removed with its last unit.
    """
    parents = {axis.parent for axis in ctx.space.prunable}
    return [axis for axis in ctx.space.prunable if axis.name not in parents]


class Acip(GateMethod):
    yields = "curve"

    def prepare_model(
        self, model: Conformer, config: TrialConfig, speech: Calibration
    ) -> Conformer:
        del speech
        return factorize(model) if "rank" in config.pruning.axes else model

    def stage(self, ctx: MethodContext) -> GateStage:
        """Masks start as high as the config's rate, whatever it is, can bring down in time."""
        config = ctx.config.pruning
        # A rate of 0.1 and 600 steps: masks start at 10, and Adam needs 100 steps to bring one to
        # 0.
        start = gate_rate(config) * max(1.0, config.steps / FALLS)
        gates = StraightThrough(units(ctx), start=start).to(ctx.device)
        return GateStage(ctx, gates, GrowingL1(ctx, gates), gate_betas=MEMORY)


METHOD = Acip()
