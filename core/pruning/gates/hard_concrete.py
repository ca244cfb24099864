"""Stochastic gates that are 0 or 1 with positive probability (Louizos et al., 2018).

Three kinds: as drawn; rounded to 0 or 1, with the gradient of what was drawn (straight through,
Bengio et al., 2013); and drawn ever colder, so that fewer and fewer lie in between. Of each kind
the probability of being open is exact, for the clamp's ends too.

All arithmetic is in fp32 and outside autocast: 1 - 1e-6 is 1 in half precision, and its logarithm
is not to be had.

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
# A dead gate at -8 still counts 0.0017, one at the usual -4.6 counts 0.047: that would bias the
# expected cost.
CLAMP = 8.0
# Below whatever lives: by its score a gate that is shut for good is the last to be kept.
CLOSED_LOG_ALPHA = -2 * CLAMP


class HardConcrete(nn.Module):
    """One gate a unit of the given axes, with its own log_alpha."""

    temperature: float = TEMPERATURE
    hears_when_shut = False
    """Whether a gate of value 0 has a gradient, so that its unit must not be left out."""

    alive: Tensor | None
    """1, and 0 for gates that are shut for good; None where none ever is."""

    def __init__(
        self,
        axes: Sequence[Axis],
        *,
        start: Mapping[str, float | Tensor],
        is_shrinking: bool = False,
    ) -> None:
        """`start` gives log_alpha by axis name: of all its units, or of each."""
        super().__init__()
        self.names = [axis.name for axis in axes]
        self.sizes = [axis.size for axis in axes]
        self.floors = {axis.name: axis.floor for axis in axes if axis.floor}
        starts = [torch.zeros(axis.size) + start[axis.name] for axis in axes]
        self.log_alpha = nn.Parameter(torch.cat(starts))
        self.start = torch.cat(starts)
        self.register_buffer("alive", torch.ones_like(self.start) if is_shrinking else None)

    def sample(self) -> dict[str, Tensor]:
        """One draw of all gates, floors kept; differentiable in log_alpha."""
        uniform = broadcast_draw(torch.rand_like(self.log_alpha)).clamp(1e-6, 1 - 1e-6)
        noise = uniform.log() - torch.log1p(-uniform)
        gates = self._by_axis(self._living(self._valued(noise + self.log_alpha)))
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
        return self._by_axis(self._living(self._valued(self.log_alpha.detach())))

    @property
    def shift(self) -> float:
        """P(z > 0) = sigmoid(log_alpha - temperature * log(-lower / upper)); eq. 12."""
        return self.temperature * math.log(-LOWER / UPPER)

    def open_probability(self) -> dict[str, Tensor]:
        """P(z > 0) of each gate; differentiable."""
        return self._by_axis(self._living(torch.sigmoid(self.log_alpha - self.shift)))

    def scores(self) -> dict[str, Tensor]:
        """How much each unit is worth keeping: log_alpha is comparable across axes."""
        return self._by_axis(self.log_alpha.detach().clone())

    @torch.no_grad()
    def shrink(self, kept: Mapping[str, Tensor]) -> None:
        """Shut for good what is not kept; all other gates start anew."""
        assert self.alive is not None, "made to shrink"
        self.alive *= torch.cat([kept[name] for name in self.names]).to(self.alive)
        begun = self.start.to(self.log_alpha)
        self.log_alpha.copy_(torch.where(self.alive > 0, begun, CLOSED_LOG_ALPHA))

    def _living(self, values: Float[Tensor, " gates"]) -> Float[Tensor, " gates"]:
        return values if self.alive is None else values * self.alive

    @torch.no_grad()
    def clamp(self) -> None:
        """After each step: a gate beyond the clamp would take for ever to come back."""
        self.log_alpha.clamp_(-CLAMP, CLAMP)
        if self.alive is not None:
            self.log_alpha.masked_fill_(self.alive == 0, CLOSED_LOG_ALPHA)

    def anneal(self, share: float) -> None:
        """Before each step: so much of the search is done, in [0, 1]."""

    def _valued(self, logits: Float[Tensor, " gates"]) -> Float[Tensor, " gates"]:
        """The gates z of log_alpha, with noise or without."""
        soft = torch.sigmoid(logits / self.temperature)
        return (soft * (UPPER - LOWER) + LOWER).clamp(0, 1)

    def _by_axis(self, gates: Float[Tensor, " gates"]) -> dict[str, Tensor]:
        return dict(zip(self.names, gates.split(self.sizes), strict=True))


class StraightThroughConcrete(HardConcrete):
    """The same draws, rounded: a student under them computes what could be extracted."""

    hears_when_shut = True

    @property
    def shift(self) -> float:
        """A draw is above a half where noise + log_alpha > 0, which has P = sigmoid(log_alpha)."""
        return 0.0

    def _valued(self, logits: Float[Tensor, " gates"]) -> Float[Tensor, " gates"]:
        soft = super()._valued(logits)
        # Of a number less itself nothing is left, to the last bit: the value is 0 or 1.
        return (logits > 0).to(soft.dtype) + (soft - soft.detach())


class AnnealedConcrete(HardConcrete):
    """The same, ever colder: the temperature falls as a power of the share that is done."""

    def anneal(self, share: float) -> None:
        self.temperature = TEMPERATURE * (COLDEST / TEMPERATURE) ** share

    def get_extra_state(self) -> float:
        """What a gate is open by is kept with it, for who goes on after the last step."""
        return self.temperature

    def set_extra_state(self, state: float) -> None:
        self.temperature = state


KINDS: Mapping[GateKind, type[HardConcrete]] = {
    "sampled": HardConcrete,
    "straight_through": StraightThroughConcrete,
    "annealed": AnnealedConcrete,
}
"""By what a config calls them."""
