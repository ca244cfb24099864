"""Training data and calibration data of a trial, in a fixed order."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from core.config.trial import TrialConfig
from core.data.batching import Batch, TrainBatches
from core.data.prepare import Speech
from core.data.read_ahead import ReadAhead
from core.training.loop import TrainRun

CHECKPOINTS = "checkpoints"
"""Name of the folder in that of a trial, or of the teacher."""


def make_train_run(
    config: TrialConfig,
    folder: Path,
    speech: Speech,
    device: torch.device,
    steps: int,
    *,
    clean_steps: int = 0,
) -> TrainRun:
    """Return a run at its first step, with its checkpoints in a folder.

    Args:
        config: of the trial.
        folder: of the trial, or of the teacher.
        speech: training speech.
        device: on which it trains.
        steps: of all stages.
        clean_steps: first steps without simulated recording conditions.
    """
    batches = TrainBatches(
        speech.train,
        config.training.batch_seconds,
        config.seed,
        augment=config.training.augment,
        clean_batches=clean_steps,
    )
    return TrainRun(
        # A CPU has no time to spare while it computes.
        batches=batches if device.type == "cpu" else ReadAhead(batches, is_pinned=True),
        augment=config.training.augment,
        augment_rng=torch.Generator().manual_seed(config.seed),
        runtime=config.runtime,
        device=device,
        checkpoints=folder / CHECKPOINTS,
        total_steps=steps,
    )


def count_clean_steps(config: TrialConfig, steps: int) -> int:
    """Return how many of these first steps use speech without simulated conditions."""
    return round(config.training.augment.clean_share * steps)


def calibration_batches(config: TrialConfig, speech: Speech, device: torch.device) -> list[Batch]:
    """Return the calibration batches, always the same, from an order of their own.

    Their speech has no simulated recording conditions.
    """
    batches = TrainBatches(speech.train, config.training.batch_seconds, config.seed + 1)
    return [next(batches).to(device) for _ in range(config.pruning.calibration_batches)]


def without_words(batches: Iterable[Batch]) -> list[tuple[Tensor, Tensor]]:
    """Return features and numbers of frames of these batches, on one device."""
    return [(batch.features, batch.num_frames.to(batch.features.device)) for batch in batches]
