"""Reconstruction of consumers and batch-norm statistics after extraction, without training.

A consumer W of inputs X loses the columns outside S. Scaling the remaining columns minimizes
|X_S diag(m) W_S - X W|; least squares minimizes |X_S W' - X W| over all W' and the bias. So least
squares is at least as good as scaling, and scaling as doing nothing.

Shapes: N frames, I inputs of a consumer, O its outputs, U units of an axis.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.config.pruning import Repair
from core.conformer.axes import Axis, Mask
from core.conformer.masking import Folded, fold, gated_forward, kept_unit_indices, named_tensors
from core.conformer.model import Conformer
from core.conformer.norm import BatchNorm
from core.pruning.calibration import FRONTEND, Calibration, Consumer, consumers, iterate_grams
from core.pruning.extraction import extract_factored, open_blocks, small_name
from core.pruning.low_rank import multiply_factors
from core.pruning.sequential import Remaining, reconstruct_streams
from core.pruning.space import Choice


def extract_and_reconstruct(
    model: Conformer, reference: Mask, choice: Choice, *, how: Repair, speech: Calibration
) -> Conformer:
    """Extract a choice, and adjust consumers so that their outputs stay close to the reference's.

    Batch-norm statistics of the student become those of the reference, as gates that were sampled
    at each step leave statistics that fit no fixed mask.

    Args:
        model: the student with all its units.
        reference: gates under which the student computes the target; empty for all open.
        choice: the units that stay.
        how: `none` keeps the consumers' columns, `mask` scales them, `ls` solves for them,
            `sequential` does so in the front end, then refits all modules in order
            (`core/pruning/sequential.py`).
        speech: on which the consumers' inputs are measured.
    """
    device = model.device
    choice = {name: units.to(device) for name, units in choice.items()}
    # Phase 1: the outputs to preserve are those of all units, at the reference's soft gates; those
    # of the mask are the same gates with the removed units at 0.
    target = reference_gates(model.axes(), reference, choice)
    mask = {name: z * choice[name] for name, z in target.items()}
    if how == "none" and not (reference and speech):
        return multiply_factors(extract_factored(model, mask))
    # Not narrowed: removed inputs must be in the Gram matrices, and batch norms must see all
    # channels. Gates that are 1 are left out, as each product with them would be a copy.
    scaled = {name: z for name, z in target.items() if (z != 1).any()}
    folded = fold(named_tensors(model), model.axes(), scaled, narrow_from=math.inf)
    if reference and speech:
        reestimate_statistics(model, speech, folded=folded)
    small = extract_factored(model, mask)
    if how == "none":
        return multiply_factors(small)
    modules = _modules_by_old_name(model, choice, small)
    # Phase 2: consumers that lose some of their inputs, but not all, are solved for anew.
    cut = [c for c in consumers(model.axes()) if c.module in modules and _is_cut(c, choice)]
    if how == "sequential":
        # The rest is solved for in phase 3. To solve here as well takes one more pass over the
        # speech, and changed word error rates by at most 0.3 % absolute, up or down (one teacher).
        cut = [consumer for consumer in cut if consumer.part == FRONTEND]
    for consumer, gram in iterate_grams(model, folded, cut, speech):
        module, kept_units = modules[consumer.module], choice[consumer.axis.name]
        rows = _kept_rows(consumer, model.axes(), choice, target).to(device)
        _reconstruct_layer(
            module, consumer, folded, gram, rows=rows, kept_units=kept_units, how=how
        )
    small = multiply_factors(small)
    # Phase 3: modules are refitted in order, each making up for those before it.
    if how == "sequential":
        _reconstruct_streams(model, small, choice, target, speech, is_gated=bool(reference))
    return small


def _reconstruct_streams(
    model: Conformer,
    small: Conformer,
    choice: Choice,
    target: Mask,
    speech: Calibration,
    *,
    is_gated: bool,
) -> None:
    """Bring the residual stream of the small model back to that of the reference."""
    whole = extract_factored(model, target) if is_gated else model
    blocks = open_blocks(model.shape, target) if is_gated else tuple(range(len(model.blocks)))
    remaining = open_blocks(model.shape, choice)

    def indices(name: str) -> Tensor:
        """Return the remaining units of an axis, by their numbers in the reference."""
        return kept_unit_indices(choice[name][kept_unit_indices(target[name])].float())

    # With blocks 0 and 3 open, those of `blocks.3` are units of the reference's `blocks.1`.
    units = {
        new: indices(name)
        for name in choice
        if name.startswith(("blocks.", "transducer."))
        and (new := small_name(name, blocks)) is not None
    }
    remaining_units = Remaining(
        width=indices("width"),
        blocks=tuple(number for number, old in enumerate(blocks) if old in remaining),
        units=units,
    )
    reconstruct_streams(small, whole, remaining_units, speech)


def reference_gates(axes: list[Axis], reference: Mask, choice: Choice) -> dict[str, Tensor]:
    """Return the reference's gates, opened where a unit is kept that the reference closed."""
    gates = {}
    for axis in axes:
        kept_units = choice[axis.name]
        z = reference.get(axis.name, torch.ones(axis.size)).to(kept_units.device)
        # A choice is cut by cost, not by the gates' medians: it may hold units whose gates are 0.
        gates[axis.name] = torch.where(kept_units & (z == 0), torch.ones_like(z), z)
    return gates


@torch.no_grad()
def reestimate_statistics(
    model: Conformer, speech: Calibration, *, folded: Folded | None = None
) -> None:
    """Set batch-norm statistics to the mean over batches, without dropout.

    With `folded` they are those of the model under its gates, whose channels must not be narrowed.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    model.eval()
    for norm in norms:
        norm.train()
    for i, (features, num_frames) in enumerate(speech):
        for norm in norms:
            # 1, 1/2, 1/3 ... make a plain mean: batch means 2, 4 and 9 give 2, 3 and 5.
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
    kept_inputs: Bool[Tensor, " inputs1"],
) -> Float[Tensor, "outputs kept"]:
    """Return columns for the kept inputs whose product is closest to that of all columns.

    For example, if a removed input always equals a kept one, its column is added to the other's.

    Args:
        gram: X^T X of the inputs.
        weight: all columns.
        kept_inputs: which of the inputs remain.
    """
    # Normal equations of |X_S W' - X W|^2: (X_S^T X_S) W' = X_S^T X W. The ridge makes them
    # solvable where inputs depend on each other; fp32, with a rounding of 6e-8, would lose it.
    inside = gram[kept_inputs][:, kept_inputs]
    ridge = 1e-8 * inside.diagonal().mean() * torch.eye(len(inside)).to(gram)
    return torch.linalg.solve(inside + ridge, gram[kept_inputs] @ weight.T).T


def scale_columns(
    gram: Float[Tensor, "inputs inputs"],
    weight: Float[Tensor, "outputs inputs"],
    kept_units: Bool[Tensor, " units"],
    block: int,
) -> Float[Tensor, " kept"]:
    """Return a factor m per kept unit that minimizes |X_S diag(m) W_S - X W| (Kwon et al., 2022).

    It is solved for as 1 + delta.

    Args:
        gram: X^T X of the inputs.
        weight: all columns.
        kept_units: which of the units remain.
        block: adjacent inputs that make one unit.
    """
    units = len(kept_units)
    # Inner products (U, U) of what two units contribute to the outputs. With S the units that stay
    # and R the others, products_SS delta = sum of products_SR. If R equals S, columns too, m is 2.
    products = (gram * (weight.T @ weight)).view(units, block, units, block).sum((1, 3))
    inside = products[kept_units][:, kept_units]
    rest = products[kept_units][:, ~kept_units].sum(1)  # the error when m is 1
    ridge = 1e-8 * inside.diagonal().mean() * torch.eye(len(inside)).to(gram)
    factors = 1 + torch.linalg.solve(inside + ridge, rest)
    # Large factors mean an ill-conditioned axis: leave it unscaled.
    return factors if factors.abs().max() <= 10 else torch.ones_like(factors)


def _modules_by_old_name(
    model: Conformer, choice: Choice, small: Conformer
) -> dict[str, nn.Module]:
    """Return the small model's modules by their names in the whole model."""
    blocks, by_name = open_blocks(model.shape, choice), dict(small.named_modules())
    names = ((name, small_name(name, blocks)) for name, _ in model.named_modules())
    return {name: by_name[new] for name, new in names if new is not None and new in by_name}


def _is_cut(consumer: Consumer, choice: Choice) -> bool:
    kept_units = choice[consumer.axis.name]
    return bool(kept_units.any()) and not bool(kept_units.all())


@torch.no_grad()
def _reconstruct_layer(
    module: nn.Module,
    consumer: Consumer,
    folded: Folded,
    gram: Float[Tensor, "inputs1 inputs1"],
    *,
    rows: Bool[Tensor, " rows"],
    kept_units: Bool[Tensor, " units"],
    how: Repair,
) -> None:
    assert isinstance(module, nn.Linear | nn.Conv2d)
    target = folded.tensors[consumer.piece.tensor][rows].double().flatten(1)  # (O, I)
    # Inputs per unit: 64 of a head of 64, 9 of a channel that a 3x3 convolution reads. The rows are
    # I + 1, and (I + 1) // U = I / U, as a cut axis has at least 2 units.
    block = gram.shape[0] // len(kept_units)
    if how == "mask":
        factors = scale_columns(gram[:-1, :-1], target, kept_units, block)
        columns = target[:, kept_units.repeat_interleave(block)] * factors.repeat_interleave(block)
    elif module.bias is None:
        columns = least_squares_columns(gram[:-1, :-1], target, kept_units.repeat_interleave(block))
    else:
        bias = folded.tensors[f"{consumer.module}.bias"][rows].double()[:, None]
        # The bias is the column of the constant input 1, and always stays.
        inputs = torch.cat((kept_units.repeat_interleave(block), kept_units.new_ones(1)))
        solution = least_squares_columns(gram, torch.cat((target, bias), dim=1), inputs)
        columns = solution[:, :-1]
        module.bias.copy_(solution[:, -1])
    module.weight.copy_(columns.view(module.weight.shape))


def _kept_rows(
    consumer: Consumer, axes: list[Axis], choice: Choice, target: Mask
) -> Bool[Tensor, " rows"]:
    """Return which rows of the reference's weight remain; its width may already be narrowed."""
    tensor = consumer.piece.tensor
    owners = [(a, s) for a in axes for s in a.slices if s.tensor == tensor and s.dim == 0]
    rows = []
    for axis, piece in owners:
        if not axis.is_whole:
            kept_units = choice[axis.name]
            units = (
                kept_units[kept_unit_indices(target["width"])]
                if axis.kind == "width"
                else kept_units
            )
            rows.append((piece.offset, units.repeat_interleave(piece.block)))
    # Rows of `up` in a convolution module belong to two slices, at offsets 0 and C.
    return torch.cat([units for _, units in sorted(rows, key=lambda row: row[0])])
