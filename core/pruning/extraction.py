"""From a model and a mask to a smaller dense model that computes the same."""

import copy
from dataclasses import replace

import torch
from torch import Tensor

from core.conformer.axes import Axis, Mask
from core.conformer.gate import fold, resolved, tensors_of
from core.conformer.model import Conformer
from core.conformer.shape import Shape


def extract(model: Conformer, mask: Mask) -> Conformer:
    """A new model of the kept sizes, soft gates folded into their consumers.

    Raises:
        ValueError: if an axis keeps fewer units than it must.
    """
    axes = model.axes()
    with torch.no_grad():
        floats = {name: values.to(model.head.weight) for name, values in mask.items()}
        folded = fold(tensors_of(model), axes, floats)
    with torch.device("meta"):
        small = Conformer(kept_shape(model.shape, axes, floats))
    tensors = {name: tensor.detach().clone() for name, tensor in folded.tensors.items()}
    small.load_state_dict(tensors, assign=True)
    for parameter in small.parameters():
        parameter.requires_grad_()  # assigned tensors bring their own flag
    return small.train(model.training)


def kept_shape(shape: Shape, axes: list[Axis], mask: Mask) -> Shape:
    """The sizes that are left; a module without units, or behind a closed gate, has size 0."""
    alive = resolved(axes, mask)

    def kept(name: str, size: int) -> int:
        return int((alive[name] != 0).sum()) if name in alive else size

    blocks = tuple(
        replace(
            block,
            ff1=kept(f"blocks.{i}.ff1", 1) and kept(f"blocks.{i}.ff1.inner", block.ff1),
            heads=kept(f"blocks.{i}.attention", 1)
            and kept(f"blocks.{i}.attention.head", block.heads),
            channels=kept(f"blocks.{i}.convolution", 1)
            and kept(f"blocks.{i}.convolution.channel", block.channels),
            ff2=kept(f"blocks.{i}.ff2", 1) and kept(f"blocks.{i}.ff2.inner", block.ff2),
        )
        for i, block in enumerate(shape.blocks)
    )
    return replace(
        shape,
        sub1=kept("frontend.sub1", shape.sub1),
        sub2=kept("frontend.sub2", shape.sub2),
        width=kept("width", shape.width),
        blocks=blocks,
    )


def clone(model: Conformer) -> Conformer:
    """A copy that shares no parameter and no buffer."""
    return copy.deepcopy(model)


def as_mask(choice: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: units.float() for name, units in choice.items()}
