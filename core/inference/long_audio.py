"""A recogniser listens to a file: whole, or window by window where it is long.

Shapes: N samples, M mel frames, T output frames, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from core.data.audio import read_file
from core.data.audio_stream import AudioStream
from core.features.kaldi import SAMPLE_RATE_HZ
from core.features.nemo import compute_features
from core.inference.exported_model import Network
from core.inference.timestamps import frame_times
from core.inference.windows import Window, Windowing, seams, windows

_SAMPLES = SAMPLE_RATE_HZ // 100
"""A mel frame."""
_READ = 1000
"""Output frames whose loudness is looked at at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioSegment:
    """What a model makes of the next stretch of a file."""

    log_probabilities: Float[Tensor, "part vocabulary"]
    seconds: float
    """Of speech that no part before had."""


def transcribe_windows(
    model: Network, file: Path, *, windowing: Windowing, resample: bool = True
) -> Iterator[AudioSegment]:
    """All output frames of a file, once each, in order; in one part if a window holds it.

    Raises:
        CorpusError: naming a file that is missing, empty, unreadable or of a refused sample rate.
    """
    recording = AudioStream(file, resample=resample)
    if recording.seconds <= windowing.seconds:
        waveform = read_file(file, resample=resample)
        yield AudioSegment(
            log_probabilities=log_probabilities(model, waveform),
            seconds=len(waveform) / SAMPLE_RATE_HZ,
        )
        return
    yield from _by_windows(model, file, windowing, resample=resample)


def _by_windows(
    model: Network, file: Path, windowing: Windowing, *, resample: bool
) -> Iterator[AudioSegment]:
    """Twice through the file: for where it is quiet, and to hear it."""
    frontend_spec, times, before = model.frontend_spec, frame_times(model.frontend_spec), 0
    meet = seams(_loudness(file, times.stride * _SAMPLES, resample=resample), times, windowing)
    with AudioStream(file, resample=resample) as recording:
        num_frames = frontend_spec.count_frames(recording.num_samples)
        for window in windows(num_frames, times, meet, windowing):
            # Rounding leaves samples after the last frame, which no window may cut off.
            end = recording.num_samples if window.last is None else window.end * _SAMPLES
            waveform = recording.read(window.begin * _SAMPLES, end)
            kept = log_probabilities(model, waveform)[window.first : window.last]
            assert _is_complete(window, len(kept)), "the front end sees a frame less than it should"
            yield AudioSegment(log_probabilities=kept, seconds=(end - before) / SAMPLE_RATE_HZ)
            before = end


def _loudness(file: Path, hop: int, *, resample: bool) -> Float[Tensor, " time"]:
    """Of so many samples after the other, those left over at the end aside; deaf to an offset."""
    with AudioStream(file, resample=resample) as recording:
        # In one piece from the start: small results between large reads would keep their memory.
        found = torch.empty(recording.num_samples // hop)
        for begin in range(0, len(found), _READ):
            end = min(begin + _READ, len(found))
            samples = recording.read(begin * hop, end * hop)
            found[begin:end] = samples.view(-1, hop).var(-1, correction=0)
        recording.read(len(found) * hop, recording.num_samples)
        recording.report_faults()
    return found


def _is_complete(window: Window, num_kept: int) -> bool:
    return window.last is None or num_kept == window.last - window.first


@torch.inference_mode()
def log_probabilities(
    model: Network, waveform: Float[Tensor, " samples"]
) -> Float[Tensor, "time vocabulary"]:
    """Of the frames of a stretch of speech; none of one too short for a frame.

    Features that look at no more than a frame are those of the whole file; those that NeMo
    normalises over an utterance are normalised over the stretch.
    """
    frontend_spec = model.frontend_spec
    features, num_frames = compute_features(
        frontend_spec, waveform[None], torch.tensor([len(waveform)])
    )
    if int(num_frames[0]) < frontend_spec.shortest:
        return torch.zeros(0, model.vocabulary)
    output = model(features, num_frames)
    return output.logits.log_softmax(-1)[0, : int(output.num_frames[0])]
