"""Padding of a pruned model to blocks of equal sizes with unfactored layers.

Missing units are added as zeros, which do not change the output: a unit whose consumer's column is
0, or a module whose output is 0. The padded model computes the same, and costs more.
"""

import torch
from torch import Tensor

from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.decoders.predictor import GATES
from core.pruning.low_rank import build_model, multiply_factors

_ONE = ("norm.weight", "running_var", "deviation")
"""Ends of names of tensors whose neutral value is 1, not 0."""


def pad_to_shape(model: Conformer, shape: Shape) -> Conformer:
    """Return a model of the same function in a shape with no smaller size."""
    dense = multiply_factors(model, everywhere=True).state_dict()
    with torch.device("meta"):
        target = Conformer(shape).state_dict()
    tensors = {
        name: _pad_tensor(name, dense.get(name), tensor.shape) for name, tensor in target.items()
    }
    return build_model(shape, tensors, is_training=model.training, is_copied=False)


def _pad_tensor(name: str, source: Tensor | None, size: torch.Size) -> Tensor:
    """Pad a tensor with neutral values at its end; parts of its rows one by one."""
    # Values come first, gates second. 2 channels padded to 3: a b, c d become a b 0, c d 0. Zeros
    # at the very end would give a b c, d 0 0, which gates a by d instead of c.
    if parts := _row_parts(name):
        sources = [None] * parts if source is None else source.chunk(parts)
        size = torch.Size((size[0] // parts, *size[1:]))
        return torch.cat([_pad_tensor("", part, size) for part in sources])
    whole = torch.ones(size) if name.endswith(_ONE) else torch.zeros(size)
    if source is not None:
        whole = whole.to(source)
        whole[tuple(slice(length) for length in source.shape)] = source
    return whole


def _row_parts(name: str) -> int:
    """Return how many parts a tensor's rows have: two of a GLU, four of an LSTM, otherwise 0."""
    if name.endswith((".convolution.up.weight", ".convolution.up.bias")):
        return 2
    return GATES if ".predictor.layers." in name else 0
