"""Measurement of a latency table: the time of each component of a model by its sizes.

Components are timed inside whole models, in passes of one utterance at batch 1; then whole models
are timed.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from core.conformer.model import Conformer
from core.conformer.shape import BlockShape, Shape
from core.evaluation.timer import noise, synchronize, time_forward
from core.latency.calibrate import calibrate_table
from core.pruning.latency_table import Component, Grid, LatencyTable, monotone

UNIT_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
WIDTH_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Shares of the unpruned sizes at which a table is measured."""
NEVER_EMPTY: tuple[Component, ...] = ("frontend", "projection", "norm", "output")


@torch.inference_mode()
def latency_table(
    shape: Shape,
    *,
    utterance_seconds: float,
    repeats: int,
    threads: int,
    device: torch.device,
    multiple_of: int = 1,
) -> LatencyTable:
    """Measure the components of models up to this shape; their sum is scaled to the whole model's.

    Sizes below the unpruned ones are those that pruning leaves: multiples of `multiple_of`, or odd
    numbers, at which matrix products are slower than at round ones.

    Components are timed inside models of equal blocks, one for each point of the grid. Each repeat
    goes through all points, so that drift of the machine affects all alike.

    Args:
        shape: the unpruned sizes.
        utterance_seconds: length of the utterance.
        repeats: timed passes per point.
        threads: of torch.
        device: of the models.
        multiple_of: units of an axis are kept in multiples of this number.
    """
    speech = noise(1, utterance_seconds, device, mels=shape.frontend_spec.mels)
    points = [(i, j) for i in range(len(UNIT_SHARES)) for j in range(len(WIDTH_SHARES))]
    passes: dict[tuple[int, int], list[dict[Component, float]]] = {point: [] for point in points}
    whole, before = [], torch.get_num_threads()
    torch.set_num_threads(threads)
    with torch.random.fork_rng(devices=[]):
        unpruned = Conformer(shape).to(device).eval()
        for _ in range(repeats):
            # The first of each two passes warms up and is not counted.
            whole += [time_forward(unpruned, speech, device) for _ in range(2)][1:]
            for i, j in points:
                model = Conformer(even_shape(shape, UNIT_SHARES[i], WIDTH_SHARES[j], multiple_of))
                model.to(device).eval()
                passes[i, j] += [part_seconds(model, speech, device) for _ in range(2)][1:]
    torch.set_num_threads(before)
    parts = {part: _grid(shape, part, passes, multiple_of) for part in passes[points[-1]][0]}
    table = LatencyTable(
        utterance_seconds=utterance_seconds, device=device.type, threads=threads, parts=parts
    )
    axes = unpruned.axes()
    sum_ms = float(table.ms(axes, {axis.name: axis.size for axis in axes}))
    # A pass with hooks between its components takes another time than a pass without.
    table = table.scale(1000 * statistics.median(whole) / sum_ms)
    return calibrate_table(
        table, unpruned, repeats=repeats, threads=threads, multiple_of=multiple_of
    )


def part_seconds(
    model: Conformer, speech: tuple[Tensor, Tensor], device: torch.device
) -> dict[Component, float]:
    """Time one pass by components: a module's time lasts until the next one begins.

    Returns:
        The mean time of the modules of each component, in seconds.
    """
    marks: list[tuple[Component, float]] = []
    with _recorded_starts(model, marks, device):
        model(*speech)
        synchronize(device)
        end = time.perf_counter()
    seconds: dict[Component, list[float]] = {}
    # Starts at 0, 3 and 4 ms and an end at 9 ms: 3, 1 and 5 ms. The front end's time ends where its
    # projection, inside it, begins.
    for (part, begun), (_, ended) in zip(marks, [*marks[1:], (marks[-1][0], end)], strict=True):
        seconds.setdefault(part, []).append(ended - begun)
    return {part: sum(times) / len(times) for part, times in seconds.items()}


@contextmanager
def _recorded_starts(
    model: Conformer, marks: list[tuple[Component, float]], device: torch.device
) -> Iterator[None]:
    """Record when each component begins."""

    def recorder(part: Component) -> object:
        def record(*_: object) -> None:
            synchronize(device)
            marks.append((part, time.perf_counter()))

        return record

    handles = [
        module.register_forward_pre_hook(recorder(part))  # type: ignore[arg-type]
        for part, modules in _parts_of(model).items()
        for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts_of(model: Conformer) -> Mapping[Component, list[nn.Module]]:
    blocks = model.typed_blocks()
    modules: dict[Component, list[nn.Module | None]] = {
        "frontend": [model.frontend],
        "projection": [model.frontend.linear],
        "feedforward": [part for block in blocks for part in (block.ff1, block.ff2)],
        "attention": [block.attention for block in blocks],
        "convolution": [block.convolution for block in blocks],
        "norm": [block.norm for block in blocks],
        "output": [model.ctc_head],
    }
    return {part: [m for m in parts if m is not None] for part, parts in modules.items()}


def even_shape(shape: Shape, units: float, width: float, multiple_of: int = 1) -> Shape:
    """Return a shape of equal blocks with shares of the largest of each size.

    Args:
        shape: the unpruned sizes.
        units: share of heads, inner units and channels.
        width: share of the residual width.
        multiple_of: sizes are multiples of this number, or odd if it is 1.
    """
    block = BlockShape(
        ff1=_level(shape, "feedforward", units, multiple_of),
        heads=_level(shape, "attention", units, multiple_of),
        channels=_level(shape, "convolution", units, multiple_of),
        ff2=_level(shape, "feedforward", units, multiple_of),
    )
    return replace(
        shape,
        sub1=_near(shape.sub1, width, multiple_of),
        sub2=_level(shape, "frontend", units, multiple_of),
        sub3=_level(shape, "projection", units, multiple_of) if shape.sub3 else 0,
        width=_near(shape.width, width, multiple_of),
        blocks=(block,) * len(shape.blocks),
        ranks={},
    )


def _largest(shape: Shape, part: Component) -> int:
    """Return the largest number of units of a component; 0 if no block has it."""
    sizes = {
        "feedforward": [size for block in shape.blocks for size in (block.ff1, block.ff2)],
        "attention": [block.heads for block in shape.blocks],
        "convolution": [block.channels for block in shape.blocks],
        "frontend": [shape.sub2],
        "projection": [shape.sub3 or shape.sub2],
    }
    return max(sizes.get(part, [1]), default=0)


def _level(shape: Shape, part: Component, share: float, multiple_of: int) -> int:
    """Return a share of the largest number of units of a component; heads are not rounded."""
    largest = _largest(shape, part)
    if part == "attention":
        return max(1, round(share * largest)) if largest else 0
    return _near(largest, share, multiple_of)


def _near(size: int, share: float, multiple_of: int) -> int:
    if share == 1 or not size:
        return size
    if multiple_of == 1:
        # `| 1` makes the size odd: 1/16 of 384 is 24, and 25 is measured.
        return min(size, round(share * size) | 1)
    # 1/16 of 100 is 6, or 8 in multiples of 8.
    return min(size, max(1, round(share * size / multiple_of)) * multiple_of)


def _grid(
    shape: Shape,
    part: Component,
    passes: Mapping[tuple[int, int], list[dict[Component, float]]],
    multiple_of: int,
) -> Grid:
    """Return medians in milliseconds, made monotone; equal sizes share their mean.

    Example: shares 1/16 and 1/8 of 8 units are both 1 unit; its time is the mean of both points.
    """
    whole = shape.sub1 if part == "frontend" else shape.width
    units = [_level(shape, part, share, multiple_of) for share in UNIT_SHARES]
    widths = [_near(whole, share, multiple_of) for share in WIDTH_SHARES]
    times: dict[tuple[int, int], list[float]] = {}
    for (i, j), times_here in passes.items():
        # In milliseconds from here on.
        median = statistics.median(times_of[part] for times_of in times_here)
        times.setdefault((units[i], widths[j]), []).append(1000 * median)
    # Small models: 1/16 and 1/8 of 8 channels are one size.
    rows, columns = sorted(set(units)), sorted(set(widths))
    table = np.array([[statistics.mean(times[n, d]) for d in columns] for n in rows])
    ms = monotone(table)
    if part in NEVER_EMPTY:
        return Grid(units=rows, width=columns, ms=ms)
    # Without units a module is removed, and takes no time at all.
    return Grid(units=[0, *rows], width=columns, ms=[[0.0] * len(columns), *ms])
