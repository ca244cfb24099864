"""The features that a recognizer reads: Kaldi's (kaldi.py), or NeMo's, which are computed here.

NeMo's are log powers on Slaney's mel scale, 0 to 8000 Hz: pre-emphasis over the whole utterance,
frames of 25 ms centred on every 10 ms in a transform of 512, no dither. Normalised, each mel bin
has mean 0 and deviation 1 over the utterance.

sherpa-onnx, given a model of NeMo's, computes others on the same scale: it cuts the frames that
Kaldi would, 5 ms late, emphasises each by itself, and uses a periodic window, the deviation of a
whole population, and a floor where the features are not normalised. For a transducer it takes
Kaldi's window, too, and ends at 7600 Hz.

Shapes: B batch, N samples, T frames, M mel bins.
"""

import functools
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.features.kaldi import (
    HIGH_HZ,
    SAMPLE_RATE_HZ,
    floored_log,
    frame_windows,
    log_mel,
    povey_window,
    preemphasize,
    real_frames,
)
from core.features.spec import FrontendSpec, Window

_WINDOW, _HOP, _FFT = 400, 160, 512
_HALF_HZ = SAMPLE_RATE_HZ / 2
_OF_SHERPA = ("sherpa", "sherpa_transducer")
_FLOOR = 2.0**-24
"""Is added to a power, so that silence has a logarithm."""
_LEAST_DEVIATION = 1e-5
_STEP = math.log(6.4) / 27
"""Of a logarithm of frequency, for one mel above 1000 Hz."""


def compute_features(
    spec: FrontendSpec,
    waveforms: Float[Tensor, "batch samples"],
    num_samples: Int[Tensor, " batch"],
) -> tuple[Float[Tensor, "batch frames mels"], Int[Tensor, " batch"]]:
    """Compute each utterance's features as if it were alone; padded frames are 0."""
    if spec.features == "kaldi":
        return log_mel(waveforms, num_samples)
    num_frames: Tensor = spec.count_frames(num_samples)
    longest = int(num_frames.max())
    if longest == 0:
        return waveforms.new_zeros(len(waveforms), 0, spec.mels, dtype=torch.float32), num_frames
    # A matrix product in bf16 would cost the logarithm its digits.
    with torch.autocast(waveforms.device.type, enabled=False):
        if spec.features in _OF_SHERPA:
            powers = _late_powers(spec, waveforms.float(), num_samples, longest)
        else:
            powers = _powers(spec, waveforms.float(), num_samples)[:, :longest]
        mels = _logarithm(spec, powers)
        is_real = real_frames(num_frames, longest)
        if spec.normalization == "per_feature":
            mels = _normalize(mels, is_real, spare=int(spec.features == "nemo"))
    return mels * is_real[:, :, None], num_frames


def _powers(
    spec: FrontendSpec,
    waveforms: Float[Tensor, "batch samples"],
    num_samples: Int[Tensor, " batch"],
) -> Float[Tensor, "batch frames mels"]:
    """Computes mel powers as NeMo does."""
    # The sample before the first is 0, and samples beyond the utterance are 0 in `emphasized`.
    before = torch.cat((waveforms.new_zeros(len(waveforms), 1), waveforms[:, :-1]), dim=1)
    position = torch.arange(waveforms.shape[1], device=waveforms.device)
    emphasized = (waveforms - spec.preemphasis * before) * (position < num_samples[:, None])
    spectrum = torch.stft(
        emphasized,
        _FFT,
        hop_length=_HOP,
        win_length=_WINDOW,
        window=_window(spec.window, waveforms.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    return spectrum.abs().square().transpose(1, 2) @ _mel_bank(spec.mels, waveforms.device)


def _late_powers(
    spec: FrontendSpec,
    waveforms: Float[Tensor, "batch samples"],
    num_samples: Int[Tensor, " batch"],
    longest: int,
) -> Float[Tensor, "batch frames mels"]:
    """Computes mel powers as sherpa-onnx does, in frames 5 ms later than NeMo's."""
    frames = preemphasize(frame_windows(waveforms, num_samples, longest))
    if spec.features == "sherpa_transducer":
        window, high_hz = povey_window(waveforms.device), HIGH_HZ
    else:
        window, high_hz = _window("hann", waveforms.device, is_periodic=True), _HALF_HZ
    power = torch.fft.rfft(frames * window, n=_FFT).abs().square()  # (B, T, bins)
    return power @ _mel_bank(spec.mels, waveforms.device, high_hz)


def _logarithm(
    spec: FrontendSpec, powers: Float[Tensor, "batch frames mels"]
) -> Float[Tensor, "batch frames mels"]:
    # As sherpa-onnx: a floor where features are not normalized, else a constant that is added.
    if spec.features in _OF_SHERPA and spec.normalization == "none":
        return floored_log(powers)
    return (powers + _FLOOR).log()


def _normalize(
    mels: Float[Tensor, "batch frames mels"],
    is_real: Bool[Tensor, "batch frames"],
    *,
    spare: int,
) -> Float[Tensor, "batch frames mels"]:
    """Normalizes by the statistics of real frames; their variance is divided by count - `spare`.

    The deviation of a single frame is taken for 0.
    """
    real, count = is_real[:, :, None], is_real.sum(1)[:, None, None]
    mean = (mels * real).sum(1, keepdim=True) / count.clamp_min(1)
    squares = ((mels - mean) * real).square().sum(1, keepdim=True)
    # NeMo divides by count - 1, as for a sample; sherpa-onnx by count, as for a whole population.
    deviation = (squares / (count - spare).clamp_min(1)).sqrt()
    return (mels - mean) / (deviation + _LEAST_DEVIATION)


@functools.cache
def _window(
    kind: Window, device: torch.device, *, is_periodic: bool = False
) -> Float[Tensor, " window"]:
    make = {"hann": torch.hann_window, "hamming": torch.hamming_window}[kind]
    return make(_WINDOW, periodic=is_periodic, device=device)


@functools.cache
def _mel_bank(
    mels: int, device: torch.device, high_hz: float = _HALF_HZ
) -> Float[Tensor, "bins mels"]:
    """Triangles of equal area on Slaney's scale, as columns; torchaudio's are no doubles."""
    hz = torch.arange(_FFT // 2 + 1, dtype=torch.float64)[:, None] * SAMPLE_RATE_HZ / _FFT
    # 8000 Hz are 45.2 mel. 82 edges make 80 triangles, each from one edge to the next but one.
    top = 15 + math.log(high_hz / 1000) / _STEP
    edges = _hz(torch.linspace(0, top, mels + 2, dtype=torch.float64))
    lower, center, upper = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (hz - lower) / (center - lower), (upper - hz) / (upper - center)
    # Divided by half the width of the triangle: all have the area 1.
    bank = torch.minimum(rising, falling).clamp_min(0) * 2 / (upper - lower)
    return bank.float().to(device)


def _hz(mel: Float[Tensor, " any"]) -> Float[Tensor, " any"]:
    """Linear up to 1000 Hz, which is 15, logarithmic above."""
    return torch.where(mel < 15, mel * 200 / 3, 1000 * ((mel - 15) * _STEP).exp())
