"""The surroundings of a trial: its folders, its device and the seed of its random numbers."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from core.config.base import ConfigError
from core.config.trial import TrialConfig
from core.distributed import ALONE, Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialDirs:
    """Folders of a trial, all absolute: a worker's current folder may be any."""

    teacher: Path
    """Shared by all trials of a sweep: the teacher's bundle and checkpoints."""
    features: Path
    """Shared: the demo's speech, the tokenizer and the cached features."""
    trial: Path
    """This trial's own: checkpoints, the extracted model, outcomes."""


def select_device(config: TrialConfig) -> torch.device:
    """The device that a config asks for.

    Raises:
        ConfigError: if it asks for a GPU that is not there.
    """
    name = config.runtime.device
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("`runtime.device` must be a device of this machine, but `cuda` is not.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def seed_everything(config: TrialConfig, threads: int, ranks: Ranks = ALONE) -> None:
    """Seeds torch, in this one place; the order of the data has a generator of its own.

    Numbers that all ranks must share are drawn by the first; dropout should differ between ranks.
    """
    torch.set_num_threads(threads)
    # Seeds lie below 2^31, so no seed of another rank equals one of any trial.
    torch.manual_seed(config.seed + 2**31 * ranks.rank)


def num_cores() -> int:
    """Counts the cores that this process may use."""
    # Not `os.cpu_count`: a process may be bound to some of the machine's cores.
    return len(os.sched_getaffinity(0))
