"""The feed-forward module; a block has two, and adds half of the output of each.

Shapes: B batch, T frames, D width, N inner units.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from core.conformer.axes import Axis, Cost, Lengths, Slice, UnitCounts
from core.conformer.factored import (
    Linear,
    column_slice,
    linear,
    rank_axes,
    row_slices,
    saved_entries,
)
from core.conformer.norm import LayerNorm


class FeedForward(nn.Module):
    """The feed-forward module of a block; its units are inner units."""

    def __init__(self, *, width: int, inner: int, name: str, ranks: Mapping[str, int]) -> None:
        super().__init__()
        self.name = name
        self.norm = LayerNorm(width, name=f"{name}.norm")
        self.up = linear(f"{name}.up", width, inner, ranks)
        self.down = linear(f"{name}.down", inner, width, ranks)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        return self.down(F.silu(self.up(self.norm(x))))

    def axes(self) -> list[Axis]:
        units = Axis(
            name=f"{self.name}.inner",
            kind="inner",
            size=self.up.out_features,
            parent=self.name,
            slices=(
                *row_slices(f"{self.name}.up", self.up),
                column_slice(f"{self.name}.down", self.down, is_scaled=True),
            ),
        )
        layers = {f"{self.name}.up": self.up, f"{self.name}.down": self.down}
        module = module_axis(self.name, f"{self.name}.down", self.down)
        return [module, units, *rank_axes(layers)]

    def width_slices(self) -> tuple[Slice, ...]:
        return (
            *self.norm.width_slices(),
            column_slice(f"{self.name}.up", self.up),
            *row_slices(f"{self.name}.down", self.down, is_scaled=True),
        )

    def cost(self, counts: UnitCounts, lengths: Lengths) -> Cost:
        # up d n + n, down d n + d, the norm 2 d; two products of 2 d n FLOPs a frame.
        d, n = counts["width"], counts[f"{self.name}.inner"]
        less = saved_entries(counts, f"{self.name}.up", d, n) + saved_entries(
            counts, f"{self.name}.down", n, d
        )
        return counts[self.name] * Cost(
            params=2 * d * n + n + 3 * d - less,
            flops=4 * lengths.frames * d * n - 2 * lengths.frames * less,
        )


def module_axis(name: str, output: str, projection: Linear) -> Axis:
    """Return the axis of one unit that is a whole module; its gate scales the module's output."""
    # The one unit owns all rows of the output projection, and its bias. Scaling these scales what
    # the module adds to the residual stream.
    return Axis(
        name=name,
        kind="module",
        size=1,
        parent=name.rpartition(".")[0],
        slices=row_slices(output, projection, block=projection.out_features, is_scaled=True),
    )
