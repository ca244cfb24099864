"""Calibration of a latency table by whole models, as a model is not the sum of its components.

Models are pruned at random to several shares of the sum of their components, each axis to a share
of its own, and timed in turn with the unpruned model.
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
"""Shares of the unpruned model's sum to which models are pruned, and models per share."""
UNEVENNESS = 0.5
KINDS: tuple[AxisKind, ...] = ("frontend", "width", "head", "inner", "channel", "module")


# Pairs of (sum of components, measured time), one for each share: 3 models of a share become their
# mean. Pairs must rise and end at (full, full), so noise may not put a smaller model above the
# unpruned one.
@torch.inference_mode()
def calibrate_table(
    table: LatencyTable, unpruned: Conformer, *, repeats: int, threads: int, multiple_of: int
) -> LatencyTable:
    """Return the table with the measured times of whole models.

    Args:
        table: of components, whose sum is the time of the unpruned model.
        unpruned: is pruned to the models that are timed.
        repeats: rounds in which all models are timed.
        threads: of torch.
        multiple_of: units of an axis are left in multiples of this number.
    """
    space = Space.of(unpruned, KINDS, table.utterance_seconds, latency=table)
    full = float(space.unpruned.latency)
    choices = list(_choices(space, multiple_of))
    models = [extract(unpruned, as_mask(choice)).eval() for choice in choices]
    sums = np.array([float(space.choice_cost(choice).latency) for choice in choices])
    shares = _measured_shares(unpruned, models, table.utterance_seconds, repeats, threads)
    sums, measured = (values.reshape(-1, DRAWS).mean(1) for values in (sums, full * shares))
    rising = np.minimum(isotonic_regression(measured).x, full) if len(sums) else measured
    whole = [list(pair) for pair in zip(sums.tolist(), rising.tolist(), strict=True)]
    return LatencyTable.parse({**table.model_dump(), "whole": [*whole, [full, full]]})


def _choices(space: Space, multiple_of: int) -> Iterator[dict[str, Tensor]]:
    """Yield choices by increasing share, above the share of the units that must stay."""
    generator = torch.Generator().manual_seed(0)
    nested = NestedOrder.of(space, _uneven_scores(space, generator))
    lowest = 1 - float(space.sparsity(nested.cost(range(nested.floors)), "latency"))
    # A share that not even the units that must stay allow has no model.
    for share in (share for share in SHARES if share > lowest):
        for _ in range(DRAWS):
            budget = Budget(keep=share, resource="latency")
            yield choose(space, _uneven_scores(space, generator), budget, multiple_of=multiple_of)


def _uneven_scores(space: Space, generator: torch.Generator) -> dict[str, Tensor]:
    """Return random scores by which every axis keeps another share of its units."""
    return {
        axis.name: torch.rand(axis.size, generator=generator)
        # One number per axis raises all its scores by up to 0.5: it keeps more units.
        + UNEVENNESS * torch.rand((), generator=generator)
        for axis in space.units
    }


def _measured_shares(
    unpruned: Conformer, models: list[Conformer], seconds: float, repeats: int, threads: int
) -> np.ndarray:
    """Return the models' times as shares of the unpruned model's, as medians over rounds."""
    device = next(unpruned.parameters()).device
    speech, before = noise(1, seconds, device, mels=unpruned.mels), torch.get_num_threads()
    torch.set_num_threads(threads)
    rounds = [
        [
            # The second of two passes: the first one warms up.
            [time_forward(model, speech, device) for _ in range(2)][1]
            for model in (unpruned, *models)
        ]
        for _ in range(repeats)
    ]
    torch.set_num_threads(before)
    # Ratios within a round: a machine that is slower for a while slows both.
    return np.median([[taken / row[0] for taken in row[1:]] for row in rounds], axis=0)
