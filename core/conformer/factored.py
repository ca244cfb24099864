"""A linear layer as two factors, `reduce` then `expand`, whose units are directions.

W x = E (z * (R x)) with K directions between M inputs and N outputs, each gated at the input of
`expand`. A pair holds K (M + N) entries and W holds M N; if the pair is not smaller, extraction
multiplies it out, and costs are counted that way.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from core.conformer.axes import Axis, Number, Slice, UnitCounts


class Factored(nn.Module):
    """A linear layer as the product of two; its units are directions between them."""

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
    """Make a linear layer, factored if its name has a rank, else one matrix.

    Args:
        name: of the layer in the model.
        inputs: number of inputs.
        outputs: number of outputs.
        ranks: of factored layers, by name.
        has_bias: whether it adds a bias.
    """
    if name in ranks:
        return Factored(inputs, outputs, ranks[name], has_bias=has_bias)
    return nn.Linear(inputs, outputs, bias=has_bias)


# W = E R: outputs of the layer are rows of E, inputs are columns of R. The directions between them
# are an axis of their own, so that outputs, inputs and directions can all close independently.
def row_slices(
    name: str, layer: Linear, *, block: int = 1, offset: int = 0, is_scaled: bool = False
) -> tuple[Slice, ...]:
    """Return the slices of units that are outputs of a layer: rows, and the bias if there is one.

    Args:
        name: of the layer.
        layer: the layer.
        block: rows per unit.
        offset: the first row of the first unit.
        is_scaled: whether the gate's value multiplies these rows.
    """
    last = layer.expand if isinstance(layer, Factored) else layer
    prefix = f"{name}.expand" if isinstance(layer, Factored) else name
    return tuple(
        Slice(tensor=f"{prefix}.{tensor}", dim=0, block=block, offset=offset, is_scaled=is_scaled)
        for tensor, _ in last.named_parameters()  # `weight`, and `bias` if there is one
    )


def column_slice(name: str, layer: Linear, *, block: int = 1, is_scaled: bool = False) -> Slice:
    """Return the slice of units that are inputs of a layer: columns.

    Args:
        name: of the layer.
        layer: the layer.
        block: columns per unit.
        is_scaled: whether the gate's value multiplies these columns.
    """
    prefix = f"{name}.reduce" if isinstance(layer, Factored) else name
    return Slice(tensor=f"{prefix}.weight", dim=1, block=block, is_scaled=is_scaled)


def rank_axes(layers: Mapping[str, Linear]) -> list[Axis]:
    """Return the axes of factored layers; one direction must stay, as a layer is never constant."""
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


def saved_entries(counts: UnitCounts, name: str, inputs: Number, outputs: Number) -> Number:
    """Return the entries that a factored layer saves; 0 if its factors are not smaller.

    Example: 100 inputs, 50 outputs and rank 20 save 5,000 - 20 * 150 = 2,000 entries; rank 40 saves
    none. For expected counts it is computed from the means, as it is not multilinear: that is exact
    if gates are certain.

    Args:
        counts: open units of all axes.
        name: of the layer.
        inputs: number of its open inputs.
        outputs: number of its open outputs.
    """
    rank = counts.get(f"{name}.rank")
    if rank is None:
        return 0
    less = inputs * outputs - rank * (inputs + outputs)
    return less.clamp(min=0) if isinstance(less, Tensor) else max(less, 0)
