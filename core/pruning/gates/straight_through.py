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

# Whatever a unit has resisted before, it must still be able to die within the run.
CEILING = 1.5


class StraightThrough(nn.Module):
    """One gate a unit of the given axes, with its own mask."""

    worth: Tensor
    is_frozen: Tensor

    def __init__(self, axes: Sequence[Axis], *, start: float = 1.0) -> None:
        """`start` is every mask's: at a rate of r it needs start / r steps to die."""
        super().__init__()
        self.axes, self.start = tuple(axes), start
        self.sizes = [axis.size for axis in axes]
        self.mask = nn.Parameter(torch.full((sum(self.sizes),), start))
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
        """After each step: remember who died."""
        if self.is_frozen:
            held = self.worth * self.start
            self.mask.copy_(torch.where(held > 0, held, self.mask.clamp(max=0)))
            return
        self.mask.clamp_(max=CEILING * self.start)
        mask = self.mask / self.start
        # Who dies in the same step is told apart by how far the mask fell, but never by a whole 1.
        dead = torch.where(self.worth > 0, mask.clamp(min=-0.99), self.worth - 1)
        self.worth.copy_(torch.where(mask > 0, mask, dead))

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
