"""How long a dense model takes on this machine: one utterance at batch 1."""

import statistics
import time

import torch

from core.conformer.model import Conformer
from core.conformer.shape import MELS


@torch.inference_mode()
def latency_seconds(
    model: Conformer, *, utterance_seconds: float, repeats: int, device: torch.device
) -> float:
    """Median wall time of a forward pass over one utterance, after two that are not counted.

    The features are noise: what is timed does not depend on what is said.
    """
    model.eval()
    frames = round(utterance_seconds * 100)
    chance = torch.Generator().manual_seed(0)
    features = torch.randn(1, frames, MELS, generator=chance).to(device)
    num_frames = torch.tensor([frames], device=device)
    times = []
    for _ in range(repeats + 2):
        _settle(device)
        started = time.perf_counter()
        model(features, num_frames)
        _settle(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
