"""Times forward passes on this machine: of one utterance, or of a batch."""

import math
import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.config.trial import DecoderName
from core.evaluation.batch_decoding import best_tokens
from core.features.spec import NATIVE
from core.stages import Announce, be_silent

WARM_UP = 2
"""Passes that are not counted."""

BUSY_SHARE = 0.25
"""Share of a pass's cores that other programs may use before the machine counts as busy: a pass
with three quarters of its cores takes a third longer, more than neighbors on a front differ."""
BUSY_SPREAD = 1.5
"""Largest ratio of the median pass to the shortest. On an idle machine it is below 1.2. Under a
container's limit of CPU time no other program is visible, but passes spread like this."""
_TICKS_LEAST = 3
"""The system counts in ticks, 100 a second; fewer than these per core mean nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """The time of a forward pass, and whether the measurement can be trusted."""

    seconds: float
    """Median wall time of a forward pass over one utterance."""
    is_busy: bool
    """Whether the machine was too busy with other programs during the measurement."""


def measure_latency(
    model: nn.Module,
    *,
    utterance_seconds: float,
    repeats: int,
    device: torch.device,
    judged: DecoderName = "auto",
) -> Latency:
    """Time a forward pass over one utterance, and check whether the machine is busy.

    Args:
        model: the model to time.
        utterance_seconds: length of the utterance.
        repeats: timed passes, after two that are not counted.
        device: of the model.
        judged: which decoder of a hybrid decodes.
    """
    before = CpuTimes.now()
    taken = pass_seconds(
        {"": model},
        speech=noise(1, utterance_seconds, device, mels=mels_of([model])),
        repeats=repeats,
        device=device,
        judged=judged,
    )[""]
    return Latency(seconds=statistics.median(taken), is_busy=was_busy(before, taken))


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuTimes:
    """CPU time counted by the system so far, in seconds of one core."""

    wall: float
    busy: float
    """CPU time of all programs on all cores; 0 where the system does not report it."""
    own: float
    """CPU time of this process."""
    cores: int
    """Number of cores that the system counts."""

    @classmethod
    def now(cls) -> "CpuTimes":
        """Read the counters of Linux; on other systems, only those of this process."""
        busy, cores = 0.0, os.cpu_count() or 1
        file = Path("/proc/stat")
        if file.is_file():
            # cpu  user nice system idle iowait irq softirq steal guest guest_nice
            # Without the last two: `user` and `nice` hold the guests' time already.
            ticks = [int(word) for word in file.read_text().splitlines()[0].split()[1:9]]
            idle = ticks[3] + ticks[4]
            busy = (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")
        return cls(wall=time.perf_counter(), busy=busy, own=sum(os.times()[:2]), cores=cores)


def was_busy(before: CpuTimes, taken: Sequence[float]) -> bool:
    """Whether other programs kept the machine busy during passes that have just ended.

    Args:
        before: counters when the passes began.
        taken: seconds of each pass.
    """
    crowded = is_crowded(before, CpuTimes.now(), threads=torch.get_num_threads())
    return crowded or is_spread(taken)


def is_crowded(before: CpuTimes, after: CpuTimes, *, threads: int) -> bool:
    """Whether other programs left too few cores to a pass.

    With C cores of which others keep O busy, a pass on W threads has to share if O > C - W; it is
    crowded if the excess is more than a quarter of W. Example: of 4 cores a trial uses 1, and three
    other trials of the sweep use one each: none slows another down.

    Args:
        before: counters when the passes began.
        after: counters when they ended.
        threads: threads of a pass.
    """
    span = after.wall - before.wall
    others = (after.busy - before.busy) - (after.own - before.own)
    threads = min(threads, after.cores)
    # 4 cores, 1 thread and 10 s: others may use 30 s without slowing a pass; with 33 s they use 3 s
    # of its core, more than a quarter of 10 s.
    unshared = (after.cores - threads) * span
    # In a short measurement, a few ticks of rounding per core must not count as other programs.
    least = max(BUSY_SHARE * threads * span, _TICKS_LEAST * after.cores / 100)
    return others - unshared > least


def is_spread(taken: Sequence[float]) -> bool:
    """Whether most passes took much longer than the shortest."""
    return statistics.median(taken) > BUSY_SPREAD * min(taken)


def latency_seconds(
    model: nn.Module, *, utterance_seconds: float, repeats: int, device: torch.device
) -> float:
    """Return the median wall time of a forward pass over one utterance; see `batch_seconds`.

    Args:
        model: the model to time.
        utterance_seconds: length of the utterance.
        repeats: passes that count, after two to warm up.
        device: of the model.
    """
    seconds = batch_seconds(
        {"": model},
        utterances=1,
        utterance_seconds=utterance_seconds,
        repeats=repeats,
        device=device,
    )
    return seconds[""]


def batch_seconds(
    models: Mapping[str, nn.Module],
    *,
    utterances: int,
    utterance_seconds: float,
    repeats: int,
    device: torch.device,
) -> dict[str, float]:
    """Return the median wall time of a forward pass over a batch, by name of the model.

    Args:
        models: by name.
        utterances: of the batch.
        utterance_seconds: length of each.
        repeats: passes that count, after two to warm up.
        device: of the models.
    """
    times = pass_seconds(
        models,
        speech=noise(utterances, utterance_seconds, device, mels=mels_of(models.values())),
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
    judged: DecoderName = "auto",
) -> dict[str, list[float]]:
    """Return wall times of forward passes, the models in turns, without those to warm up.

    Args:
        models: by name.
        speech: features and their lengths.
        repeats: the most passes that count, after two to warm up.
        device: of the models.
        most_seconds: no turn begins that would end later. If a model is so slow that no third pass
            fits, its last pass counts, as warming up hardly changes it.
        announce: called with what begins.
        judged: which decoder of a hybrid decodes.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.eval()
    started = turn_started = time.perf_counter()
    for turn in range(repeats + WARM_UP):
        for name, model in models.items():
            announce(f"timing {name}, {len(speech[1])} at a time, pass {turn + 1}")
            times[name].append(time_forward(model, speech, device, judged))
        before, turn_started = turn_started, time.perf_counter()
        # Another turn is taken to last as long as this one.
        if turn_started - started + (turn_started - before) > most_seconds:
            break
    return {name: taken[min(WARM_UP, len(taken) - 1) :] for name, taken in times.items()}


def mels_of(models: Iterable[nn.Module]) -> int:
    """Return the mel bins that models read, all the same; of modules that do not say, 80."""
    return next((getattr(model, "mels", NATIVE.mels) for model in models), NATIVE.mels)


def noise(
    utterances: int, seconds: float, device: torch.device, *, mels: int = NATIVE.mels
) -> tuple[Float[Tensor, "batch mel_frames mels"], Int[Tensor, " batch"]]:
    """Return a batch of random features, always the same, and their lengths."""
    frames = round(seconds * 100)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(utterances, frames, mels, generator=generator).to(device)
    return features, torch.full((utterances,), frames, device=device)


def time_forward(
    model: nn.Module,
    speech: tuple[Tensor, Tensor],
    device: torch.device,
    judged: DecoderName = "auto",
) -> float:
    """Return the wall time of one pass, in seconds, with the search of a transducer."""
    synchronize(device)
    started = time.perf_counter()
    output = model(*speech)
    if judged != "ctc" and getattr(model, "transducer", None) is not None:
        best_tokens(model, output)  # CTC's takes no time that could be measured
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait for the work of an asynchronous device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
