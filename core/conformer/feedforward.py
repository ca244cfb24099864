"""The feed-forward module, two of which stand in a block, each adding half its output.

Shapes: B batch, T frames, D width, N inner units.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from core.conformer.axes import Axis, Cost, Kept, Lengths, Slice
from core.conformer.norm import LayerNorm


class FeedForward(nn.Module):
    def __init__(self, *, width: int, inner: int, name: str) -> None:
        super().__init__()
        self.name = name
        self.norm = LayerNorm(width, name=f"{name}.norm")
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        return self.down(F.silu(self.up(self.norm(x))))

    def axes(self) -> list[Axis]:
        units = Axis(
            name=f"{self.name}.inner",
            kind="inner",
            size=self.up.out_features,
            parent=self.name,
            slices=(
                Slice(tensor=f"{self.name}.up.weight", dim=0),
                Slice(tensor=f"{self.name}.up.bias", dim=0),
                Slice(tensor=f"{self.name}.down.weight", dim=1, is_scaled=True),
            ),
        )
        return [module_axis(self.name, f"{self.name}.down", self.down), units]

    def width_slices(self) -> tuple[Slice, ...]:
        return (
            *self.norm.width_slices(),
            Slice(tensor=f"{self.name}.up.weight", dim=1),
            *producer_slices(f"{self.name}.down"),
        )

    def cost(self, kept: Kept, lengths: Lengths) -> Cost:
        d, n = kept["width"], kept[f"{self.name}.inner"]
        return kept[self.name] * Cost(
            params=2 * d * n + n + 3 * d, flops=4 * lengths.quarter * d * n
        )


def module_axis(name: str, output: str, projection: nn.Linear) -> Axis:
    """The axis of one unit that is a whole module of a block: its gate scales what it adds."""
    rows = projection.out_features
    return Axis(
        name=name,
        kind="module",
        size=1,
        parent=name.rpartition(".")[0],
        slices=(
            Slice(tensor=f"{output}.weight", dim=0, block=rows, is_scaled=True),
            Slice(tensor=f"{output}.bias", dim=0, block=rows, is_scaled=True),
        ),
    )


def producer_slices(output: str) -> tuple[Slice, ...]:
    """What a projection that adds to the residual stream owns of each unit of the width."""
    return (
        Slice(tensor=f"{output}.weight", dim=0, is_scaled=True),
        Slice(tensor=f"{output}.bias", dim=0, is_scaled=True),
    )
