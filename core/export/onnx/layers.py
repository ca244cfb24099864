"""Layers of a graph, made of a model's weights: scaled, split, and padded with zeros."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from core.conformer.factored import Factored, Linear


def matrix(weight: Float[Tensor, "outputs inputs"], bias: Tensor | None) -> nn.Linear:
    """Return a linear layer of these constants."""
    with torch.device("meta"):
        # Without memory: its weights are replaced at once.
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = constant(weight)
    if bias is not None:
        layer.bias = constant(bias)
    return layer


def constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=False)


def split(layer: Linear, count: int) -> tuple[nn.Module, list[nn.Linear]]:
    """Split the outputs of a layer into equal parts.

    Returns:
        The shared first factor, or the identity; and a layer for each part.
    """
    last = layer.expand if isinstance(layer, Factored) else layer
    pairs = zip(last.weight.chunk(count), last.bias.chunk(count), strict=True)
    before = layer.reduce if isinstance(layer, Factored) else nn.Identity()
    return before, [matrix(weight, bias) for weight, bias in pairs]


def scale_layer(layer: Linear, scale: float) -> nn.Module:
    """Return the layer with its output multiplied by a scale."""
    before, (last,) = split(layer, 1)
    return nn.Sequential(before, matrix(scale * last.weight, scale * last.bias))


def zero_pad_layer(layer: nn.Linear, *, inputs: int = 0, outputs: int = 0) -> nn.Linear:
    """Add inputs and outputs of zeros to a layer."""
    bias: Tensor | None = layer.bias  # by torch's annotations it is never None
    more = None if bias is None else F.pad(bias, (0, outputs))
    return matrix(F.pad(layer.weight, (0, inputs, 0, outputs)), more)


def zero_pad_inputs(layer: Linear, more: int) -> nn.Module:
    """Add inputs to a layer, which it ignores."""
    if isinstance(layer, Factored):
        return nn.Sequential(zero_pad_layer(layer.reduce, inputs=more), layer.expand)
    return zero_pad_layer(layer, inputs=more)


def zero_pad_convolution(layer: nn.Conv2d, outputs: int, inputs: int) -> nn.Conv2d:
    """Add input and output channels of zeros to a convolution."""
    assert layer.bias is not None
    # Pairs from the last axis backwards: 3 by 3 kernels stay, inputs and outputs grow.
    weight = F.pad(layer.weight, (0, 0, 0, 0, 0, inputs, 0, outputs))
    with torch.device("meta"):
        more = nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride=2)
    more.weight, more.bias = constant(weight), constant(F.pad(layer.bias, (0, outputs)))
    return more
