"""Masking: gates are folded into the model's tensors, and closed units are left out.

The same folding is used in training under gates, where it is differentiable, and in extraction,
where its result becomes a model. As only weights change, a gated step costs hardly more than a
dense one, and less as gates close.

Which units are closed is known at once where gates lie on the host. A device would have to be
waited for: there gates are not read, and what is closed is computed and multiplied by 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.conformer.axes import Axis, Mask, Slice
from core.conformer.model import Conformer
from core.conformer.norm import LayerNorm
from core.conformer.output import Output
from core.decoders.places import Places


@dataclass(frozen=True, kw_only=True, slots=True)
class Folded:
    """A model's tensors under a mask."""

    tensors: Mapping[str, Tensor]
    """Parameters and buffers, scaled and narrowed, without those of closed modules and blocks."""
    closed: frozenset[str]
    """Names of modules and blocks whose gate was read and is closed."""
    unread: Mask = field(default_factory=dict)
    """Gates of the modules, the blocks and the width, if they were not read."""

    def has_open(self, name: str) -> Bool[Tensor, ""]:
        """Return whether a module or block is open: of unread gates on their device."""
        gate = self.unread.get(name)
        return torch.tensor(name not in self.closed) if gate is None else (gate != 0).any()


def close_empty_modules(axes: Sequence[Axis], mask: Mask) -> dict[str, Tensor]:
    """Close modules without open units, so that no bias remains alone."""
    # Otherwise a feed-forward whose inner units are all closed would still add the bias of `down`,
    # but extraction, which drops the empty module, would not.
    closed_mask = dict(mask)
    for axis in axes:
        if axis.parent is None or axis.is_whole or axis.name not in mask:
            continue
        units = mask[axis.name]
        # A step function has no gradient; that of the module's own gate is not affected.
        is_open = (units.detach() != 0).any().to(units.dtype)
        module = mask.get(axis.parent, units.new_ones(1))
        closed_mask[axis.parent] = module * is_open
    return closed_mask


def fold(
    tensors: Mapping[str, Tensor],
    axes: Sequence[Axis],
    mask: Mask,
    *,
    narrow_from: float | None = 0.0,
) -> Folded:
    """Multiply the entries that gates scale, and remove those of closed gates.

    Example: an axis of 4 inner units with gates (1, 0, 0.5, 0). Columns of `down` are multiplied by
    these; then rows and biases of `up` and columns of `down` keep units 0 and 2 alone.

    Args:
        tensors: a model's parameters and buffers by name.
        axes: of the model.
        mask: values in [0, 1] by axis; axes without an entry are open.
        narrow_from: closed units are removed if they are at least this share of their axis, and
            else stay as zero columns. The residual width is always narrowed, as layer norm must
            not see closed units. With None no gate is read and nothing is removed: for gates on a
            device.

    Raises:
        ValueError: if an axis keeps fewer units than its floor.
    """
    mask = close_empty_modules(axes, mask)
    gated = [axis for axis in axes if axis.name in mask]
    closed: frozenset[str] = frozenset()
    if narrow_from is not None:
        closed = frozenset(a.name for a in gated if a.is_whole and not mask[a.name].any())
    folded = {name: t for name, t in tensors.items() if not _is_inside(name, closed)}
    # All are scaled before any is narrowed, as slices name entries of whole tensors.
    for axis in gated:
        for piece in axis.slices:
            if piece.is_scaled and piece.tensor in folded:
                folded[piece.tensor] = _scale(folded[piece.tensor], piece, mask[axis.name])
    if narrow_from is None:
        unread = {a.name: mask[a.name].detach() for a in gated if a.is_whole or a.kind == "width"}
        return Folded(tensors=folded, closed=closed, unread=unread)
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
    *,
    tokens: Int[Tensor, "batch tokens"] | None = None,
    places: Places | None = None,
) -> Output:
    """Run the model's forward pass with folded tensors.

    Args:
        model: the model.
        features: of the batch.
        num_frames: mel frames of each utterance.
        folded: tensors under a mask.
        tokens: transcripts, along which a transducer gives scores.
        places: at which a transducer gives all log-probabilities.
    """
    tensors, skips = dict(folded.tensors), {}
    if "width" in folded.unread:
        is_open = (folded.unread["width"] != 0).to(features.dtype)
        norms = [module.name for module in model.modules() if isinstance(module, LayerNorm)]
        tensors |= dict.fromkeys((f"{name}.is_open" for name in norms), is_open)
    for block in model.typed_blocks():
        if block.name in folded.unread:
            skips[block.name] = ~folded.has_open(block.name)
    return torch.func.functional_call(
        model,
        tensors,
        (features, num_frames, folded.closed, tokens, places),
        {"skips": skips},
    )


def named_tensors(model: Conformer) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def kept_unit_indices(values: Float[Tensor, " units"]) -> Int[Tensor, " kept"]:
    """Return the numbers of open units; a device is waited for."""
    return values.detach().nonzero().squeeze(1)


def _narrow(
    folded: dict[str, Tensor], axis: Axis, values: Float[Tensor, " units"], *, narrow_from: float
) -> None:
    open_units = kept_unit_indices(values)
    if len(open_units) < axis.floor:
        raise ValueError(
            f"`{axis.name}` must keep at least {axis.floor} units,"
            f" but keeps {len(open_units)} instead"
        )
    num_closed = axis.size - len(open_units)
    # 384 inner units and 0.125: up to 47 closed ones stay, as columns of zeros.
    if not num_closed or num_closed < narrow_from * axis.size:
        return
    # The GLU's halves are two slices of one dimension and must be selected at once: after the first
    # selection, entries of the second have moved. C = 4, units 0 and 2: rows 0, 2, 4 and 6.
    by_dim: dict[tuple[str, int], list[Tensor]] = {}
    for piece in axis.slices:
        if piece.tensor in folded:
            entries = _entries(piece, open_units).to(folded[piece.tensor].device, non_blocking=True)
            by_dim.setdefault((piece.tensor, piece.dim), []).append(entries)
    for (name, dim), entries_of in by_dim.items():
        folded[name] = folded[name].index_select(dim, torch.cat(entries_of))


def _entries(piece: Slice, units: Int[Tensor, " kept"]) -> Int[Tensor, " entries"]:
    # Units 0 and 2 of block 3: entries 0, 1, 2, 6, 7 and 8.
    inside = torch.arange(piece.block, device=units.device)
    return piece.offset + (units[:, None] * piece.block + inside).flatten()


def _scale(tensor: Tensor, piece: Slice, values: Float[Tensor, " units"]) -> Tensor:
    values = values.to(tensor.device, tensor.dtype, non_blocking=True)
    scale = values.repeat_interleave(piece.block)
    # One factor along the slice's dimension, the same for all others: (1, U block) for columns.
    shape = [1] * tensor.dim()
    shape[piece.dim] = -1
    return tensor * scale.view(shape)


def _is_inside(name: str, modules: frozenset[str]) -> bool:
    # `blocks.0.ff1.up.weight` lies in `blocks.0`, `blocks.0.ff1` and `blocks.0.ff1.up`.
    parts = name.split(".")
    return any(".".join(parts[:n]) in modules for n in range(2, len(parts)))
