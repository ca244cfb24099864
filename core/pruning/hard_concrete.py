"""Stochastic gates that are 0 or 1 with positive probability (Louizos et al., 2018).

All arithmetic is in fp32 and outside autocast: 1 - 1e-6 is 1 in half precision, and its logarithm
is not to be had.

Shapes: G gates.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.conformer.axes import Axis
from core.ranks import drawn_once

TEMPERATURE = 2 / 3
LOWER, UPPER = -0.1, 1.1
# P(z > 0) = sigmoid(log_alpha - temperature * log(-lower / upper)); eq. 12.
SHIFT = TEMPERATURE * math.log(-LOWER / UPPER)
# A dead gate at -8 still counts 0.0017, one at the usual -4.6 counts 0.047: that would bias the
# expected cost.
CLAMP = 8.0


class HardConcrete(nn.Module):
    """One gate a unit of the given axes, with its own log_alpha."""

    def __init__(self, axes: Sequence[Axis], *, start: Mapping[str, float]) -> None:
        """`start` gives log_alpha by axis name."""
        super().__init__()
        self.names = [axis.name for axis in axes]
        self.sizes = [axis.size for axis in axes]
        self.floors = {axis.name: axis.floor for axis in axes if axis.floor}
        starts = [torch.full((axis.size,), start[axis.name]) for axis in axes]
        self.log_alpha = nn.Parameter(torch.cat(starts))

    def sample(self) -> dict[str, Tensor]:
        """One draw of all gates, floors kept; differentiable in log_alpha."""
        uniform = drawn_once(torch.rand_like(self.log_alpha)).clamp(1e-6, 1 - 1e-6)
        noise = uniform.log() - torch.log1p(-uniform)
        soft = torch.sigmoid((noise + self.log_alpha) / TEMPERATURE)
        gates = self._by_axis((soft * (UPPER - LOWER) + LOWER).clamp(0, 1))
        return gates | {name: self._with_floor(name, gates[name]) for name in self.floors}

    def _with_floor(self, name: str, z: Float[Tensor, " units"]) -> Float[Tensor, " units"]:
        """Few gates may all be drawn shut, and a model without these units computes nothing."""
        floor = self.floors[name]
        if int((z > 0).sum()) >= floor:
            return z
        best = self.scores()[name].topk(floor).indices
        return torch.where((z == 0) & torch.zeros_like(z).index_fill(0, best, 1.0).bool(), 1.0, z)

    def median(self) -> dict[str, Tensor]:
        """The deterministic gate: 0 exactly where P(z > 0) <= 0.5 (Gallego-Posada et al., 2022)."""
        soft = torch.sigmoid(self.log_alpha.detach() / TEMPERATURE)
        return self._by_axis((soft * (UPPER - LOWER) + LOWER).clamp(0, 1))

    def open_probability(self) -> dict[str, Tensor]:
        """P(z > 0) of each gate; differentiable."""
        return self._by_axis(torch.sigmoid(self.log_alpha - SHIFT))

    def scores(self) -> dict[str, Tensor]:
        """How much each unit is worth keeping: log_alpha is comparable across axes."""
        return self._by_axis(self.log_alpha.detach().clone())

    @torch.no_grad()
    def clamp(self) -> None:
        """After each step: a gate beyond the clamp would take for ever to come back."""
        self.log_alpha.clamp_(-CLAMP, CLAMP)

    def _by_axis(self, gates: Float[Tensor, " gates"]) -> dict[str, Tensor]:
        return dict(zip(self.names, gates.split(self.sizes), strict=True))
