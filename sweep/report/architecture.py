"""What is left of each part of a pruned model, read from its bundle's sizes. Needs no torch."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from core.conformer.shape import BlockShape, Shape, read_shape
from core.outside_files import read_json
from core.report import KEPT_UNITS, upgrade_format_1

PARTS = ("ff1", "heads", "channels", "ff2")
"""Of a block, in the order in which it computes them."""
GONE = BlockShape(ff1=0, heads=0, channels=0, ff2=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """Units that remain of an axis."""

    remaining: int
    whole: int

    @property
    def share(self) -> float:
        return self.remaining / self.whole if self.whole else 0.0

    def __str__(self) -> str:
        return f"{self.remaining}/{self.whole}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Structure:
    """A whole model."""

    blocks: tuple[tuple[Left, ...], ...]
    """From the first on; of each the `PARTS`, then its whole modules."""
    trunk: tuple[Left, Left, Left]
    """The front end's two convolutions and the width of the residual stream."""


def structure(small: Shape, whole: Shape, blocks: Collection[int] | None = None) -> Structure:
    """Return the units that a pruned model has of its teacher.

    Args:
        small: its sizes.
        whole: those of the other.
        blocks: which of the other's blocks it has; None for all.
    """
    # A pruned model lists only the blocks that it has: with blocks 0 and 2 of three, its second
    # block stands for block 2, and block 1 is GONE.
    remaining = iter(small.blocks)
    there = [next(remaining) if blocks is None or i in blocks else GONE for i in _numbers(whole)]
    return Structure(
        blocks=tuple(map(_block, there, whole.blocks)),
        trunk=(
            Left(remaining=small.sub1, whole=whole.sub1),
            Left(remaining=small.sub2, whole=whole.sub2),
            Left(remaining=small.width, whole=whole.width),
        ),
    )


def read_structure(bundle: Path, teacher: Path) -> Structure | None:
    """Read the structure from two folders of bundles; None if one is missing or they do not fit."""
    small, whole = _shape(bundle), _shape(teacher)
    if small is None or whole is None:
        return None
    missing = _gone_blocks(bundle)
    blocks = [i for i in _numbers(whole) if f"blocks.{i}" not in missing]
    return structure(small, whole, blocks) if len(blocks) == len(small.blocks) else None


def _numbers(whole: Shape) -> range:
    return range(len(whole.blocks))


def _gone_blocks(bundle: Path) -> set[str]:
    """Those of which a bundle's report says that nothing was kept."""
    try:
        kept_units = upgrade_format_1(read_json(bundle / "report.json"))[KEPT_UNITS]
        return {name for name, units in kept_units.items() if not units}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return set()


def _block(small: BlockShape, whole: BlockShape) -> tuple[Left, ...]:
    # A block with ff1 gone and all else there has 3 of 4 whole modules.
    parts = [Left(remaining=getattr(small, name), whole=getattr(whole, name)) for name in PARTS]
    modules = Left(
        remaining=sum(part.remaining > 0 for part in parts),
        whole=sum(part.whole > 0 for part in parts),
    )
    return (*parts, modules)


def _shape(bundle: Path) -> Shape | None:
    try:
        return read_shape(read_json(bundle / "shape.json"))
    except (OSError, ValueError, TypeError):
        return None
