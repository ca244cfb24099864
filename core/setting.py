"""What a trial works with, whoever works: folders, device, chance, and data in order."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.config import TrialConfig
from core.corpora.batches import Batch, TrainBatches
from core.corpora.prepared import Speech
from core.ranks import ALONE, Ranks
from core.strict import ConfigError
from core.training.trainer import Journey

CHECKPOINTS = "checkpoints"
"""Of the folder of a trial, or of the teacher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a trial works; all absolute, as a worker's current folder is nobody's business."""

    teacher: Path
    """Shared by all trials of a sweep: the teacher's bundle and checkpoints."""
    features: Path
    """Shared: the demo's speech, the tokenizer and the cached features."""
    trial: Path
    """This trial's own: checkpoints, the extracted model, outcomes."""


def device_of(config: TrialConfig) -> torch.device:
    """The device that a config asks for.

    Raises:
        ConfigError: if it asks for a GPU that is not there.
    """
    name = config.runtime.device
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("`runtime.device` must be a device of this machine, but `cuda` is not.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def set_chance(config: TrialConfig, threads: int, ranks: Ranks = ALONE) -> None:
    """The one door through which chance comes in; the order of the data has its own generator.

    What all ranks must draw alike is the first one's to draw; dropout should differ between them.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(config.seed + 2**31 * ranks.rank)


def cores() -> int:
    """Of this machine, those that this process may use."""
    return len(os.sched_getaffinity(0))


def journey_of(
    config: TrialConfig,
    folder: Path,
    speech: Speech,
    device: torch.device,
    steps: int,
    *,
    clean_steps: int = 0,
) -> Journey:
    """The training speech in its order, from the beginning, with checkpoints in a folder.

    Args:
        config: of the trial.
        folder: of the trial, or of the teacher.
        speech: to train on.
        device: where.
        steps: of all stages.
        clean_steps: before recording conditions are simulated.
    """
    return Journey(
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
