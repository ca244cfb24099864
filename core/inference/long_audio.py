"""Inference on an audio file: whole, or window by window if it is long.

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
from core.inference.windows import Window, Windowing, find_boundaries, windows

_SAMPLES = SAMPLE_RATE_HZ // 100
"""Samples from one mel frame to the next."""
_READ = 1000
"""Output frames whose loudness is computed at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """What decoders read of consecutive output frames."""

    log_probabilities: Float[Tensor, "part vocabulary"] | None
    """Of CTC; None without a CTC head."""
    encoded: Float[Tensor, "part width"] | None = None
    """The encoder's output, for a transducer; None without one."""

    def __getitem__(self, part: slice) -> "Frames":
        """Return some of the frames."""
        return Frames(
            log_probabilities=None
            if self.log_probabilities is None
            else self.log_probabilities[part],
            encoded=None if self.encoded is None else self.encoded[part],
        )

    def __len__(self) -> int:
        """Return the number of frames."""
        one = self.encoded if self.log_probabilities is None else self.log_probabilities
        return 0 if one is None else len(one)


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioSegment:
    """The output of a model for the next segment of a file."""

    frames: Frames
    seconds: float
    """Seconds of audio that no earlier segment had."""


def transcribe_windows(
    model: Network, file: Path, *, windowing: Windowing, resample: bool = True
) -> Iterator[AudioSegment]:
    """Yield all output frames of a file in order; one segment if it fits into a window.

    Args:
        model: in torch or ONNX Runtime.
        file: audio.
        windowing: length and overlap of windows.
        resample: whether to resample other rates; they are refused otherwise.

    Raises:
        CorpusError: naming a file that is missing, empty, unreadable or of a refused sample rate.
    """
    # Its header alone is read here, unless that does not state how long the audio is.
    recording = AudioStream(file, resample=resample)
    if recording.seconds <= windowing.seconds:
        waveform = read_file(file, resample=resample)
        frames = compute_frames(model, waveform)
        yield AudioSegment(frames=frames, seconds=len(waveform) / SAMPLE_RATE_HZ)
        return
    yield from _by_windows(model, file, windowing, resample=resample)


def _by_windows(
    model: Network, file: Path, windowing: Windowing, *, resample: bool
) -> Iterator[AudioSegment]:
    """Read the file twice: to find quiet points, and to compute the model."""
    # `before`: where the last segment ended. Windows overlap, segments do not.
    frontend_spec, times, before = model.frontend_spec, frame_times(model.frontend_spec), 0
    # One value of loudness for each output frame: at a stride of 4, each 640 samples or 40 ms.
    boundaries = find_boundaries(
        _loudness(file, times.stride * _SAMPLES, resample=resample), times, windowing
    )
    with AudioStream(file, resample=resample) as recording:
        num_frames = frontend_spec.count_frames(recording.num_samples)
        for window in windows(num_frames, times, boundaries, windowing):
            # Rounding leaves samples after the last frame; the last window includes them.
            end = recording.num_samples if window.last is None else window.end * _SAMPLES
            waveform = recording.read(window.begin * _SAMPLES, end)
            frames = compute_frames(model, waveform)[window.first : window.last]
            assert _is_complete(window, len(frames)), (
                "the front end returned a frame less than expected"
            )
            yield AudioSegment(frames=frames, seconds=(end - before) / SAMPLE_RATE_HZ)
            before = end


def _loudness(file: Path, hop: int, *, resample: bool) -> Float[Tensor, " time"]:
    """Return the variance of each `hop` samples; a rest at the end is ignored."""
    with AudioStream(file, resample=resample) as recording:
        # Allocated at once: small results between large reads would fragment memory.
        loudness = torch.empty(recording.num_samples // hop)
        for begin in range(0, len(loudness), _READ):
            end = min(begin + _READ, len(loudness))
            samples = recording.read(begin * hop, end * hop)
            # Not the mean square: a constant offset of the samples is no sound.
            loudness[begin:end] = samples.view(-1, hop).var(-1, correction=0)
        # The rest that gave no value is decoded, too: a file that ends too early, or has too many
        # faulty samples, is refused before the model has run.
        recording.read(len(loudness) * hop, recording.num_samples)
        recording.report_faults()
    return loudness


def _is_complete(window: Window, num_kept: int) -> bool:
    return window.last is None or num_kept == window.last - window.first


@torch.inference_mode()
def compute_frames(model: Network, waveform: Float[Tensor, " samples"]) -> Frames:
    """Return what decoders read of a waveform; of one too short for a frame, no frames.

    Kaldi features of a segment equal those of the whole file; NeMo features that are normalized
    over an utterance are normalized over the segment.
    """
    frontend_spec = model.frontend_spec
    features, num_frames = compute_features(
        frontend_spec, waveform[None], torch.tensor([len(waveform)])
    )
    # Fewer than 7 mel frames give no output of `conv4`, whose kernels are larger than that.
    if int(num_frames[0]) < frontend_spec.shortest:
        features, num_frames = torch.zeros(1, frontend_spec.shortest, model.mels), num_frames * 0
    output = model(features, num_frames)
    real = int(output.num_frames[0])
    # A graph returns log-probabilities as logits; log_softmax leaves them as they are, as their
    # exponentials add up to 1.
    logits, has_transducer = output.ctc_logits, getattr(model, "transducer", None) is not None
    encoded = output.encoded if has_transducer else None
    return Frames(
        log_probabilities=None if logits is None else logits.log_softmax(-1)[0, :real],
        encoded=None if encoded is None else encoded[0, :real],
    )
