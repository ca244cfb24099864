"""What sensitivity tables take: time and memory, before they are computed."""

import time

import torch

from core.conformer.axes import Axis
from core.conformer.masking import named_tensors
from core.pruning.calibration import DECODER, FRONTEND, part_of, prunable_consumers
from core.pruning.obs import removal_order
from core.pruning.sensitivity import level_counts
from core.pruning.space import Space

TRIED_INPUTS = 1024
"""Inputs of the elimination that is timed: of fewer, most time is that of Python."""
SINGLE_BYTES, DOUBLE_BYTES = 4, 8
READERS_OF_A_BLOCK = 4


def elimination_cost(space: Space, axis: Axis) -> float:
    """Return the cubes of the inputs of all layers that read an axis, with which time grows."""
    tensors = named_tensors(space.model)
    shapes = [tensors[piece.tensor].flatten(1).shape for piece in axis.slices if piece.dim == 1]
    return float(sum(shape[1] ** 3 for shape in shapes))


def estimate_table_seconds(space: Space) -> float:
    """Return the seconds that all orders will take on this machine, from one that is timed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * TRIED_INPUTS, TRIED_INPUTS, generator=generator, dtype=torch.float64)
    started = time.perf_counter()
    removal_order(x.T @ x, x.T @ x, num_units=TRIED_INPUTS, unit_inputs=1)
    a_cube = (time.perf_counter() - started) / TRIED_INPUTS**3
    return a_cube * sum(elimination_cost(space, axis) for axis in space.units)


def estimate_table_bytes(space: Space) -> int:
    """Return the memory of the sums that are held at once, beside the model.

    The Fisher of all consumers' outputs, in single precision, waits for its turn. Meanwhile there
    are, for the width, two matrices of each reader; then four of the largest consumer's inputs.
    """
    tensors = named_tensors(space.model)
    shapes = [
        tensors[consumer.piece.tensor].flatten(1).shape for consumer in prunable_consumers(space)
    ]
    outputs = sum(rows * rows for rows, _ in shapes)
    largest = max((columns for _, columns in shapes), default=0)
    readers = READERS_OF_A_BLOCK * len(space.model.blocks) + 1
    of_width = 2 * readers * (space.model.shape.width + 1) ** 2
    return SINGLE_BYTES * outputs + DOUBLE_BYTES * max(of_width, 4 * (largest + 1) ** 2)


def measured_passes(space: Space, levels: int, *, consumers_too: bool) -> float:
    """Return how many passes over the calibration speech measure tables level by level.

    A level is computed from the axis's part on: of a transducer's units the decoder alone, which
    takes next to nothing. Example: 12 blocks with 4 axes each at 8 levels take 12 x 4 x 8 / 2 = 192
    passes.

    Args:
        space: which axes may lose units.
        levels: how many numbers of removed units are measured for each axis.
        consumers_too: whether axes with a consumer are measured; others always are, but the width.
    """
    parts = [FRONTEND, *(block.name for block in space.model.typed_blocks()), DECODER]
    with_consumer = {consumer.axis.name for consumer in prunable_consumers(space)}
    passes = 0.0
    for axis in (axis for axis in space.units if axis.size > axis.floor):
        if axis.kind != "width" and (consumers_too or axis.name not in with_consumer):
            behind = parts[parts.index(part_of(axis.name)) : -1]
            passes += len(level_counts(axis, levels)) * len(behind) / (len(parts) - 1)
    return passes
