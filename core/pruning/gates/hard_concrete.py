"""Stochastic gates that are 0 or 1 with positive probability (Louizos et al., 2018).

Three kinds: as sampled; rounded to 0 or 1, with the gradient of the sample (straight through,
Bengio et al., 2013); and annealed, with a falling temperature that leaves fewer values between 0
and 1. The probability of being open is exact for each kind, also at the ends of the clamp.

All arithmetic is in fp32 and outside autocast: 1 - 1e-6 is 1 in half precision, and log(0) is not
finite.

Shapes: G gates.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.config.settings import GateKind
from core.conformer.axes import Axis
from core.distributed import broadcast_draw

TEMPERATURE = 2 / 3
COLDEST = 0.1
LOWER, UPPER = -0.1, 1.1
# A closed gate at -8 still counts as 0.0017 of a unit in the expected cost; one at the usual clamp
# of -4.6 would count as 0.047, which biases it.
CLAMP = 8.0
# Below all active gates: by its score, a permanently closed gate is kept last.
CLOSED_LOG_ALPHA = -2 * CLAMP


class HardConcrete(nn.Module):
    """One gate per unit of the given axes, with its own log_alpha."""

    temperature: float = TEMPERATURE
    has_gradient_when_closed = False
    """Whether a gate of value 0 has a gradient, so that its unit must be computed all the same."""

    active: Tensor | None
    """1 for each gate, 0 if it is permanently closed; None where gates are never closed."""

    def __init__(
        self,
        axes: Sequence[Axis],
        *,
        start: Mapping[str, float | Tensor],
        is_shrinking: bool = False,
    ) -> None:
        """Make gates with a start value.

        Args:
            axes: whose units get gates.
            start: log_alpha by axis name, one value for all units or one for each; gates are on
                the device of these.
            is_shrinking: whether gates can be closed permanently.
        """
        super().__init__()
        self.names = [axis.name for axis in axes]
        self.sizes = [axis.size for axis in axes]
        self.floors = {axis.name: axis.floor for axis in axes if axis.floor}
        starts = [torch.as_tensor(start[axis.name]).float().expand(axis.size) for axis in axes]
        self.log_alpha = nn.Parameter(torch.cat(starts))
        self.start = torch.cat(starts)
        self.register_buffer("active", torch.ones_like(self.start) if is_shrinking else None)

    def sample(self) -> dict[str, Tensor]:
        """Sample all gates, at least the floor of each axis open; differentiable in log_alpha."""
        uniform = broadcast_draw(torch.rand_like(self.log_alpha)).clamp(1e-6, 1 - 1e-6)
        # Logistic noise by its quantile function: a gate is a differentiable function of log_alpha
        # and u.
        noise = uniform.log() - torch.log1p(-uniform)
        gates = self._by_axis(self._mask_inactive(self._gates_of(noise + self.log_alpha)))
        return gates | {name: self._with_floor(name, gates[name]) for name in self.floors}

    def _with_floor(self, name: str, z: Float[Tensor, " units"]) -> Float[Tensor, " units"]:
        """Open the best gates of an axis if fewer than its floor were sampled open."""
        floor = self.floors[name]
        best = self.scores()[name].topk(floor).indices
        is_best = torch.zeros_like(z).index_fill(0, best, 1.0).bool()
        is_short = (z > 0).sum() < floor
        return torch.where(is_short & is_best & (z == 0), 1.0, z)

    def median(self) -> dict[str, Tensor]:
        """Return deterministic gates: 0 where P(z > 0) <= 0.5 (Gallego-Posada et al., 2022)."""
        return self._by_axis(self._mask_inactive(self._gates_of(self.log_alpha.detach())))

    @property
    def shift(self) -> float:
        """Temperature * log(-lower / upper), of P(z > 0) = sigmoid(log_alpha - shift); eq. 12."""
        # -1.5986 at the temperature of 2 / 3: a log_alpha of 0 is open with probability 0.832.
        return self.temperature * math.log(-LOWER / UPPER)

    def open_probability(self) -> dict[str, Tensor]:
        """Return P(z > 0) of each gate; differentiable."""
        return self._by_axis(self._mask_inactive(torch.sigmoid(self.log_alpha - self.shift)))

    def scores(self) -> dict[str, Tensor]:
        """Return a score for each unit: log_alpha is comparable across axes."""
        return self._by_axis(self.log_alpha.detach().clone())

    @torch.no_grad()
    def shrink(self, remaining: Mapping[str, Tensor]) -> None:
        """Close the other gates permanently, and reset these to their start."""
        assert self.active is not None, "made with is_shrinking"
        self.active *= torch.cat([remaining[name] for name in self.names]).to(self.active)
        initial = self.start.to(self.log_alpha)
        self.log_alpha.copy_(torch.where(self.active > 0, initial, CLOSED_LOG_ALPHA))

    def _mask_inactive(self, values: Float[Tensor, " gates"]) -> Float[Tensor, " gates"]:
        return values if self.active is None else values * self.active

    @torch.no_grad()
    def clamp(self) -> None:
        """Bound log_alpha after each step: a gate far beyond the clamp would never come back."""
        self.log_alpha.clamp_(-CLAMP, CLAMP)
        if self.active is not None:
            self.log_alpha.masked_fill_(self.active == 0, CLOSED_LOG_ALPHA)

    def anneal(self, share: float) -> None:
        """Set the temperature before each step; `share` of the search is done, in [0, 1]."""

    def _gates_of(self, logits: Float[Tensor, " gates"]) -> Float[Tensor, " gates"]:
        """Return the gates z of log_alpha, with noise or without."""
        # Stretched from (0, 1) to (-0.1, 1.1) and cut: 0.05 becomes -0.04 and then 0.
        soft = torch.sigmoid(logits / self.temperature)
        return (soft * (UPPER - LOWER) + LOWER).clamp(0, 1)

    def _by_axis(self, gates: Float[Tensor, " gates"]) -> dict[str, Tensor]:
        return dict(zip(self.names, gates.split(self.sizes), strict=True))


class StraightThroughConcrete(HardConcrete):
    """The same samples, rounded: the student computes exactly what could be extracted."""

    has_gradient_when_closed = True

    @property
    def shift(self) -> float:
        """0, as a sample is above 0.5 where noise + log_alpha > 0, with P = sigmoid(log_alpha)."""
        return 0.0

    def _gates_of(self, logits: Float[Tensor, " gates"]) -> Float[Tensor, " gates"]:
        soft = super()._gates_of(logits)
        # x - x is exactly 0: the value is 0 or 1 to the last bit, and the gradient is that of soft.
        return (logits > 0).to(soft.dtype) + (soft - soft.detach())


class AnnealedConcrete(HardConcrete):
    """The same with a temperature that falls exponentially in the share of steps done."""

    def anneal(self, share: float) -> None:
        # 0.667 at the start, 0.258 after half of the steps, 0.1 at the end.
        self.temperature = TEMPERATURE * (COLDEST / TEMPERATURE) ** share

    def get_extra_state(self) -> float:
        """Return the temperature: gates depend on it after a resume and after the last step."""
        return self.temperature

    def set_extra_state(self, state: float) -> None:
        self.temperature = state


KINDS: Mapping[GateKind, type[HardConcrete]] = {
    "sampled": HardConcrete,
    "straight_through": StraightThroughConcrete,
    "annealed": AnnealedConcrete,
}
"""Classes by their names in a configuration."""
