"""From another program's tensors to our Conformer, by a table of names.

What their programs compute in addition is folded in: the input's scale into the front end's linear
layer, missing biases as zeros, CTC's blank as row 0.
"""

import math
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.importers.safe_read import ImportingError, short_repr

BLANK_ROWS = ("head", "transducer.joint.output", "transducer.predictor.embedding")
"""Our modules with a row a token."""
OURS_ALONE = ("frontend.mean", "frontend.deviation")
"""Normalisation that features have already had."""
# `blocks.3.ff1.up.weight` becomes the pattern `blocks.{}.ff1.up.weight` and the number 3.
_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The shape of a model, and the names of the tensors it is made of."""

    shape: Shape
    names: Mapping[str, str]
    """Their modules or tensors by ours, `{}` for the number of a block."""
    blank: int
    """Its row of their tensors."""
    input_scale: float = 1.0
    unbiased: AbstractSet[str] = frozenset()
    """Our modules that have no bias in theirs."""
    ignored: Sequence[str] = field(default=("num_batches_tracked",))
    """Ends of names of tensors that no one needs."""
    unused: Sequence[str] = ()
    """Beginnings of names of tensors of parts that are left out."""
    starts_with_zeros: bool = False
    """Whether their predictor starts with zeros, and not with the blank's embedding."""
    made: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors by our names that stand in no file."""


def assemble_model(plan: Plan, tensors: Mapping[str, Tensor], file: str) -> Conformer:
    """The model, in evaluation mode.

    Raises:
        ImportingError: naming a tensor that is missing, unknown, or not as it must be.
    """
    with torch.device("meta"):
        model = Conformer(plan.shape)
    # Each of our tensors gets a name of theirs, or None if it is made here. Both directions are
    # checked: a tensor of theirs that nothing uses means that the settings describe another model.
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    theirs = {name: _their_name(name, plan) for name in expected}
    used = {name for name in theirs.values() if name is not None}
    unknown = [n for n in tensors if n not in used and not _is_unused(n, plan)]
    missing = [n for n in sorted(used) if n not in tensors]
    if missing or unknown:
        what = f"lacks `{missing[0]}`" if missing else f"has {short_repr(unknown[0])}"
        raise ImportingError(
            f"`{file}` must hold the tensors of its settings, but {what}"
            f" ({len(missing)} missing, {len(unknown)} unknown)."
        )
    ours = {
        name: _make_tensor(name, shape, plan)
        if theirs[name] is None
        else _check_tensor(tensors[str(theirs[name])], shape, str(theirs[name]), file)
        for name, shape in expected.items()
    }
    # scale (W x + b) = (scale W) x + scale b, so both parts of the linear layer take the scale.
    for part in ("weight", "bias"):
        ours[f"frontend.linear.{part}"] = plan.input_scale * ours[f"frontend.linear.{part}"]
    for name in [name for name in ours if name.rpartition(".")[0] in BLANK_ROWS]:
        ours[name] = _with_blank_first(ours[name], plan.blank)
    if plan.starts_with_zeros and plan.shape.transducer:
        ours["transducer.predictor.embedding.weight"][0] = 0.0
    model.load_state_dict({name: t.contiguous() for name, t in ours.items()}, assign=True)
    return model.requires_grad_().eval()


def _with_blank_first(rows: Tensor, blank: int) -> Tensor:
    """Move the blank to row 0; the others keep their order, durations of TDT at the end."""
    # With the blank last, rows a b _ become _ a b.
    return torch.cat((rows[blank : blank + 1], rows[:blank], rows[blank + 1 :]))


def _is_unused(name: str, plan: Plan) -> bool:
    return name.endswith(tuple(plan.ignored)) or name.startswith(tuple(plan.unused))


def _their_name(name: str, plan: Plan) -> str | None:
    """None for a tensor that is made here."""
    pattern, _ = _pattern(name)
    module, _, leaf = pattern.rpartition(".")
    # A missing bias counts as zeros, which is what their layer computes.
    is_zero = leaf == "bias" and module in plan.unbiased
    if name in OURS_ALONE or pattern in plan.made or is_zero:
        return None
    return source_tensor_name(name, plan.names)


def source_tensor_name(name: str, names: Mapping[str, str]) -> str:
    """Their name of a tensor of ours, by a table of modules and tensors."""
    pattern, number = _pattern(name)
    module, _, leaf = pattern.rpartition(".")
    # Modules are listed without their leaves (`ff1.up` stands for its weight and its bias); single
    # tensors, such as `attention.content_bias`, by their full names.
    theirs = f"{names[module]}.{leaf}" if module in names else names[pattern]
    return theirs.format(number)


def _pattern(name: str) -> tuple[str, str]:
    """A name with `{}` for the number of its block, and that number."""
    match = _BLOCK.match(name)
    return (name, "") if match is None else (_BLOCK.sub("blocks.{}.", name), match[1])


def _make_tensor(name: str, shape: torch.Size, plan: Plan) -> Tensor:
    made = plan.made.get(_pattern(name)[0])
    if made is not None:
        # `expand` repeats one number without memory of its own; `clone` gives each element its own.
        return made.expand(shape).clone()
    return torch.ones(shape) if name == "frontend.deviation" else torch.zeros(shape)


def _check_tensor(tensor: Tensor, shape: torch.Size, name: str, file: str) -> Tensor:
    """In single precision, without the ones that a pointwise convolution's shape ends with.

    Raises:
        ImportingError: if it is of another shape, no floating-point numbers, or not finite.
    """
    # (512, 256, 1) passes for (512, 256): a convolution of kernel size 1 is a linear layer.
    is_shaped = tensor.shape[: len(shape)] == shape and math.prod(tensor.shape[len(shape) :]) == 1
    if not is_shaped or not tensor.is_floating_point() or tensor.layout != torch.strided:
        raise ImportingError(
            f"`{name}` of `{file}` must be floats of shape {tuple(shape)}, but is"
            f" {str(tensor.dtype).removeprefix('torch.')} of {short_repr(tuple(tensor.shape))}"
            " instead."
        )
    single = tensor.float().reshape(shape)
    if not single.isfinite().all():
        raise ImportingError(f"`{name}` of `{file}` must be finite, but is not.")
    return single
