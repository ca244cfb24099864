"""The feed-forward module, two of which stand in a block, each adding half its output.

Shapes: B batch, T frames, D width, N inner units.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from core.conformer.axes import Axis, Cost, Kept, Lengths, Slice
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

    def cost(self, kept: Kept, lengths: Lengths) -> Cost:
        d, n = kept["width"], kept[f"{self.name}.inner"]
        less = saved_entries(kept, f"{self.name}.up", d, n) + saved_entries(
            kept, f"{self.name}.down", n, d
        )
        return kept[self.name] * Cost(
            params=2 * d * n + n + 3 * d - less,
            flops=4 * lengths.frames * d * n - 2 * lengths.frames * less,
        )


def module_axis(name: str, output: str, projection: Linear) -> Axis:
    """The axis of one unit that is a whole module of a block: its gate scales what it adds."""
    return Axis(
        name=name,
        kind="module",
        size=1,
        parent=name.rpartition(".")[0],
        slices=row_slices(output, projection, block=projection.out_features, is_scaled=True),
    )
