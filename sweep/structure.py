"""What is left of each part of a pruned model, read from its bundle's sizes. Needs no torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from core.conformer.shape import BlockShape, Shape

PARTS = ("ff1", "heads", "channels", "ff2")
"""Of a block, in the order in which it computes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """So many of so many units."""

    kept: int
    whole: int

    @property
    def share(self) -> float:
        return self.kept / self.whole if self.whole else 0.0

    def __str__(self) -> str:
        return f"{self.kept}/{self.whole}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Structure:
    """A whole model."""

    blocks: tuple[tuple[Left, ...], ...]
    """From the first on; of each the `PARTS`, then its whole modules."""
    trunk: tuple[Left, Left, Left]
    """The front end's two convolutions and the width of the residual stream."""


def structure(small: Shape, whole: Shape) -> Structure:
    """What a pruned model has left of the one it was cut from."""
    return Structure(
        blocks=tuple(map(_block, small.blocks, whole.blocks)),
        trunk=(
            Left(kept=small.sub1, whole=whole.sub1),
            Left(kept=small.sub2, whole=whole.sub2),
            Left(kept=small.width, whole=whole.width),
        ),
    )


def read_structure(bundle: Path, teacher: Path) -> Structure | None:
    """Of two bundles' folders; None where one is not there, or they are of different depth."""
    small, whole = _shape(bundle), _shape(teacher)
    if small is None or whole is None or len(small.blocks) != len(whole.blocks):
        return None
    return structure(small, whole)


def _block(small: BlockShape, whole: BlockShape) -> tuple[Left, ...]:
    parts = [Left(kept=getattr(small, name), whole=getattr(whole, name)) for name in PARTS]
    modules = Left(
        kept=sum(part.kept > 0 for part in parts), whole=sum(part.whole > 0 for part in parts)
    )
    return (*parts, modules)


def _shape(bundle: Path) -> Shape | None:
    try:
        plain = json.loads((bundle / "shape.json").read_text(encoding="utf-8"))
        return Shape.from_plain({key: plain[key] for key in plain if key != "format"})
    except (OSError, ValueError, TypeError):
        return None
