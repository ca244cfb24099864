"""Training data and calibration data of a trial, in a fixed order."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from core.config.trial import TrialConfig
from core.data.batching import Batch, TrainBatches
from core.data.prepare import Speech
from core.training.loop import TrainRun

CHECKPOINTS = "checkpoints"
"""Of the folder of a trial, or of the teacher."""


def make_train_run(
    config: TrialConfig,
    folder: Path,
    speech: Speech,
    device: torch.device,
    steps: int,
    *,
    clean_steps: int = 0,
) -> TrainRun:
    """The training speech in its order, from the beginning, with checkpoints in a folder.

    Args:
        config: of the trial.
        folder: of the trial, or of the teacher.
        speech: to train on.
        device: where.
        steps: of all stages.
        clean_steps: before recording conditions are simulated.
    """
    return TrainRun(
        batches=TrainBatches(
            speech.train,
            config.training.batch_seconds,
            config.seed,
            augment=config.training.augment,
            clean_batches=clean_steps,
        ),
        augment=config.training.augment,
        augment_chance=torch.Generator().manual_seed(config.seed),
        runtime=config.runtime,
        device=device,
        checkpoints=folder / CHECKPOINTS,
        total_steps=steps,
    )


def count_clean_steps(config: TrialConfig, steps: int) -> int:
    """Steps, of so many from random weights, with speech as it was recorded."""
    return round(config.training.augment.clean_share * steps)


def calibration_batches(config: TrialConfig, speech: Speech, device: torch.device) -> list[Batch]:
    """The first batches of an order of their own: the same ones, whoever asks and whenever.

    Their speech is as it was recorded.
    """
    batches = TrainBatches(speech.train, config.training.batch_seconds, config.seed + 1)
    return [next(batches).to(device) for _ in range(config.pruning.calibration_batches)]


def without_words(batches: Iterable[Batch]) -> list[tuple[Tensor, Tensor]]:
    """Features and their numbers of frames."""
    return [(batch.features, batch.num_frames) for batch in batches]
