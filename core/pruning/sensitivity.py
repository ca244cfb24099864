"""Sensitivity tables: how far the output moves as units of an axis go, measured level by level.

Here are tables that are measured; core/pruning/fisher_tables.py has those by the Fisher
information.

Example: a table 0.001, 0.003, 0.010 says that the first unit of the order costs 0.001 nats a frame,
the first two 0.003 and all three 0.010, when the consumer is refitted each time.

Shapes: U units of an axis, I inputs of a consumer, with a last column of ones, O its outputs, V
vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import isotonic_regression
from torch import Tensor

from core.config.pruning import Resource
from core.conformer.axes import Axis
from core.conformer.masking import Folded, fold, named_tensors
from core.conformer.model import Conformer
from core.decoders.places import Places
from core.pruning.ablation import identity_fold
from core.pruning.calibration import (
    DECODER,
    Calibration,
    Consumer,
    ResidualStreams,
    comparison_places,
    gram_watch,
    part_of,
    prunable_consumers,
)
from core.pruning.least_squares import GramSum
from core.pruning.obs import RemovalOrder, removal_order
from core.pruning.reconstruction import least_squares_columns
from core.pruning.space import Space, unit_share

WITHIN_LEVEL = 1e-6
"""By how much of its value a unit outranks the one that goes just before it at the same price."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SensitivityTable:
    """What it costs to remove units of one axis, in the order in which they go."""

    axis: Axis
    order: Int[Tensor, " units"]
    """All units, the first one to be removed first."""
    counts: Int[Tensor, " levels"]
    """Removed units at each level, increasing."""
    increase: Float[Tensor, " levels"]
    """KL from the unpruned model's distribution at each level, in nats a frame."""


def unit_table(axis: Axis, order: RemovalOrder, scale: float) -> SensitivityTable:
    """Return a table of one level a unit: what the removals cost together, scaled to nats."""
    return SensitivityTable(
        axis=axis,
        order=order.units,
        counts=torch.arange(1, axis.size + 1),
        increase=scale * order.growth.cumsum(0),
    )


def consumer_order(
    gram: Float[Tensor, "inputs1 inputs1"],
    columns: Float[Tensor, "outputs inputs"],
    products: Float[Tensor, "inputs inputs"],
    num_units: int,
) -> RemovalOrder:
    """Return the OBS order; a consumer without a bias does not read the column of ones.

    Args:
        gram: of the consumer's inputs.
        columns: of its weight.
        products: M, which is changed.
        num_units: units of the axis.
    """
    return removal_order(
        gram if columns.shape[1] == len(gram) else gram[:-1, :-1],
        products,
        num_units=num_units,
        unit_inputs=(len(gram) - 1) // num_units,
    )


def consumer_columns(
    tensors: Mapping[str, Tensor], consumer: Consumer
) -> Float[Tensor, "outputs inputs"]:
    """Return the consumer's weight in double precision, its bias as a last column if it has one."""
    weight = tensors[f"{consumer.module}.weight"].detach().double().cpu().flatten(1)
    bias = tensors.get(f"{consumer.module}.bias")
    return weight if bias is None else torch.cat((weight, bias.detach().double().cpu()[:, None]), 1)


def measured_tables(
    model: Conformer, space: Space, speech: Calibration, *, levels: int
) -> Iterator[SensitivityTable]:
    """Yield the table of each axis that has a consumer, measured with the consumer refitted.

    A level is computed from the axis's block on. With 12 blocks, 4 axes a block and 8 levels that
    is 12 x 4 x 8 / 2 = 192 passes over the speech.

    Args:
        model: the unpruned model.
        space: which axes may lose units.
        speech: calibration speech.
        levels: how many numbers of removed units are measured for each axis.
    """
    model.eval()
    whole, tensors = identity_fold(model), named_tensors(model)
    targets = prunable_consumers(space)
    places = comparison_places(model, speech)
    streams = ResidualStreams(model=model, folded=whole, speech=speech, places=places)
    expected = _all_log_probs(model, whole, speech, places)
    for part in streams.parts:
        own = [consumer for consumer in targets if consumer.part == part]
        grams: dict[str, GramSum] = {}
        if own:
            streams.watch(part, gram_watch(model, own, grams))
        for consumer in own:
            gram = grams.pop(consumer.module).total()
            columns = consumer_columns(tensors, consumer)
            order = consumer_order(
                gram.cpu(), columns, columns.T @ columns, consumer.axis.size
            ).units
            counts = level_counts(consumer.axis, levels)
            increases = [
                mean_kl(
                    expected,
                    streams.log_probs(
                        part, refitted_consumer(tensors, consumer, gram, order[:count])
                    ),
                )
                for count in counts
            ]
            yield _measured(consumer.axis, order, counts, increases)
        streams.advance(part)


@torch.no_grad()
def refitted_consumer(
    tensors: Mapping[str, Tensor],
    consumer: Consumer,
    gram: Float[Tensor, "inputs1 inputs1"],
    removed: Int[Tensor, " removed"],
) -> dict[str, Tensor]:
    """Return a consumer's weight and bias that make do without some units, by least squares.

    Args:
        tensors: of the model.
        consumer: whose columns of removed units become 0.
        gram: of its inputs, with a last column of ones.
        removed: the units.
    """
    name = f"{consumer.module}.weight"
    columns = consumer_columns(tensors, consumer).to(gram)
    units = torch.ones(consumer.axis.size, dtype=torch.bool, device=gram.device)
    units[removed.to(gram.device)] = False
    inputs = units.repeat_interleave((len(gram) - 1) // consumer.axis.size)
    has_bias = columns.shape[1] == len(gram)
    inputs = torch.cat((inputs, inputs.new_ones(1))) if has_bias else inputs
    inside = gram if has_bias else gram[:-1, :-1]
    solution = torch.zeros_like(columns)
    solution[:, inputs] = least_squares_columns(inside, columns, inputs)
    weight = tensors[name]
    changed = {name: solution[:, : len(gram) - 1].to(weight).view(weight.shape)}
    if has_bias:
        changed[f"{consumer.module}.bias"] = solution[:, -1].to(weight)
    return changed


def level_counts(axis: Axis, levels: int) -> list[int]:
    """Return numbers of removed units in equal steps, up to all that may go."""
    most = axis.size - axis.floor
    return sorted({round(most * (level + 1) / levels) for level in range(levels)} - {0})


def mean_kl(
    expected: Sequence[Float[Tensor, "_ vocabulary"]],
    actual: Sequence[Float[Tensor, "_ vocabulary"]],
) -> float:
    """Return the KL from expected log-probabilities, the mean over the frames of all batches."""
    sums = [
        float((before.exp() * (before - after)).sum())
        for before, after in zip(expected, actual, strict=True)
    ]
    return sum(sums) / max(1, sum(map(len, expected)))


def _measured(
    axis: Axis, order: Int[Tensor, " units"], counts: Sequence[int], increases: Sequence[float]
) -> SensitivityTable:
    """Return a table without falls: noise of a few frames must not make a level negative."""
    rising = np.maximum.accumulate([0.0, *increases])[1:]
    return SensitivityTable(
        axis=axis,
        order=order,
        counts=torch.tensor(counts),
        increase=torch.from_numpy(rising.astype(np.float64)),
    )


def closed_axis_tables(
    model: Conformer,
    orders: Mapping[str, Int[Tensor, " _"]],
    speech: Calibration,
    *,
    levels: int,
) -> Iterator[SensitivityTable]:
    """Yield tables of axes without consumers, measured by closing their gates level by level.

    A level is computed from the axis's part on: of a transducer's own units the decoder alone.

    Args:
        model: the unpruned model.
        orders: of each axis the units, the first one to be removed first.
        speech: calibration speech.
        levels: how many numbers of removed units are measured for each axis.
    """
    model.eval()
    whole, tensors, axes = identity_fold(model), named_tensors(model), model.axes()
    places = comparison_places(model, speech)
    streams = ResidualStreams(model=model, folded=whole, speech=speech, places=places)
    expected = _all_log_probs(model, whole, speech, places)
    for part in (*streams.parts, DECODER):
        for axis in (a for a in axes if a.name in orders and part_of(a.name) == part):
            order, counts = orders[axis.name], level_counts(axis, levels)
            increases = []
            for count in counts:
                gates = torch.ones(axis.size, device=model.device)
                gates[order[:count]] = 0
                closed = replace(streams, folded=fold(tensors, axes, {axis.name: gates}))
                increases.append(mean_kl(expected, closed.log_probs(part, {})))
            yield _measured(axis, order, counts, increases)
        if part != DECODER:
            streams.advance(part)


def _all_log_probs(
    model: Conformer, folded: Folded, speech: Calibration, places: Sequence[Places]
) -> list[Float[Tensor, "_ vocabulary"]]:
    streams = ResidualStreams(model=model, folded=folded, speech=speech, places=places)
    return streams.log_probs(streams.parts[0], {})


def table_scores(
    space: Space, tables: Sequence[SensitivityTable], resource: Resource
) -> dict[str, Float[Tensor, " _"]]:
    """Return the price of each unit: the KL that its removal adds, for each share of the resource.

    Within an axis the price of the next unit never falls, as pools of levels share their mean
    (isotonic regression): otherwise a dear unit would hide cheap ones behind it. An axis whose
    units take nothing of the resource has no scores, and stays whole: so do factors of a rank at
    which the product is not larger.
    """
    shares = {table.axis.name: unit_share(space, table.axis.name, resource) for table in tables}
    return {
        table.axis.name: unit_prices(table) / shares[table.axis.name]
        for table in tables
        if shares[table.axis.name] > 0
    }


def unit_prices(table: SensitivityTable) -> Float[Tensor, " units"]:
    """Return the KL that each unit's removal adds, by its number; units of no level must stay."""
    counts = np.diff(table.counts.numpy(), prepend=0)
    steps = np.diff(table.increase.numpy(), prepend=0.0) / counts
    pooled = isotonic_regression(steps, weights=counts).x
    prices = torch.full((table.axis.size,), torch.inf, dtype=torch.float64)
    removed = table.order[: int(counts.sum())]
    position = torch.arange(len(removed), dtype=torch.float64)
    prices[removed] = torch.from_numpy(np.repeat(pooled, counts)) * (1 + WITHIN_LEVEL * position)
    return prices
