"""How gates act: they are folded into the tensors, and what a closed gate removes is left out.

The same folding serves training under gates, where it is differentiable, and extraction, where its
result becomes a model. As only weights are touched, a gated step costs hardly more than a dense
one, and less as gates close.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.conformer.axes import Axis, Mask, Slice
from core.conformer.model import Conformer, Output


@dataclass(frozen=True, kw_only=True, slots=True)
class Folded:
    """A model's tensors under a mask."""

    tensors: Mapping[str, Tensor]
    """Parameters and buffers, scaled and narrowed; those of closed parts are missing."""
    closed: frozenset[str]
    """Modules and blocks whose gate is shut."""


def close_empty_modules(axes: Sequence[Axis], mask: Mask) -> dict[str, Tensor]:
    """Close modules that have lost their last unit, so that a bias never stays alone."""
    alive = dict(mask)
    for axis in axes:
        if axis.parent is None or axis.is_whole or axis.name not in mask:
            continue
        units = mask[axis.name]
        is_alive = (units.detach() != 0).any().to(units.dtype)
        module = mask.get(axis.parent, units.new_ones(1))
        alive[axis.parent] = module * is_alive
    return alive


def fold(
    tensors: Mapping[str, Tensor], axes: Sequence[Axis], mask: Mask, *, narrow_from: float = 0.0
) -> Folded:
    """Multiply what gates scale, drop what closed gates remove.

    Args:
        tensors: A model's parameters and buffers by name.
        axes: What can be cut from it.
        mask: Values in [0, 1] by axis; axes without an entry are open.
        narrow_from: Closed units of an axis are left out once they are at least this share of it,
            and stay as zero columns below. The residual width is always narrowed: layer norm must
            not see its closed units.

    Raises:
        ValueError: if an axis keeps fewer units than its floor.
    """
    mask = close_empty_modules(axes, mask)
    gated = [axis for axis in axes if axis.name in mask]
    closed = frozenset(a.name for a in gated if a.is_whole and not mask[a.name].any())
    folded = {name: t for name, t in tensors.items() if not _is_inside(name, closed)}
    for axis in gated:
        for piece in axis.slices:
            if piece.is_scaled and piece.tensor in folded:
                folded[piece.tensor] = _scaled(folded[piece.tensor], piece, mask[axis.name])
    for axis in gated:
        if not axis.is_whole:
            share = 0.0 if axis.kind == "width" else narrow_from
            _narrow(folded, axis, mask[axis.name], narrow_from=share)
    return Folded(tensors=folded, closed=closed)


def gated_forward(
    model: Conformer,
    features: Float[Tensor, "batch mel_frames mels"],
    num_frames: Int[Tensor, " batch"],
    folded: Folded,
) -> Output:
    """The model's own forward pass with folded tensors in place of its own."""
    return torch.func.functional_call(
        model, dict(folded.tensors), (features, num_frames, folded.closed)
    )


def named_tensors(model: Conformer) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def kept_unit_indices(values: Float[Tensor, " units"]) -> Int[Tensor, " kept"]:
    return values.detach().nonzero().squeeze(1)


def _narrow(
    folded: dict[str, Tensor], axis: Axis, values: Float[Tensor, " units"], *, narrow_from: float
) -> None:
    kept = kept_unit_indices(values)
    if len(kept) < axis.floor:
        raise ValueError(
            f"`{axis.name}` must keep at least {axis.floor} units, but keeps {len(kept)} instead"
        )
    num_closed = axis.size - len(kept)
    if not num_closed or num_closed < narrow_from * axis.size:
        return
    by_dim: dict[tuple[str, int], list[Tensor]] = {}
    for piece in axis.slices:
        if piece.tensor in folded:
            entries = _entries(piece, kept)
            by_dim.setdefault((piece.tensor, piece.dim), []).append(entries)
    for (name, dim), entries_of in by_dim.items():
        folded[name] = folded[name].index_select(dim, torch.cat(entries_of))


def _entries(piece: Slice, kept: Int[Tensor, " kept"]) -> Int[Tensor, " entries"]:
    inside = torch.arange(piece.block, device=kept.device)
    return piece.offset + (kept[:, None] * piece.block + inside).flatten()


def _scaled(tensor: Tensor, piece: Slice, values: Float[Tensor, " units"]) -> Tensor:
    scale = values.to(tensor.dtype).repeat_interleave(piece.block)
    shape = [1] * tensor.dim()
    shape[piece.dim] = -1
    return tensor * scale.view(shape)


def _is_inside(name: str, modules: frozenset[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:n]) in modules for n in range(2, len(parts)))
