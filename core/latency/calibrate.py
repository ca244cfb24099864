"""A table of latencies corrected by whole models: parts together take another time than one by one.

Models are cut by chance to some shares of what their parts add up to, each part to a share of its
own, as pruning does, and timed in turn with the unpruned one.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from core.config.pruning import AxisKind
from core.conformer.model import Conformer
from core.evaluation.timer import noise, time_forward
from core.pruning.extraction import as_mask, extract
from core.pruning.latency_table import LatencyTable
from core.pruning.selection import Budget, NestedOrder, choose
from core.pruning.space import Space

SHARES, DRAWS = (0.2, 0.4, 0.6, 0.8), 3
"""To what shares of the unpruned model's sum models are cut, and how many to each."""
UNEVENNESS = 0.5
CUT: tuple[AxisKind, ...] = ("frontend", "width", "head", "inner", "channel", "module")


@torch.inference_mode()
def calibrate_table(
    table: LatencyTable, unpruned: Conformer, *, repeats: int, threads: int, multiple_of: int
) -> LatencyTable:
    """The table with what whole models take."""
    space = Space.of(unpruned, CUT, table.utterance_seconds, latency=table)
    full = float(space.unpruned.latency)
    choices = list(_choices(space, multiple_of))
    models = [extract(unpruned, as_mask(choice)).eval() for choice in choices]
    told = np.array([float(space.choice_cost(choice).latency) for choice in choices])
    shares = _measured_shares(unpruned, models, table.utterance_seconds, repeats, threads)
    told, measured = (each.reshape(-1, DRAWS).mean(1) for each in (told, full * shares))
    rising = np.minimum(isotonic_regression(measured).x, full) if len(told) else measured
    whole = [list(pair) for pair in zip(told.tolist(), rising.tolist(), strict=True)]
    return LatencyTable.parse({**table.model_dump(), "whole": [*whole, [full, full]]})


def _choices(space: Space, multiple_of: int) -> Iterator[dict[str, Tensor]]:
    """Rising in their shares; what must stay takes more than the least of them."""
    chance = torch.Generator().manual_seed(0)
    nested = NestedOrder.of(space, _uneven(space, chance))
    lowest = 1 - float(space.sparsity(nested.cost(range(nested.floors)), "latency"))
    for share in (share for share in SHARES if share > lowest):
        for _ in range(DRAWS):
            budget = Budget(keep=share, resource="latency")
            yield choose(space, _uneven(space, chance), budget, multiple_of=multiple_of)


def _uneven(space: Space, chance: torch.Generator) -> dict[str, Tensor]:
    """Scores by which every axis keeps another share of its units."""
    return {
        axis.name: torch.rand(axis.size, generator=chance)
        + UNEVENNESS * torch.rand((), generator=chance)
        for axis in space.units
    }


def _measured_shares(
    unpruned: Conformer, models: list[Conformer], seconds: float, repeats: int, threads: int
) -> np.ndarray:
    """Of the unpruned model's time, in turn with it, each warm: medians over rounds."""
    device = next(unpruned.parameters()).device
    speech, before = noise(1, seconds, device), torch.get_num_threads()
    torch.set_num_threads(threads)
    rounds = [
        [
            [time_forward(model, speech, device) for _ in range(2)][1]
            for model in (unpruned, *models)
        ]
        for _ in range(repeats)
    ]
    torch.set_num_threads(before)
    return np.median([[taken / row[0] for taken in row[1:]] for row in rounds], axis=0)
