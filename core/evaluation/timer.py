"""How long models take on this machine: one utterance alone, or many at a time."""

import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.shape import MELS
from core.stages import Announce, be_silent

WARM_UP = 2
"""Passes that are not counted."""

BUSY_SHARE = 0.25
"""Share of the cores that a pass wants, from which on others take too much: a pass that has three
quarters of its cores takes a third longer, more than two neighbors on a front differ."""
BUSY_SPREAD = 1.5
"""The median of the passes over the shortest: alone it is below 1.2; a machine that is shared by
turns, as under a container's limit of CPU time, shows no other program but such a spread."""
_TICKS_LEAST = 3
"""The system counts in ticks, 100 a second: of so few it says nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """How long a pass takes, and whether that can be trusted."""

    seconds: float
    """Median wall time of a forward pass over one utterance."""
    is_busy: bool
    """Whether the machine was too busy with other programs meanwhile."""


def measured_latency(
    model: nn.Module, *, utterance_seconds: float, repeats: int, device: torch.device
) -> Latency:
    """Time a forward pass over one utterance, and look at how busy the machine is meanwhile.

    Args:
        model: what is timed.
        utterance_seconds: length of the utterance.
        repeats: timed passes, after two that are not counted.
        device: where the model is.
    """
    before = CpuTimes.now()
    taken = pass_seconds(
        {"": model},
        speech=noise(1, utterance_seconds, device),
        repeats=repeats,
        device=device,
    )[""]
    after, wanted = CpuTimes.now(), torch.get_num_threads()
    return Latency(
        seconds=statistics.median(taken),
        is_busy=is_crowded(before, after, wanted=wanted) or is_spread(taken),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuTimes:
    """What the system has counted so far, in seconds of one core."""

    wall: float
    busy: float
    """Of all programs on all cores; 0 where the system does not say."""
    own: float
    """Of this process."""
    cores: int
    """That the system counts."""

    @classmethod
    def now(cls) -> "CpuTimes":
        """Read the counters of Linux; of other systems, this process's alone."""
        busy, cores = 0.0, os.cpu_count() or 1
        file = Path("/proc/stat")
        if file.is_file():
            # cpu  user nice system idle iowait irq softirq steal guest guest_nice
            ticks = [int(word) for word in file.read_text().splitlines()[0].split()[1:9]]
            idle = ticks[3] + ticks[4]
            busy = (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")
        return cls(wall=time.perf_counter(), busy=busy, own=sum(os.times()[:2]), cores=cores)


def is_crowded(before: CpuTimes, after: CpuTimes, *, wanted: int) -> bool:
    """Whether others ran on so many cores that too few were left.

    With C cores of which others keep O busy, a pass that wants W has to share once O > C - W; it is
    crowded once that is more than a quarter of what it wants. Example: of 4 cores a trial wants 1,
    and three other trials of the sweep run on one each: none is in another's way.

    Args:
        before: counters when the passes began.
        after: counters when they ended.
        wanted: threads of a pass.
    """
    span = after.wall - before.wall
    others = (after.busy - before.busy) - (after.own - before.own)
    wanted = min(wanted, after.cores)
    unshared = (after.cores - wanted) * span
    least = max(BUSY_SHARE * wanted * span, _TICKS_LEAST * after.cores / 100)
    return others - unshared > least


def is_spread(taken: Sequence[float]) -> bool:
    """Whether most passes took much longer than the shortest."""
    return statistics.median(taken) > BUSY_SPREAD * min(taken)


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
    """Median wall time of a forward pass over a batch; see `pass_seconds`."""
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
            times[name].append(time_forward(model, speech, device))
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


def time_forward(model: nn.Module, speech: tuple[Tensor, Tensor], device: torch.device) -> float:
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
