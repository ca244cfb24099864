"""A linear layer as two factors, `reduce` then `expand`, whose units are directions.

W x = E (z * (R x)) with K directions between M inputs and N outputs, each gated at the input of
`expand`. A pair holds K (M + N) entries where W holds M N, so past its break-even it is better
multiplied out, which extraction does: that is what a choice costs.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from core.conformer.axes import Axis, Kept, Number, Slice


class Factored(nn.Module):
    def __init__(self, inputs: int, outputs: int, rank: int, *, has_bias: bool = True) -> None:
        super().__init__()
        self.reduce = nn.Linear(inputs, rank, bias=False)
        self.expand = nn.Linear(rank, outputs, bias=has_bias)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return self.expand(self.reduce(x))

    @property
    def in_features(self) -> int:
        return self.reduce.in_features

    @property
    def out_features(self) -> int:
        return self.expand.out_features


Linear = nn.Linear | Factored


def linear(
    name: str, inputs: int, outputs: int, ranks: Mapping[str, int], *, has_bias: bool = True
) -> Linear:
    """A layer of that name: factored if it has a rank, else one matrix."""
    if name in ranks:
        return Factored(inputs, outputs, ranks[name], has_bias=has_bias)
    return nn.Linear(inputs, outputs, bias=has_bias)


def row_slices(
    name: str, layer: Linear, *, block: int = 1, offset: int = 0, is_scaled: bool = False
) -> tuple[Slice, ...]:
    """What a unit owns of a layer whose outputs it is: rows, and their bias if there is one."""
    last = layer.expand if isinstance(layer, Factored) else layer
    prefix = f"{name}.expand" if isinstance(layer, Factored) else name
    return tuple(
        Slice(tensor=f"{prefix}.{tensor}", dim=0, block=block, offset=offset, is_scaled=is_scaled)
        for tensor, _ in last.named_parameters()
    )


def column_slice(name: str, layer: Linear, *, block: int = 1, is_scaled: bool = False) -> Slice:
    """What a unit owns of a layer whose inputs it is."""
    prefix = f"{name}.reduce" if isinstance(layer, Factored) else name
    return Slice(tensor=f"{prefix}.weight", dim=1, block=block, is_scaled=is_scaled)


def rank_axes(layers: Mapping[str, Linear]) -> list[Axis]:
    """The directions of those layers that are factored; one must stay: no layer is a constant."""
    return [
        Axis(
            name=f"{name}.rank",
            kind="rank",
            size=layer.reduce.out_features,
            floor=1,
            slices=(
                Slice(tensor=f"{name}.reduce.weight", dim=0),
                Slice(tensor=f"{name}.expand.weight", dim=1, is_scaled=True),
            ),
        )
        for name, layer in layers.items()
        if isinstance(layer, Factored)
    ]


def saved_entries(kept: Kept, name: str, inputs: Number, outputs: Number) -> Number:
    """Entries that a layer does without because it is factored: none past its break-even.

    Of expected counts it is that of the means, as it is not multilinear: at certainty it is exact,
    and past the break-even a closing direction is worth nothing, as it is.
    """
    rank = kept.get(f"{name}.rank")
    if rank is None:
        return 0
    less = inputs * outputs - rank * (inputs + outputs)
    return less.clamp(min=0) if isinstance(less, Tensor) else max(less, 0)
