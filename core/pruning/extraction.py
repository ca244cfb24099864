"""Extraction: from a model and a mask to a smaller dense model that computes the same."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from core.conformer.axes import Axis, Mask
from core.conformer.masking import close_empty_modules, fold, named_tensors
from core.conformer.model import Conformer
from core.conformer.shape import BlockShape, Shape, TransducerShape
from core.pruning.low_rank import build_model, multiply_factors


def extract(model: Conformer, mask: Mask) -> Conformer:
    """Return a dense model of the open units, soft gates folded into their consumers.

    Factors that hold no fewer entries than their product are multiplied out.

    Raises:
        ValueError: if an axis keeps fewer units than it must.
    """
    return multiply_factors(extract_factored(model, mask))


def extract_factored(model: Conformer, mask: Mask) -> Conformer:
    """Do the same as `extract`, but leave factors as they are.

    One block is folded at a time, so memory holds the two models and at most one block more.
    """
    axes = model.axes()
    floats = {name: values.to(model.frontend.linear.weight) for name, values in mask.items()}
    block_numbers = open_blocks(model.shape, floats)
    tensors: dict[str, Tensor] = {}
    # Phase 1: fold and narrow part by part, under the names that tensors have in the small model.
    for part in _parts(named_tensors(model)):
        with torch.no_grad():
            folded = fold(part, axes, floats)
        for name, tensor in folded.tensors.items():
            if (new := small_name(name, block_numbers)) is not None:
                # Folding gives a tensor back as it is, or makes a new one.
                tensors[new] = tensor.detach().clone() if tensor is part[name] else tensor
    # Phase 2: a model of the sizes that are left takes the tensors over.
    shape = extracted_shape(model.shape, axes, floats)
    return build_model(shape, tensors, is_training=model.training, is_copied=False)


def _parts(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Group a model's tensors by block, and those outside blocks by their module."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        # `blocks.3.norm.weight` goes to part `blocks.3`, `frontend.linear.bias` to `frontend`.
        module, number, *_ = name.split(".")
        part = f"{module}.{number}" if module == "blocks" else module
        parts.setdefault(part, {})[name] = tensor
    return list(parts.values())


def select_blocks(model: Conformer, blocks: Collection[int]) -> Conformer:
    """Return the model with these blocks alone, in their old order."""
    removed = (i for i in range(len(model.blocks)) if i not in blocks)
    return extract(model, {f"blocks.{i}": torch.zeros(1) for i in removed})


def extracted_shape(shape: Shape, axes: list[Axis], mask: Mask) -> Shape:
    """Return the sizes after extraction; a module without open units has size 0.

    A block behind a closed gate is removed from the list of blocks.
    """
    active = close_empty_modules(axes, mask)

    def count_open(name: str, size: int) -> int:
        return int((active[name] != 0).sum()) if name in active else size

    def block_shape(name: str, block: BlockShape) -> BlockShape:
        return replace(
            block,
            # 0 if the gate of the module is closed, else the number of its open units.
            ff1=count_open(f"{name}.ff1", 1) and count_open(f"{name}.ff1.inner", block.ff1),
            heads=count_open(f"{name}.attention", 1)
            and count_open(f"{name}.attention.head", block.heads),
            channels=count_open(f"{name}.convolution", 1)
            and count_open(f"{name}.convolution.channel", block.channels),
            ff2=count_open(f"{name}.ff2", 1) and count_open(f"{name}.ff2.inner", block.ff2),
        )

    remaining = open_blocks(shape, mask)
    blocks = tuple(block_shape(f"blocks.{i}", shape.blocks[i]) for i in remaining)
    small = replace(
        shape,
        sub1=count_open("frontend.sub1", shape.sub1),
        sub2=count_open("frontend.sub2", shape.sub2),
        sub3=count_open("frontend.sub3", shape.sub3),
        width=count_open("width", shape.width),
        blocks=blocks,
        transducer=shape.transducer and _transducer_shape(shape.transducer, count_open),
    )
    # A factored layer leaves with its module, and its rank with it.
    existing = set(small.linears())
    named = {
        small_name(n, remaining): count_open(f"{n}.rank", rank) for n, rank in shape.ranks.items()
    }
    return replace(small, ranks={n: rank for n, rank in named.items() if n in existing})


def _transducer_shape(
    shape: TransducerShape, count_open: Callable[[str, int], int]
) -> TransducerShape:
    predictor = "transducer.predictor"
    return replace(
        shape,
        embedding=count_open(f"{predictor}.embedding", shape.embedding),
        units=tuple(
            count_open(f"{predictor}.layers.{i}", size) for i, size in enumerate(shape.units)
        ),
        joint=count_open("transducer.joint", shape.joint),
    )


def open_blocks(shape: Shape, mask: Mask) -> tuple[int, ...]:
    """Return the numbers of the blocks whose gates are open."""
    numbers = range(len(shape.blocks))
    return tuple(i for i in numbers if f"blocks.{i}" not in mask or mask[f"blocks.{i}"].any())


def small_name(name: str, block_numbers: Sequence[int]) -> str | None:
    """Return a tensor's name after extraction of these blocks, or None if it is removed.

    For example, with blocks (0, 3) kept, `blocks.3.norm.weight` becomes `blocks.1.norm.weight`.
    """
    if not name.startswith("blocks."):
        return name
    _, number, *rest = name.split(".")
    if int(number) not in block_numbers:
        return None
    return ".".join(("blocks", str(block_numbers.index(int(number))), *rest))


def clone(model: Conformer) -> Conformer:
    """Return a copy that shares no parameter and no buffer."""
    return copy.deepcopy(model)


def without_weights(model: Conformer) -> Conformer:
    """Return a model of the same shape on the `meta` device, for its axes and costs."""
    with torch.device("meta"):
        return Conformer(model.shape)


def as_mask(choice: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: units.float() for name, units in choice.items()}
