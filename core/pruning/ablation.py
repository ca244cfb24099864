"""Ablation: measure the model with groups of its units closed, one group at a time.

A score from ablation (latent shift, task error) needs one pass over the speech for each group.
Units of an axis are grouped by a cheap score first, so that similar units share a group.

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
    """Some units of an axis that are closed together."""

    axis: Axis
    units: Int[Tensor, " _"]

    def mask(self) -> Mask:
        # Units 2 and 5 of 6: gates 1, 1, 0, 1, 1, 0. Axes without an entry in the mask are open.
        gates = torch.ones(self.axis.size)
        gates[self.units] = 0.0
        return {self.axis.name: gates}


def groups(
    axes: Sequence[Axis], order: Mapping[str, Float[Tensor, " _"]], *, count: int
) -> list[Edit]:
    """Return the units of each axis in at most `count` groups of equal size, lowest scores first.

    The units that must stay of an axis, the best by that score, are in no group. For example, 10
    units with a floor of 1 and a `count` of 3 make groups of 3, 3 and 3.
    """
    edits = []
    for axis in axes:
        ranked = order[axis.name].argsort(stable=True)[: axis.size - axis.floor]
        # Rounded up, so that there are never more groups than `count`: 10 units in 4 groups make 3,
        # 3, 3 and 1.
        size = max(1, math.ceil(len(ranked) / count))
        edits += [Edit(axis=axis, units=part) for part in ranked.split(size) if len(part)]
    return edits


def measure_edits(
    model: Conformer, edits: Sequence[Edit], measure: Callable[[Folded], Tensor]
) -> Iterator[tuple[Edit, Tensor]]:
    """Yield each edit with the measure of the model under it; the model is not changed."""
    tensors, axes, device = named_tensors(model), model.axes(), model.device
    for edit in edits:
        mask = {name: gates.to(device) for name, gates in edit.mask().items()}
        with torch.no_grad():
            # Folding makes new tensors and leaves the model's own as they are: nothing is to be
            # undone.
            value = measure(fold(tensors, axes, mask))
        yield edit, value


def identity_fold(model: Conformer) -> Folded:
    """Return the tensors of the unchanged model as a `Folded`, as for an edit."""
    return fold(named_tensors(model), model.axes(), {})


def spread_over_units(
    axes: Sequence[Axis], group_scores: Sequence[tuple[Edit, float]]
) -> dict[str, Float[Tensor, " _"]]:
    """Return each unit's share of its group's score; units that must stay get infinity."""
    scores = {axis.name: torch.full((axis.size,), torch.inf, dtype=torch.float64) for axis in axes}
    for edit, value in group_scores:
        # A group of 4 units with a score of 0.2 gives each 0.05: groups of unequal sizes compare.
        scores[edit.axis.name][edit.units] = value / len(edit.units)
    return scores
