"""A Conformer block (Gulati et al., 2020): feed-forward, attention, convolution, feed-forward.

A module that is gone adds nothing; the final norm stays even when all four are gone, as norm after
norm is no identity.

Shapes: B batch, T frames, D width.
"""

from collections.abc import Set as AbstractSet

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.conformer.attention import Attention
from core.conformer.axes import Axis, Cost, Kept, Lengths, Slice, total
from core.conformer.convolution import Convolution
from core.conformer.feedforward import FeedForward
from core.conformer.norm import LayerNorm
from core.conformer.shape import BlockShape, Shape

Part = FeedForward | Attention | Convolution


class Block(nn.Module):
    ff1: FeedForward | None
    attention: Attention | None
    convolution: Convolution | None
    ff2: FeedForward | None

    def __init__(self, sizes: BlockShape, shape: Shape, *, name: str) -> None:
        super().__init__()
        self.name = name
        self.dropout = 0.0
        width = shape.width
        self.ff1 = _feedforward(width, sizes.ff1, f"{name}.ff1")
        self.attention = (
            Attention(
                width=width,
                position_width=shape.position_width,
                heads=sizes.heads,
                head_width=shape.head_width,
                name=f"{name}.attention",
                linear_features=sizes.linear_features,
            )
            if sizes.heads
            else None
        )
        self.convolution = (
            Convolution(
                width=width,
                channels=sizes.channels,
                kernel=shape.kernel,
                name=f"{name}.convolution",
            )
            if sizes.channels
            else None
        )
        self.ff2 = _feedforward(width, sizes.ff2, f"{name}.ff2")
        self.norm = LayerNorm(width, name=f"{name}.norm")

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        is_frame: Bool[Tensor, "batch time"],
        distances: Float[Tensor, "distances position_width"],
        closed: AbstractSet[str],
    ) -> Float[Tensor, "batch time width"]:
        """`closed` names modules whose gates are shut: they add nothing, and cost nothing."""
        if self.ff1 is not None and self.ff1.name not in closed:
            x = x + 0.5 * self._dropped(self.ff1(x))
        if self.attention is not None and self.attention.name not in closed:
            x = x + self._dropped(self.attention(x, is_frame, distances))
        if self.convolution is not None and self.convolution.name not in closed:
            x = x + self._dropped(self.convolution(x, is_frame))
        if self.ff2 is not None and self.ff2.name not in closed:
            x = x + 0.5 * self._dropped(self.ff2(x))
        return self.norm(x)

    def _dropped(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.dropout(x, self.dropout, self.training)

    def parts(self) -> list[Part]:
        parts = (self.ff1, self.attention, self.convolution, self.ff2)
        return [part for part in parts if part is not None]

    def axes(self) -> list[Axis]:
        return [axis for part in self.parts() for axis in part.axes()]

    def width_slices(self) -> tuple[Slice, ...]:
        inside = (piece for part in self.parts() for piece in part.width_slices())
        return (*inside, *self.norm.width_slices())

    def cost(self, kept: Kept, lengths: Lengths) -> Cost:
        norm = Cost(params=2 * kept["width"], flops=0)
        return total(part.cost(kept, lengths) for part in self.parts()) + norm


def _feedforward(width: int, inner: int, name: str) -> FeedForward | None:
    return FeedForward(width=width, inner=inner, name=name) if inner else None
