"""From a model and a mask to a smaller dense model that computes the same."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from core.conformer.axes import Axis, Mask
from core.conformer.masking import close_empty_modules, fold, named_tensors
from core.conformer.model import Conformer
from core.conformer.shape import BlockShape, Shape
from core.pruning.low_rank import build_model, multiply_factors


def extract(model: Conformer, mask: Mask) -> Conformer:
    """A new model of the kept sizes, soft gates folded into their consumers.

    Factors that hold no fewer entries than their product are multiplied out.

    Raises:
        ValueError: if an axis keeps fewer units than it must.
    """
    return multiply_factors(extract_factored(model, mask))


def extract_factored(model: Conformer, mask: Mask) -> Conformer:
    """The same, with its factors as they are.

    Block after block is folded, so that beside the two models no more than one block is in memory.
    """
    axes = model.axes()
    floats = {name: values.to(model.head.weight) for name, values in mask.items()}
    kept = open_blocks(model.shape, floats)
    tensors: dict[str, Tensor] = {}
    for part in _parts(named_tensors(model)):
        with torch.no_grad():
            folded = fold(part, axes, floats)
        for name, tensor in folded.tensors.items():
            if (new := small_name(name, kept)) is not None:
                # Folding gives a tensor back as it is, or makes a new one.
                tensors[new] = tensor.detach().clone() if tensor is part[name] else tensor
    shape = kept_shape(model.shape, axes, floats)
    return build_model(shape, tensors, is_training=model.training, is_copied=False)


def _parts(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """A model's tensors by block, the others by what they belong to."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, number, *_ = name.split(".")
        part = f"{module}.{number}" if module == "blocks" else module
        parts.setdefault(part, {})[name] = tensor
    return list(parts.values())


def of_blocks(model: Conformer, blocks: Collection[int]) -> Conformer:
    """The model of these blocks alone, in their old order."""
    gone = (i for i in range(len(model.blocks)) if i not in blocks)
    return extract(model, {f"blocks.{i}": torch.zeros(1) for i in gone})


def kept_shape(shape: Shape, axes: list[Axis], mask: Mask) -> Shape:
    """The sizes that are left; a module without units, or behind a closed gate, has size 0.

    A block behind a closed gate is not there at all.
    """
    alive = close_empty_modules(axes, mask)

    def kept(name: str, size: int) -> int:
        return int((alive[name] != 0).sum()) if name in alive else size

    def kept_block(name: str, block: BlockShape) -> BlockShape:
        return replace(
            block,
            ff1=kept(f"{name}.ff1", 1) and kept(f"{name}.ff1.inner", block.ff1),
            heads=kept(f"{name}.attention", 1) and kept(f"{name}.attention.head", block.heads),
            channels=kept(f"{name}.convolution", 1)
            and kept(f"{name}.convolution.channel", block.channels),
            ff2=kept(f"{name}.ff2", 1) and kept(f"{name}.ff2.inner", block.ff2),
        )

    left = open_blocks(shape, mask)
    blocks = tuple(kept_block(f"blocks.{i}", shape.blocks[i]) for i in left)
    small = replace(
        shape,
        sub1=kept("frontend.sub1", shape.sub1),
        sub2=kept("frontend.sub2", shape.sub2),
        sub3=kept("frontend.sub3", shape.sub3),
        width=kept("width", shape.width),
        blocks=blocks,
    )
    there = set(small.linears())
    named = {small_name(n, left): kept(f"{n}.rank", rank) for n, rank in shape.ranks.items()}
    return replace(small, ranks={n: rank for n, rank in named.items() if n in there})


def open_blocks(shape: Shape, mask: Mask) -> tuple[int, ...]:
    """The numbers of the blocks whose gates are not shut."""
    numbers = range(len(shape.blocks))
    return tuple(i for i in numbers if f"blocks.{i}" not in mask or mask[f"blocks.{i}"].any())


def small_name(name: str, kept: Sequence[int]) -> str | None:
    """What a part is called where these blocks are left, numbered anew; None if it is gone."""
    if not name.startswith("blocks."):
        return name
    _, number, *rest = name.split(".")
    if int(number) not in kept:
        return None
    return ".".join(("blocks", str(kept.index(int(number))), *rest))


def clone(model: Conformer) -> Conformer:
    """A copy that shares no parameter and no buffer."""
    return copy.deepcopy(model)


def without_weights(model: Conformer) -> Conformer:
    """A model of the same shape on the `meta` device: to ask for axes and costs."""
    with torch.device("meta"):
        return Conformer(model.shape)


def as_mask(choice: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: units.float() for name, units in choice.items()}
