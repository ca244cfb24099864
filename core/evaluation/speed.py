"""How long models take on this machine: one utterance alone, or many at a time."""

import statistics
import time
from collections.abc import Mapping

import torch
from torch import nn

from core.conformer.shape import MELS


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


@torch.inference_mode()
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
    frames = round(utterance_seconds * 100)
    chance = torch.Generator().manual_seed(0)
    features = torch.randn(utterances, frames, MELS, generator=chance).to(device)
    num_frames = torch.full((utterances,), frames, device=device)
    times: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.eval()
    for _ in range(repeats + 2):
        for name, model in models.items():
            _settle(device)
            started = time.perf_counter()
            model(features, num_frames)
            _settle(device)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken[2:]) for name, taken in times.items()}


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
