"""A Conformer block (Gulati et al., 2020): feed-forward, attention, convolution, feed-forward.

A removed module adds nothing. The final norm stays even without all four modules, as a norm of a
norm is not the identity. A removed block is skipped together with its norm.

Shapes: B batch, T frames, D width.
"""

from collections.abc import Set as AbstractSet

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.conformer.attention import Attention
from core.conformer.axes import Axis, Cost, Lengths, Slice, UnitCounts, total
from core.conformer.convolution import Convolution
from core.conformer.dropout import add_with_dropout
from core.conformer.feedforward import FeedForward
from core.conformer.norm import LayerNorm
from core.conformer.shape import BlockShape, Shape

BlockModule = FeedForward | Attention | Convolution
BLOCK_SHARES = {"ff1": 0.5, "attention": 1.0, "convolution": 1.0, "ff2": 0.5}
"""Modules of a block in order, and the factor with which each is added to the residual stream."""


class Block(nn.Module):
    """A block, whose modules may be missing."""

    ff1: FeedForward | None
    attention: Attention | None
    convolution: Convolution | None
    ff2: FeedForward | None

    def __init__(self, sizes: BlockShape, shape: Shape, *, name: str) -> None:
        super().__init__()
        self.name = name
        self.dropout = 0.0
        self.skip_probability = 0.0
        """Probability that a training step skips this block; the training loop samples it."""
        width = shape.width
        self.ff1 = _feedforward(shape, sizes.ff1, f"{name}.ff1")
        self.attention = (
            Attention(
                width=width,
                position_width=shape.position_width,
                heads=sizes.heads,
                head_width=shape.head_width,
                name=f"{name}.attention",
                ranks=shape.ranks,
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
                ranks=shape.ranks,
            )
            if sizes.channels
            else None
        )
        self.ff2 = _feedforward(shape, sizes.ff2, f"{name}.ff2")
        self.norm = LayerNorm(width, name=f"{name}.norm")

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        is_frame: Bool[Tensor, "batch time"],
        distances: Float[Tensor, "distances position_width"],
        closed: AbstractSet[str],
        frames: Int[Tensor, " real"] | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """Compute the block without the modules named in `closed`, whose gates are closed.

        Args:
            x: the residual stream.
            is_frame: whether each frame is real, not padding.
            distances: the table of distances T - 1 to -(T - 1).
            closed: names of modules.
            frames: the numbers of the real frames, where they are known.
        """
        if self.ff1 is not None and self.ff1.name not in closed:
            x = self._with(x, self.ff1(x), share=BLOCK_SHARES["ff1"])
        if self.attention is not None and self.attention.name not in closed:
            x = self._with(x, self.attention(x, is_frame, distances))
        if self.convolution is not None and self.convolution.name not in closed:
            x = self._with(x, self.convolution(x, is_frame, frames))
        if self.ff2 is not None and self.ff2.name not in closed:
            x = self._with(x, self.ff2(x), share=BLOCK_SHARES["ff2"])
        return self.norm(x)

    def _with(
        self, x: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"], share: float = 1.0
    ) -> Float[Tensor, "*shape"]:
        """Add a module's output to the residual stream, with dropout in training."""
        if not self.training:
            return add_with_dropout(x, y, share=share, dropout=0.0)
        # A block that is skipped at times adds more at others, so that the mean stays the same.
        return add_with_dropout(
            x, y, share=share / (1 - self.skip_probability), dropout=self.dropout
        )

    def parts(self) -> list[BlockModule]:
        parts = (self.ff1, self.attention, self.convolution, self.ff2)
        return [part for part in parts if part is not None]

    def axes(self) -> list[Axis]:
        """Return the block's axis, whose gate scales its modules' outputs, then the modules'."""
        inside = [axis for part in self.parts() for axis in part.axes()]
        # The block's norm is not scaled: its input is the residual stream itself, which must pass a
        # half-open gate in full.
        outputs = (piece for axis in inside if axis.is_whole for piece in axis.slices)
        return [Axis(name=self.name, kind="block", size=1, slices=tuple(outputs)), *inside]

    def width_slices(self) -> tuple[Slice, ...]:
        inside = (piece for part in self.parts() for piece in part.width_slices())
        return (*inside, *self.norm.width_slices())

    def cost(self, counts: UnitCounts, lengths: Lengths) -> Cost:
        # Gain and bias of the final norm, which goes with the block alone, never with its modules.
        norm = Cost(params=2 * counts["width"], flops=0)
        inside = total(part.cost(counts, lengths) for part in self.parts())
        return counts[self.name] * (inside + norm)


def _feedforward(shape: Shape, inner: int, name: str) -> FeedForward | None:
    if not inner:
        return None
    return FeedForward(width=shape.width, inner=inner, name=name, ranks=shape.ranks)
