"""A pruned model in the shape of an unpruned one: blocks of equal sizes, every layer one matrix.

What is missing is added as zeros, which say nothing: a unit whose consumer's column is 0, a module
whose output is. It computes the same, and costs more.
"""

import torch
from torch import Tensor

from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.pruning.low_rank import build_model, multiply_factors

_ONE = ("norm.weight", "running_var", "deviation")
"""Ends of names of tensors that do nothing where they are 1."""


def pad_to_shape(model: Conformer, shape: Shape) -> Conformer:
    """The same function in a shape that is nowhere smaller."""
    dense = multiply_factors(model, everywhere=True).state_dict()
    with torch.device("meta"):
        wanted = Conformer(shape).state_dict()
    tensors = {
        name: _padded(name, dense.get(name), tensor.shape) for name, tensor in wanted.items()
    }
    return build_model(shape, tensors, is_training=model.training, is_copied=False)


def _padded(name: str, given: Tensor | None, size: torch.Size) -> Tensor:
    """What is there, then what does nothing; the GLU's halves each so."""
    if name.endswith((".convolution.up.weight", ".convolution.up.bias")):
        halves = (None, None) if given is None else given.chunk(2)
        half = torch.Size((size[0] // 2, *size[1:]))
        return torch.cat([_padded("", each, half) for each in halves])
    whole = torch.ones(size) if name.endswith(_ONE) else torch.zeros(size)
    if given is not None:
        whole = whole.to(given)
        whole[tuple(slice(length) for length in given.shape)] = given
    return whole
