"""Dropout with fast random numbers on a CPU: one byte per element, eight bytes per draw.

torch draws one number per element there, which takes a tenth of a training step, and more in bf16.
The probability is rounded to 256ths, and elements that stay are scaled by the rounded one, so the
mean is exact. All random numbers come from torch's generator, so a seed repeats them.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def add_with_dropout(
    x: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"], *, share: float, dropout: float
) -> Float[Tensor, "*shape"]:
    """Return x + share * dropout(y), in the type of x.

    Args:
        x: the residual stream.
        y: to be added.
        share: factor on y.
        dropout: the probability of dropping an element of y.
    """
    y = y.to(x.dtype)  # adding two types takes many times as long as the cast
    if dropout == 0:
        return torch.add(x, y, alpha=share)
    if y.device.type != "cpu":
        return torch.add(x, F.dropout(y, dropout), alpha=share)
    return torch.addcmul(x, y, dropout_multiplier(y, dropout), value=share)


def dropout_multiplier(like: Float[Tensor, "*shape"], dropout: float) -> Float[Tensor, "*shape"]:
    """Return a random factor for each element: 0 if dropped, else such that the mean stays."""
    # A dropout of 0.1 drops 26 of the 256 values and multiplies the others by 256 / 230.
    dropped = dropped_bytes(dropout)
    draws = torch.empty(-(-like.numel() // 8), dtype=torch.int64, device=like.device)
    # The bounds are those of int64: without them the highest bit is always 0.
    random_bytes = draws.random_(-(2**63), None).view(torch.uint8)[: like.numel()]
    return (random_bytes >= dropped).to(like.dtype).mul_(256 / (256 - dropped)).view(like.shape)


def dropped_bytes(dropout: float) -> int:
    """Return how many of the 256 values of a byte mean "dropped"; at most 255."""
    # With all 256 dropped, the factor 256 / (256 - dropped) would be infinite.
    return min(255, round(256 * dropout))
