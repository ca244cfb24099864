"""The words in which a part of the model says what can be cut from it, and what it costs.

A gate multiplies a unit at its consumer's input. As W (z * h) = (W diag z) h, that is the same as
multiplying the consumer's columns, so a gate is stated as the entries of tensors that belong to its
unit, and which of them it scales. FLOPs are counted as torch counts them: 1 multiply-add = 2 FLOPs;
norms, activations and biases are free.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from core.config.pruning import AxisKind
from core.features.spec import NATIVE, FrontendSpec

Number = int | Tensor
"""An exact count, or a differentiable expectation of one."""
Kept = Mapping[str, Number]
"""How many units of each axis stay, by the axis's name."""
Mask = Mapping[str, Tensor]
"""The gates' values in [0, 1], by the axis's name; an axis without an entry is open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Unit j owns entries offset + j * block up to offset + (j + 1) * block of one dimension."""

    tensor: str
    """Name of a parameter or buffer in the model's state."""
    dim: int
    block: int = 1
    offset: int = 0
    is_scaled: bool = False
    """Whether the gate's value multiplies these entries, or only a closed gate removes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A set of like units that can be cut."""

    name: str
    """For a module or a block its own name: closing it removes every tensor below."""
    kind: AxisKind
    size: int
    slices: tuple[Slice, ...]
    parent: str | None = None
    """What takes these with it when it closes: of units their module, of a module its block.

    A module closes with the last of its units. A block does not close with the last of its modules:
    its norm stays, as norm after norm is no identity.
    """
    floor: int = 0
    """Units that must stay for the model to compute anything."""

    @property
    def is_whole(self) -> bool:
        """Whether its one unit is a whole module or block, in which other axes lie."""
        return self.kind in ("module", "block")


def around(axes: Sequence[Axis]) -> dict[str, tuple[str, ...]]:
    """By each axis's name the module and the block that it lies in, nearest first."""
    parents = {axis.name: axis.parent for axis in axes}

    def chain(name: str) -> tuple[str, ...]:
        parent = parents.get(name)
        return () if parent is None else (parent, *chain(parent))

    return {axis.name: chain(axis.name) for axis in axes}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a choice costs: exact integers, or differentiable expectations.

    Parts know parameters and FLOPs, which add up; the time of a model its space knows.
    """

    params: Number
    flops: Number
    latency: float | Tensor = 0.0
    """Milliseconds, of a whole model and by a measured table; 0 where none was given."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(params=self.params + other.params, flops=self.flops + other.flops)

    def __rmul__(self, share: Number) -> "Cost":
        return Cost(params=share * self.params, flops=share * self.flops)


def total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, start=Cost(params=0, flops=0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Frames of one utterance on its way through the front end."""

    mels: int
    stages: tuple[int, ...]
    """After each convolution."""
    frames: int
    """After the last: what the blocks see."""

    @classmethod
    def of(cls, seconds: float, spec: FrontendSpec = NATIVE) -> "Lengths":
        mels = spec.count_frames(round(seconds * 16_000))
        stages = spec.stage_frames(mels)
        return cls(mels=mels, stages=stages, frames=(mels, *stages)[-1])
