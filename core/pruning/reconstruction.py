"""What can be mended without training when units go: their consumers, and batch-norm statistics.

A consumer W of inputs X loses the columns outside S. Scaling what stays minimises |X_S diag(m) W_S
- X W|, least squares minimises |X_S W' - X W| over all W' and the bias; so least squares is at
least as good, and that as nothing.

Shapes: N frames, I inputs of a consumer, O its outputs, U units of an axis.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.config.pruning import Repair
from core.conformer.axes import Axis, Mask, Slice
from core.conformer.masking import Folded, fold, gated_forward, kept_unit_indices, named_tensors
from core.conformer.model import Conformer
from core.conformer.norm import BatchNorm
from core.pruning.extraction import extract_factored, open_blocks, small_name
from core.pruning.low_rank import multiply_factors
from core.pruning.space import Choice

Calibration = Iterable[tuple[Float[Tensor, "_ _ mels"], Int[Tensor, " _"]]]
"""Batches of features and their numbers of mel frames: speech without its words. They may be walked
again and again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Consumer:
    """The module that takes in the units of an axis."""

    axis: Axis
    piece: Slice

    @property
    def module(self) -> str:
        return self.piece.tensor.removesuffix(".weight")


def extract_and_reconstruct(
    model: Conformer, reference: Mask, choice: Choice, *, how: Repair, speech: Calibration
) -> Conformer:
    """Extract a choice, with consumers adjusted so that their outputs stay near the reference's.

    Batch-norm statistics of the student become those of the reference: gates that were drawn anew
    each step have left none that fit.

    Args:
        model: The student, all its units still there.
        reference: Gates under which the student computes what is wanted; empty for as it is.
        choice: The units that stay.
        how: `none` keeps the consumers' columns, `mask` scales them, `ls` solves for them anew.
        speech: What the consumers' inputs are measured on.
    """
    device = model.head.weight.device
    choice = {name: units.to(device) for name, units in choice.items()}
    target = reference_gates(model.axes(), reference, choice)
    mask = {name: z * choice[name] for name, z in target.items()}
    if how == "none" and not (reference and speech):
        return multiply_factors(extract_factored(model, mask))
    folded = fold(named_tensors(model), model.axes(), target, narrow_from=math.inf)
    if reference and speech:
        reestimate_statistics(model, speech, folded=folded)
    small = extract_factored(model, mask)
    if how == "none":
        return multiply_factors(small)
    modules = _modules_left(model, choice, small)
    cut = [c for c in consumers(model.axes()) if c.module in modules and _is_cut(c, choice)]
    grams = input_grams(model, folded, cut, speech)
    for consumer in cut:
        module, gram, kept = (
            modules[consumer.module],
            grams[consumer.module],
            choice[consumer.axis.name],
        )
        rows = _kept_rows(consumer, model.axes(), choice, target).to(device)
        _mend(module, consumer, folded, gram, rows=rows, kept=kept, how=how)
    return multiply_factors(small)


def reference_gates(axes: list[Axis], reference: Mask, choice: Choice) -> dict[str, Tensor]:
    """The reference's gates, opened where a unit is kept although the reference had closed it."""
    gates = {}
    for axis in axes:
        kept = choice[axis.name]
        z = reference.get(axis.name, torch.ones(axis.size)).to(kept.device)
        gates[axis.name] = torch.where(kept & (z == 0), torch.ones_like(z), z)
    return gates


@torch.no_grad()
def input_grams(
    model: Conformer, folded: Folded, consumers: list[Consumer], speech: Calibration
) -> dict[str, Tensor]:
    """X^T X of each consumer's inputs over real frames, X with a last column of ones; in fp64."""
    grams: dict[str, Tensor] = {}
    model.eval()
    for features, num_frames in speech:
        with _watched(model, consumers, num_frames, grams):
            gated_forward(model, features, num_frames, folded)
    return grams


@torch.no_grad()
def reestimate_statistics(
    model: Conformer, speech: Calibration, *, folded: Folded | None = None
) -> None:
    """Batch-norm statistics anew, as the plain mean over batches; dropout stays off.

    With `folded`, those of the model under its gates, whose channels must not be narrowed.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    model.eval()
    for norm in norms:
        norm.train()
    for i, (features, num_frames) in enumerate(speech):
        for norm in norms:
            norm.momentum = 1 / (i + 1)
        if folded is None:
            model(features, num_frames)
        else:
            gated_forward(model, features, num_frames, folded)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


def least_squares_columns(
    gram: Float[Tensor, "inputs1 inputs1"],
    weight: Float[Tensor, "outputs inputs1"],
    kept: Bool[Tensor, " inputs1"],
) -> Float[Tensor, "outputs kept"]:
    """Columns for the kept inputs that come nearest to what all columns give."""
    inside = gram[kept][:, kept]
    ridge = 1e-8 * inside.diagonal().mean() * torch.eye(len(inside)).to(gram)
    return torch.linalg.solve(inside + ridge, gram[kept] @ weight.T).T


def scale_columns(
    gram: Float[Tensor, "inputs inputs"],
    weight: Float[Tensor, "outputs inputs"],
    kept: Bool[Tensor, " units"],
    block: int,
) -> Float[Tensor, " kept"]:
    """One factor m a kept unit, least |X_S diag(m) W_S - X W| (Kwon et al., 2022), as 1 + delta."""
    units = len(kept)
    products = (gram * (weight.T @ weight)).view(units, block, units, block).sum((1, 3))
    inside = products[kept][:, kept]
    rest = products[kept][:, ~kept].sum(1)  # what is missing of the target when m is 1
    ridge = 1e-8 * inside.diagonal().mean() * torch.eye(len(inside)).to(gram)
    factors = 1 + torch.linalg.solve(inside + ridge, rest)
    # Large factors mean an ill-posed axis: better left alone.
    return factors if factors.abs().max() <= 10 else torch.ones_like(factors)


def consumers(axes: list[Axis]) -> list[Consumer]:
    """The modules whose columns a gate scales; the residual width has none of its own."""
    return [
        Consumer(axis=axis, piece=piece)
        for axis in axes
        for piece in axis.slices
        if piece.is_scaled and piece.dim == 1 and axis.kind != "width"
    ]


def _modules_left(model: Conformer, choice: Choice, small: Conformer) -> dict[str, nn.Module]:
    """The small model's modules by the names that they had in the whole one."""
    blocks, left = open_blocks(model.shape, choice), dict(small.named_modules())
    names = ((name, small_name(name, blocks)) for name, _ in model.named_modules())
    return {name: left[new] for name, new in names if new is not None and new in left}


def _is_cut(consumer: Consumer, choice: Choice) -> bool:
    kept = choice[consumer.axis.name]
    return bool(kept.any()) and not bool(kept.all())


@contextmanager
def _watched(
    model: Conformer,
    consumers: list[Consumer],
    num_frames: Int[Tensor, " batch"],
    grams: dict[str, Tensor],
) -> Iterator[None]:
    def watch(consumer: Consumer) -> torch.utils.hooks.RemovableHandle:
        real = model.frontend.frames_in(consumer.module, num_frames)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            # A table of distances has neither utterances nor padding.
            x = (x if x.dim() == 2 else _rows(module, x, real)).double()
            x = torch.cat((x, x.new_ones(len(x), 1)), dim=1)
            grams[consumer.module] = grams.get(consumer.module, 0) + x.T @ x

        return model.get_submodule(consumer.module).register_forward_pre_hook(hook)

    handles = [watch(consumer) for consumer in consumers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(
    module: nn.Module, x: Float[Tensor, "batch time ..."], real: Int[Tensor, " batch"]
) -> Float[Tensor, "frames inputs"]:
    """A consumer's inputs, one row a product it computes, padded frames left out."""
    if isinstance(module, nn.Conv2d):
        kernel, stride, padding = module.kernel_size, module.stride, module.padding
        assert not isinstance(padding, str)
        bins = (x.shape[3] + 2 * padding[1] - kernel[1]) // stride[1] + 1
        patches = F.unfold(x, kernel, stride=stride, padding=padding)  # (B, I, T * bins)
        x = patches.transpose(1, 2).unflatten(1, (-1, bins))  # (B, T, bins, I)
    time = torch.arange(x.shape[1], device=x.device)
    return x[time < real[:, None]].reshape(-1, x.shape[-1])


@torch.no_grad()
def _mend(
    module: nn.Module,
    consumer: Consumer,
    folded: Folded,
    gram: Float[Tensor, "inputs1 inputs1"],
    *,
    rows: Bool[Tensor, " rows"],
    kept: Bool[Tensor, " units"],
    how: Repair,
) -> None:
    assert isinstance(module, nn.Linear | nn.Conv2d)
    wanted = folded.tensors[consumer.piece.tensor][rows].double().flatten(1)  # (O, I)
    block = gram.shape[0] // len(kept)
    if how == "mask":
        factors = scale_columns(gram[:-1, :-1], wanted, kept, block)
        columns = wanted[:, kept.repeat_interleave(block)] * factors.repeat_interleave(block)
    elif module.bias is None:
        columns = least_squares_columns(gram[:-1, :-1], wanted, kept.repeat_interleave(block))
    else:
        bias = folded.tensors[f"{consumer.module}.bias"][rows].double()[:, None]
        inputs = torch.cat((kept.repeat_interleave(block), kept.new_ones(1)))
        solution = least_squares_columns(gram, torch.cat((wanted, bias), dim=1), inputs)
        columns = solution[:, :-1]
        module.bias.copy_(solution[:, -1])
    module.weight.copy_(columns.view(module.weight.shape))


def _kept_rows(
    consumer: Consumer, axes: list[Axis], choice: Choice, target: Mask
) -> Bool[Tensor, " rows"]:
    """Which of the reference's rows the small model has: the width is narrowed in both."""
    tensor = consumer.piece.tensor
    owners = [(a, s) for a in axes for s in a.slices if s.tensor == tensor and s.dim == 0]
    rows = []
    for axis, piece in owners:
        if not axis.is_whole:
            kept = choice[axis.name]
            units = kept[kept_unit_indices(target["width"])] if axis.kind == "width" else kept
            rows.append((piece.offset, units.repeat_interleave(piece.block)))
    return torch.cat([units for _, units in sorted(rows, key=lambda row: row[0])])
