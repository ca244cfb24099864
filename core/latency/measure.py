"""How long the parts of a model take on this machine, by their sizes: a table of latencies.

Each part is timed where it works, in a pass of one utterance at batch 1; then whole models are.
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
"""Of the unpruned sizes: where a table of latencies is measured."""
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
    """The times of all parts of models up to this shape, summing up to that of the shape itself.

    Below the whole sizes are of the kind that will be kept: multiples, or else odd numbers, at
    which matrix products are slower than at the round ones between.

    Parts are timed where they work, inside models of equal blocks, one for each point of the grid.
    Repeats go round all points, so that drift of the machine meets all alike.
    """
    speech = noise(1, utterance_seconds, device)
    points = [(i, j) for i in range(len(UNIT_SHARES)) for j in range(len(WIDTH_SHARES))]
    seen: dict[tuple[int, int], list[dict[Component, float]]] = {point: [] for point in points}
    whole, before = [], torch.get_num_threads()
    torch.set_num_threads(threads)
    with torch.random.fork_rng(devices=[]):
        unpruned = Conformer(shape).to(device).eval()
        for _ in range(repeats):
            whole += [time_forward(unpruned, speech, device) for _ in range(2)][1:]
            for i, j in points:
                model = Conformer(even(shape, UNIT_SHARES[i], WIDTH_SHARES[j], multiple_of))
                model.to(device).eval()
                seen[i, j] += [part_seconds(model, speech, device) for _ in range(2)][1:]
    torch.set_num_threads(before)
    parts = {part: _grid(shape, part, seen, multiple_of) for part in seen[points[-1]][0]}
    table = LatencyTable(
        utterance_seconds=utterance_seconds, device=device.type, threads=threads, parts=parts
    )
    axes = unpruned.axes()
    told = float(table.ms(axes, {axis.name: axis.size for axis in axes}))
    table = table.scale(1000 * statistics.median(whole) / told)
    return calibrate_table(
        table, unpruned, repeats=repeats, threads=threads, multiple_of=multiple_of
    )


def part_seconds(
    model: Conformer, speech: tuple[Tensor, Tensor], device: torch.device
) -> dict[Component, float]:
    """One pass, by kinds of parts; a module counts until the next one begins, on average."""
    marks: list[tuple[Component, float]] = []
    with _marked(model, marks, device):
        model(*speech)
        synchronize(device)
        end = time.perf_counter()
    spent: dict[Component, list[float]] = {}
    for (part, begun), (_, ended) in zip(marks, [*marks[1:], (marks[-1][0], end)], strict=True):
        spent.setdefault(part, []).append(ended - begun)
    return {part: sum(times) / len(times) for part, times in spent.items()}


@contextmanager
def _marked(
    model: Conformer, marks: list[tuple[Component, float]], device: torch.device
) -> Iterator[None]:
    """Note when each part begins."""

    def noting(part: Component) -> object:
        def note(*_: object) -> None:
            synchronize(device)
            marks.append((part, time.perf_counter()))

        return note

    handles = [
        module.register_forward_pre_hook(noting(part))  # type: ignore[arg-type]
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
    found: dict[Component, list[nn.Module | None]] = {
        "frontend": [model.frontend],
        "projection": [model.frontend.linear],
        "feedforward": [part for block in blocks for part in (block.ff1, block.ff2)],
        "attention": [block.attention for block in blocks],
        "convolution": [block.convolution for block in blocks],
        "norm": [block.norm for block in blocks],
        "output": [model.head],
    }
    return {part: [m for m in modules if m is not None] for part, modules in found.items()}


def even(shape: Shape, units: float, width: float, multiple_of: int = 1) -> Shape:
    """A shape of equal blocks with shares of the largest of each size."""
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
    """Units of a part where it has most; 0 where there is none."""
    sizes = {
        "feedforward": [size for block in shape.blocks for size in (block.ff1, block.ff2)],
        "attention": [block.heads for block in shape.blocks],
        "convolution": [block.channels for block in shape.blocks],
        "frontend": [shape.sub2],
        "projection": [shape.sub3 or shape.sub2],
    }
    return max(sizes.get(part, [1]), default=0)


def _level(shape: Shape, part: Component, share: float, multiple_of: int) -> int:
    """Units of a part at a share of the most it has; heads are as many as there are."""
    largest = _largest(shape, part)
    if part == "attention":
        return max(1, round(share * largest)) if largest else 0
    return _near(largest, share, multiple_of)


def _near(size: int, share: float, multiple_of: int) -> int:
    if share == 1 or not size:
        return size
    if multiple_of == 1:
        return min(size, round(share * size) | 1)
    return min(size, max(1, round(share * size / multiple_of)) * multiple_of)


def _grid(
    shape: Shape,
    part: Component,
    seen: Mapping[tuple[int, int], list[dict[Component, float]]],
    multiple_of: int,
) -> Grid:
    """Medians in milliseconds, in order; sizes that fall together share their mean."""
    whole = shape.sub1 if part == "frontend" else shape.width
    units = [_level(shape, part, share, multiple_of) for share in UNIT_SHARES]
    widths = [_near(whole, share, multiple_of) for share in WIDTH_SHARES]
    times: dict[tuple[int, int], list[float]] = {}
    for (i, j), passes in seen.items():
        median = statistics.median(each[part] for each in passes)
        times.setdefault((units[i], widths[j]), []).append(1000 * median)
    rows, columns = sorted(set(units)), sorted(set(widths))
    table = np.array([[statistics.mean(times[n, d]) for d in columns] for n in rows])
    ms = monotone(table)
    if part in NEVER_EMPTY:
        return Grid(units=rows, width=columns, ms=ms)
    return Grid(units=[0, *rows], width=columns, ms=[[0.0] * len(columns), *ms])
