"""How long models take on this machine: one utterance alone, or many at a time."""

import math
import statistics
import time
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.shape import MELS
from core.stages import Announce, be_silent

WARM_UP = 2
"""Passes that are not counted."""


def latency_seconds(
    model: nn.Module, *, utterance_seconds: float, repeats: int, device: torch.device
) -> float:
    """Median wall time of a forward pass over one utterance; see `batch_seconds`."""
    found = batch_seconds(
        {"": model},
        utterances=1,
        utterance_seconds=utterance_seconds,
        repeats=repeats,
        device=device,
    )
    return found[""]


def batch_seconds(
    models: Mapping[str, nn.Module],
    *,
    utterances: int,
    utterance_seconds: float,
    repeats: int,
    device: torch.device,
) -> dict[str, float]:
    """Median wall time of a forward pass over a batch, after two that are not counted.

    The models take turns, so that a drift of the machine meets all alike. The features are noise:
    what is timed does not depend on what is said.
    """
    times = pass_seconds(
        models,
        speech=noise(utterances, utterance_seconds, device),
        repeats=repeats,
        device=device,
    )
    return {name: statistics.median(taken) for name, taken in times.items()}


@torch.inference_mode()
def pass_seconds(
    models: Mapping[str, nn.Module],
    *,
    speech: tuple[Float[Tensor, "batch mel_frames mels"], Int[Tensor, " batch"]],
    repeats: int,
    device: torch.device,
    most_seconds: float = math.inf,
    announce: Announce = be_silent,
) -> dict[str, list[float]]:
    """Wall times of forward passes that count, the models in turns.

    Args:
        models: by name.
        speech: features and their lengths.
        repeats: the most passes that count, after two to warm up.
        device: of the models.
        most_seconds: no turn begins that would end later. A model so slow that no third pass fits
            hardly notices warming up: its last pass counts.
        announce: told what begins.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.eval()
    started = turn_started = time.perf_counter()
    for turn in range(repeats + WARM_UP):
        for name, model in models.items():
            announce(f"timing {name}, {len(speech[1])} at a time, pass {turn + 1}")
            times[name].append(timed(model, speech, device))
        before, turn_started = turn_started, time.perf_counter()
        if turn_started - started + (turn_started - before) > most_seconds:
            break
    return {name: taken[min(WARM_UP, len(taken) - 1) :] for name, taken in times.items()}


def noise(
    utterances: int, seconds: float, device: torch.device
) -> tuple[Float[Tensor, "batch mel_frames mels"], Int[Tensor, " batch"]]:
    """A batch of features that always sound the same, and their lengths."""
    frames = round(seconds * 100)
    chance = torch.Generator().manual_seed(0)
    features = torch.randn(utterances, frames, MELS, generator=chance).to(device)
    return features, torch.full((utterances,), frames, device=device)


def timed(model: nn.Module, speech: tuple[Tensor, Tensor], device: torch.device) -> float:
    """Wall time of one pass, in seconds."""
    settle(device)
    started = time.perf_counter()
    model(*speech)
    settle(device)
    return time.perf_counter() - started


def settle(device: torch.device) -> None:
    """Wait for what was asked of a device that answers before it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
