"""Deterministic gates that are open while their mask is positive, and record when they close.

The gate of a mask m is 1 where m > 0 and else 0; its gradient is that of relu(m), so a closed gate
has no gradient and stays closed (Genzel et al., 2025). A unit's score is its mask while it is open,
and afterwards how long it stayed open.

Shapes: G gates.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.conformer.axes import Axis

# A unit that stayed open for long must still be able to close within the run.
CEILING = 1.5


class StraightThrough(nn.Module):
    """One gate per unit of the given axes, with its own mask."""

    worth: Tensor
    is_frozen: Tensor

    def __init__(self, axes: Sequence[Axis], *, start: float = 1.0) -> None:
        """Make gates with masks of `start`: at a rate r they need start / r steps to close."""
        super().__init__()
        self.axes, self.start = tuple(axes), start
        self.sizes = [axis.size for axis in axes]
        self.mask = nn.Parameter(torch.full((sum(self.sizes),), start))
        self.register_buffer("worth", torch.ones(sum(self.sizes)))
        self.register_buffer("is_frozen", torch.zeros((), dtype=torch.bool))

    def sample(self) -> dict[str, Tensor]:
        """Return the gates, which are not random."""
        soft = torch.relu(self.mask)
        # x - x is exactly 0, so the value is the gate's, and the gradient is that of soft.
        return self._by_axis(self.is_open().to(soft.dtype) + (soft - soft.detach()))

    def median(self) -> dict[str, Tensor]:
        return {name: z.detach() for name, z in self.sample().items()}

    def open_probability(self) -> dict[str, Tensor]:
        return self.sample()

    def scores(self) -> dict[str, Tensor]:
        """Return masks of open units; closed units are lower, those that closed first lowest."""
        return self._by_axis(self.worth.clone())

    @torch.no_grad()
    def clamp(self) -> None:
        """Bound masks after each step, and record which gates have closed.

        For example, a unit that closes gets a score in [-0.99, 0], and each later step lowers it by
        1, so units that closed earlier score lower.
        """
        # From `worth`, which stopped when they were frozen: gradient steps since then are undone.
        frozen = self.worth * self.start
        frozen = torch.where(frozen > 0, frozen, self.mask.clamp(max=0))
        # Start 10: masks stay below 15, which a rate of 0.1 can bring down to 0 in 150 steps.
        moved = self.mask.clamp(max=CEILING * self.start)
        self.mask.copy_(torch.where(self.is_frozen, frozen, moved))
        mask = moved / self.start
        # Units that close in the same step are ordered by how far the mask fell, by less than 1.
        closed = torch.where(self.worth > 0, mask.clamp(min=-0.99), self.worth - 1)
        worth = torch.where(mask > 0, mask, closed)
        self.worth.copy_(torch.where(self.is_frozen, self.worth, worth))

    @torch.no_grad()
    def freeze_if(self, condition: Bool[Tensor, ""]) -> None:
        """Fix all masks as they are, from now on, if this holds."""
        mask, worth = self.mask.clone(), self.worth.clone()
        self.clamp()
        self.mask.copy_(torch.where(condition, self.mask, mask))
        self.worth.copy_(torch.where(condition, self.worth, worth))
        self.is_frozen.logical_or_(condition)

    @torch.no_grad()
    def is_open(self) -> Bool[Tensor, " gates"]:
        """Return where masks are positive, or among the largest of an axis that must stay."""
        is_open = self.mask > 0
        for axis, inside in zip(self.axes, is_open.split(self.sizes), strict=True):
            if axis.floor:
                largest = self._by_axis(self.worth)[axis.name].topk(axis.floor).indices
                is_largest = torch.zeros_like(inside).index_fill(0, largest, value=1)
                inside.logical_or_((inside.sum() < axis.floor) & is_largest)
        return is_open

    def _by_axis(self, gates: Float[Tensor, " gates"]) -> dict[str, Tensor]:
        names = [axis.name for axis in self.axes]
        return dict(zip(names, gates.split(self.sizes), strict=True))
