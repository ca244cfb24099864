"""How long models take on this machine: one utterance alone, or many at a time."""

import statistics
import time
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

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
    speech = noise(utterances, utterance_seconds, device)
    times: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.eval()
    for _ in range(repeats + 2):
        for name, model in models.items():
            times[name].append(timed(model, speech, device))
    return {name: statistics.median(taken[2:]) for name, taken in times.items()}


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
