"""Axes and costs: how each part of the model states what can be removed, and what it costs.

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
UnitCounts = Mapping[str, Number]
"""The number of open units of each axis, by the axis's name."""
Mask = Mapping[str, Tensor]
"""The gates' values in [0, 1], by the axis's name; an axis without an entry is open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Unit j owns entries offset + j * block up to offset + (j + 1) * block of one dimension."""

    # Examples: head 1 of heads of width 64 owns entries 64 to 127 (block 64). Channel 1 of 256 owns
    # rows 1 and 257 of the GLU's matrix: two slices, with offsets 0 and 256.
    tensor: str
    """Name of a parameter or buffer in the model's state."""
    dim: int
    block: int = 1
    offset: int = 0
    is_scaled: bool = False
    """Whether the gate's value multiplies these entries, or only a closed gate removes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A set of like units that can be removed."""

    name: str
    """Its name; for a module or a block that of the module: closing it removes all its tensors."""
    kind: AxisKind
    size: int
    slices: tuple[Slice, ...]
    parent: str | None = None
    """The axis whose closing closes these, too: of units their module, of a module its block.

    A module closes with its last unit. A block does not close with its last module: its norm stays,
    as a norm of a norm is not the identity.
    """
    floor: int = 0
    """Units that must stay for the model to compute anything."""

    @property
    def is_whole(self) -> bool:
        """Whether its one unit is a whole module or block, in which other axes lie."""
        return self.kind in ("module", "block")


def enclosing_axes(axes: Sequence[Axis]) -> dict[str, tuple[str, ...]]:
    """Return the module and the block around each axis, by its name, innermost first."""
    parents = {axis.name: axis.parent for axis in axes}

    def chain(name: str) -> tuple[str, ...]:
        parent = parents.get(name)
        return () if parent is None else (parent, *chain(parent))

    # `blocks.0.ff1.inner` lies in ("blocks.0.ff1", "blocks.0"), and `width` in nothing.
    return {axis.name: chain(axis.name) for axis in axes}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of a choice: exact integers, or differentiable expectations.

    Parts add up parameters and FLOPs; the latency of a whole model is computed by its space.
    """

    params: Number
    flops: Number
    latency: float | Tensor = 0.0
    """Milliseconds of a whole model from a latency table; 0 without a table."""

    def __add__(self, other: "Cost") -> "Cost":
        # Without latency: a table corrects the sum of all components, so one part has none of its
        # own.
        return Cost(params=self.params + other.params, flops=self.flops + other.flops)

    def __rmul__(self, share: Number) -> "Cost":
        return Cost(params=share * self.params, flops=share * self.flops)


def square_name(name: str) -> str:
    """Return the key in counts of an axis's squared number of units."""
    return f"{name}^2"


def square_of(counts: UnitCounts, name: str) -> Number:
    """Return the square of an axis's number of units; of a random number what is stated as such."""
    # Two gates that are open with probability 0.5 have a mean number of 1, whose square is 1; but
    # the mean square is 0.25 * 0 + 0.5 * 1 + 0.25 * 4 = 1.5.
    return counts.get(square_name(name), counts[name] * counts[name])


def total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, start=Cost(params=0, flops=0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Numbers of frames of one utterance in the front end."""

    seconds: float
    mels: int
    stages: tuple[int, ...]
    """Frames after each convolution."""
    frames: int
    """Frames after the last convolution, which the blocks read."""

    @classmethod
    def of(cls, seconds: float, spec: FrontendSpec = NATIVE) -> "Lengths":
        # 10 s at 16 kHz are 1000 mel frames; the native front end makes 499 and then 249 of them.
        mels = spec.count_frames(round(seconds * 16_000))
        stages = spec.stage_frames(mels)
        # Without convolutions there is no last stage, and the blocks read the mel frames.
        frames = (mels, *stages)[-1]
        return cls(seconds=seconds, mels=mels, stages=stages, frames=frames)
