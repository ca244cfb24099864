"""Latencies that can be believed: measured where no trial runs, beside the unpruned model."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from core.config.trial import DecoderName
from core.conformer.model import Conformer
from core.evaluation.timer import CpuTimes, mels_of, noise, pass_seconds, was_busy
from core.report import Outcome

LEAST_PASSES = 15
"""Of each model: quartiles of fewer say little."""
MOST_SECONDS = 60.0
"""For one model; of a large one fewer passes count."""
UNPRUNED, OWN = "the unpruned model", "the model"


@dataclass(frozen=True, kw_only=True, slots=True)
class IdleLatency:
    """A model's latency on a machine where no trial runs."""

    seconds: float
    """Median wall time of a forward pass over one utterance."""
    speedup: float
    """How many times as fast as the unpruned model: median over pairs of passes, one after the
    other."""
    speedup_low: float
    speedup_high: float
    """Quartiles of the same."""
    is_busy: bool
    """Whether other programs kept the machine busy all the same."""

    def updated(self, outcome: Outcome, *, utterance_seconds: float) -> Outcome:
        """Return an outcome with this latency in place of the one that its worker measured."""
        return replace(
            outcome,
            latency_ms=1000 * self.seconds,
            latency_busy=self.is_busy,
            latency_idle=True,
            real_time_factor=self.seconds / utterance_seconds,
            speedup=self.speedup,
            speedup_low=self.speedup_low,
            speedup_high=self.speedup_high,
        )


def measure_idle(
    model: Conformer,
    unpruned: Conformer,
    *,
    utterance_seconds: float,
    repeats: int,
    threads: int,
    device: torch.device,
    judged: DecoderName = "auto",
) -> IdleLatency:
    """Time a model and the unpruned one in turns, so that drift of the machine meets both alike.

    Args:
        model: to be timed.
        unpruned: what it is compared with.
        utterance_seconds: length of the utterance.
        repeats: passes of each that count, at least 15.
        threads: of torch.
        device: of both models.
        judged: which decoder of a hybrid decodes.
    """
    models = {UNPRUNED: unpruned.to(device), OWN: model.to(device)}
    with _threads(threads):
        before = CpuTimes.now()
        taken = pass_seconds(
            models,
            speech=noise(1, utterance_seconds, device, mels=mels_of([model])),
            repeats=max(repeats, LEAST_PASSES),
            device=device,
            most_seconds=MOST_SECONDS,
            judged=judged,
        )
        is_busy = was_busy(before, taken[OWN])
    ratios = np.divide(taken[UNPRUNED], taken[OWN])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    return IdleLatency(
        seconds=statistics.median(taken[OWN]),
        speedup=middle,
        speedup_low=low,
        speedup_high=high,
        is_busy=is_busy,
    )


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
