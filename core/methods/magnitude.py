"""A control: units with small weights are removed first.

The score of a unit is the root mean square of its weights, divided by the mean of its axis, so that
axes can be compared.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from core.conformer.axes import Axis, Slice
from core.conformer.masking import named_tensors
from core.conformer.model import Conformer
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult


class Magnitude(Method):
    default_repair = "sequential"

    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        del search
        return SearchResult(scores=magnitudes(ctx.student, ctx.space.units), reference={})


@torch.no_grad()
def magnitudes(model: Conformer, axes: Sequence[Axis]) -> dict[str, Tensor]:
    """Returns the root mean square of each unit's weights, divided by the mean of its axis.

    It is 0 where an axis has no weights, or none but zeros.
    """
    tensors = named_tensors(model)
    scores = {}
    for axis in axes:
        weights = [s for s in axis.slices if tensors[s.tensor].dim() > 1]
        if not weights:  # a block that has lost all its modules
            scores[axis.name] = torch.zeros(axis.size)
            continue
        squares = sum(_unit_squares(tensors[s.tensor], s, axis.size) for s in weights)
        entries = sum(tensors[s.tensor].numel() // tensors[s.tensor].shape[s.dim] for s in weights)
        assert isinstance(squares, Tensor)
        size = (squares / entries).sqrt()
        scores[axis.name] = (size / size.mean().clamp_min(torch.finfo(size.dtype).tiny)).cpu()
    return scores


def _unit_squares(tensor: Tensor, piece: Slice, size: int) -> Tensor:
    # Sums of squares along the slice's dimension, then over the entries of each unit. Columns of
    # two heads of 64: 128 sums become 2.
    along = tensor.transpose(0, piece.dim).flatten(1).square().sum(1)
    return along[piece.offset : piece.offset + size * piece.block].view(size, -1).sum(1)


METHOD = Magnitude()
