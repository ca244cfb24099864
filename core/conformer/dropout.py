"""Dropout whose chance is cheap on a CPU: a byte an element, eight bytes a draw.

torch draws a number an element there, which is a tenth of a training step and more in bf16. The
probability is rounded to 256ths, and what is kept is scaled by what was realised, so the mean is
exact. All chance is torch's, so a seed repeats it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def add_with_dropout(
    x: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"], *, share: float, dropout: float
) -> Float[Tensor, "*shape"]:
    """`x` and a share of `y`, elements of which are dropped with that probability; in x's type."""
    y = y.to(x.dtype)  # the sum of two types takes many times as long as the cast
    if dropout == 0:
        return torch.add(x, y, alpha=share)
    if y.device.type != "cpu":
        return torch.add(x, F.dropout(y, dropout), alpha=share)
    return torch.addcmul(x, y, dropout_multiplier(y, dropout), value=share)


def dropout_multiplier(like: Float[Tensor, "*shape"], dropout: float) -> Float[Tensor, "*shape"]:
    """By what to multiply: 0 where dropped, and elsewhere what gives the product the same mean."""
    dropped = dropped_bytes(dropout)
    draws = torch.empty(-(-like.numel() // 8), dtype=torch.int64, device=like.device)
    # The bounds are those of the type: without them the highest bit is never drawn.
    chance = draws.random_(-(2**63), None).view(torch.uint8)[: like.numel()]
    return (chance >= dropped).to(like.dtype).mul_(256 / (256 - dropped)).view(like.shape)


def dropped_bytes(dropout: float) -> int:
    """Of the 256 values of a byte, how many drop; all never do."""
    return min(255, round(256 * dropout))
