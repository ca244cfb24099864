"""What becomes of the model without some of its units: shut, one group at a time, and looked at.

A scorer that shuts units and looks (latent shift, task error) needs one pass over the speech for
each group; units of an axis are grouped by a cheap score first, so that alike goes with alike.

Shapes: U units of an axis.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.conformer.axes import Axis, Mask
from core.conformer.masking import Folded, fold, named_tensors
from core.conformer.model import Conformer


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """Some units of an axis, shut together."""

    axis: Axis
    units: Int[Tensor, " _"]

    def mask(self) -> Mask:
        gates = torch.ones(self.axis.size)
        gates[self.units] = 0.0
        return {self.axis.name: gates}


def groups(
    axes: Sequence[Axis], order: Mapping[str, Float[Tensor, " _"]], *, count: int
) -> list[Edit]:
    """Units of each axis by a cheap score, the least first, in at most so many groups of one size.

    What must stay of an axis is in no group: the best units by that score.
    """
    edits = []
    for axis in axes:
        ranked = order[axis.name].argsort(stable=True)[: axis.size - axis.floor]
        size = max(1, math.ceil(len(ranked) / count))
        edits += [Edit(axis=axis, units=part) for part in ranked.split(size) if len(part)]
    return edits


def measure_edits(
    model: Conformer, edits: Sequence[Edit], measure: Callable[[Folded], Tensor]
) -> Iterator[tuple[Edit, Tensor]]:
    """Each edit with what a measure says of the model under it; nothing is changed."""
    tensors, axes, device = named_tensors(model), model.axes(), model.head.weight.device
    for edit in edits:
        mask = {name: gates.to(device) for name, gates in edit.mask().items()}
        with torch.no_grad():
            value = measure(fold(tensors, axes, mask))
        yield edit, value


def identity_fold(model: Conformer) -> Folded:
    """The model as it is, in the shape in which edits come."""
    return fold(named_tensors(model), model.axes(), {})


def spread(
    axes: Sequence[Axis], worth: Sequence[tuple[Edit, float]]
) -> dict[str, Float[Tensor, " _"]]:
    """Each unit its share of what its group was worth; units that must stay are worth the most."""
    scores = {axis.name: torch.full((axis.size,), torch.inf, dtype=torch.float64) for axis in axes}
    for edit, value in worth:
        scores[edit.axis.name][edit.units] = value / len(edit.units)
    return scores
