"""Deterministic gates that are open while their mask is positive, and remember when they shut.

Of a mask m the gate is 1 where m > 0 and else 0; its gradient is that of relu(m), so a mask that
is gone hears nothing more (Genzel et al., 2025). What a unit is worth is its mask while it has one,
and after that how long it lived.

Shapes: G gates.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.conformer.axes import Axis


class StraightThrough(nn.Module):
    """One gate a unit of the given axes, with its own mask."""

    worth: Tensor
    is_frozen: Tensor

    def __init__(self, axes: Sequence[Axis]) -> None:
        super().__init__()
        self.axes = tuple(axes)
        self.sizes = [axis.size for axis in axes]
        self.mask = nn.Parameter(torch.ones(sum(self.sizes)))
        self.register_buffer("worth", torch.ones(sum(self.sizes)))
        self.register_buffer("is_frozen", torch.zeros((), dtype=torch.bool))

    def sample(self) -> dict[str, Tensor]:
        """The gates' values; all steps draw the same."""
        soft = torch.relu(self.mask)
        # Of a number less itself nothing is left, to the last bit: the value is that of the gate.
        return self._by_axis(self.is_open().to(soft.dtype) + (soft - soft.detach()))

    def median(self) -> dict[str, Tensor]:
        return {name: z.detach() for name, z in self.sample().items()}

    def open_probability(self) -> dict[str, Tensor]:
        return self.sample()

    def scores(self) -> dict[str, Tensor]:
        """Masks of living units, below them the dead, those before all others that died first."""
        return self._by_axis(self.worth.clone())

    @torch.no_grad()
    def clamp(self) -> None:
        """After each step: remember who died; a mask falls by less than 1 a step."""
        if self.is_frozen:
            held = torch.where(self.worth > 0, self.worth, self.mask.clamp(max=0))
            self.mask.copy_(held)
            return
        is_newly_dead = (self.mask <= 0) & (self.worth > 0)
        dead = torch.where(is_newly_dead, self.mask.clamp(min=-0.99), self.worth - 1)
        self.worth.copy_(torch.where(self.mask > 0, self.mask, dead))

    def freeze(self) -> None:
        """From now on all masks stay as they are."""
        self.clamp()
        self.is_frozen.fill_(value=True)

    @torch.no_grad()
    def is_open(self) -> Bool[Tensor, " gates"]:
        """Positive masks, and of each axis as many of the largest as must stay."""
        is_open = self.mask > 0
        for axis, inside in zip(self.axes, is_open.split(self.sizes), strict=True):
            if axis.floor and int(inside.sum()) < axis.floor:
                largest = self._by_axis(self.worth)[axis.name].topk(axis.floor).indices
                inside[largest] = True
        return is_open

    def _by_axis(self, gates: Float[Tensor, " gates"]) -> dict[str, Tensor]:
        names = [axis.name for axis in self.axes]
        return dict(zip(names, gates.split(self.sizes), strict=True))
