"""Log-mel features, computed in batches on the device, and SpecAugment.

The features are Kaldi's 80 filter banks as sherpa-onnx computes them, so that a recognizer trained
here leaves without conversion: samples in [-1, 1], frames of 25 ms every 10 ms, reflected at both
ends, DC removed, pre-emphasis 0.97, Povey window, no dither, 20 to 7600 Hz.

Shapes: B batch, N samples, T frames, M mel bins.
"""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.config.augmentation import AugmentConfig

SAMPLE_RATE_HZ = 16_000
NUM_MELS = 80
FRAMES_PER_SECOND = 100
FEATURE_VERSION = 1  # part of every cache's digest: raise it when a feature changes

_WINDOW, _SHIFT, _FFT = 400, 160, 512
# Frame 0 covers samples -120 to 279: its middle, 80, is that of the first 10 ms.
_LEFT = _WINDOW // 2 - _SHIFT // 2  # the first frame is centred on its 10 ms
_LOW_HZ, HIGH_HZ = 20.0, 7600.0
_PREEMPHASIS = 0.97


def count_frames(num_samples: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    # Rounded to the nearest: 79 samples have no frame, 80 have one, 16,000 have 100.
    return (num_samples + _SHIFT // 2) // _SHIFT


def log_mel(
    waveforms: Float[Tensor, "batch samples"], num_samples: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch frames mels"], Int[Tensor, " batch"]]:
    """Compute each utterance's features as if it were alone; padded frames are 0."""
    num_frames = count_frames(num_samples)
    longest = int(num_frames.max())
    if longest == 0:
        return waveforms.new_zeros(len(waveforms), 0, NUM_MELS, dtype=torch.float32), num_frames
    # A matrix product in bf16 would cost the logarithm its digits.
    with torch.autocast(waveforms.device.type, enabled=False):
        frames = frame_windows(waveforms.float(), num_samples, longest)  # (B, T, 400)
        frames = frames - frames.mean(dim=2, keepdim=True)
        frames = preemphasize(frames) * povey_window(waveforms.device)
        # (B, T, 257): 400 samples are padded to 512.
        power = torch.fft.rfft(frames, n=_FFT).abs().square()
        mels = floored_log(power @ _mel_bank(waveforms.device))
    return mels * real_frames(num_frames, longest)[:, :, None], num_frames


def floored_log(powers: Float[Tensor, "batch frames mels"]) -> Float[Tensor, "batch frames mels"]:
    """Kaldi's: silence counts as the smallest step from 1."""
    return powers.clamp_min(torch.finfo(torch.float32).eps).log()


def real_frames(num_frames: Int[Tensor, " batch"], longest: int) -> Bool[Tensor, "batch frames"]:
    """Tell real frames from padding, on the device of the numbers of frames."""
    return torch.arange(longest, device=num_frames.device) < num_frames[:, None]


def frame_windows(
    waveforms: Float[Tensor, "batch samples"], num_samples: Int[Tensor, " batch"], longest: int
) -> Float[Tensor, "batch frames window"]:
    """Cut overlapping windows; beyond an end the signal runs back, its last sample twice."""
    position = torch.arange(-_LEFT, (longest - 1) * _SHIFT - _LEFT + _WINDOW).to(waveforms.device)
    # 3 samples have the period 0 1 2 2 1 0: positions -2 to 4 read 1 0, 0 1 2, 2 1.
    period = 2 * num_samples.clamp_min(1)[:, None]
    forth = position % period
    index = torch.minimum(forth, period - 1 - forth)
    return waveforms.gather(1, index).unfold(1, _WINDOW, _SHIFT)


def preemphasize(
    frames: Float[Tensor, "batch frames window"],
) -> Float[Tensor, "batch frames window"]:
    """Less 0.97 of the sample before, each frame by itself, as Kaldi has it."""
    before = torch.cat([frames[:, :, :1], frames[:, :, :-1]], dim=2)
    return frames - _PREEMPHASIS * before


def spec_augment(
    features: Float[Tensor, "batch frames mels"],
    num_frames: Int[Tensor, " batch"],
    config: AugmentConfig,
    generator: torch.Generator,
) -> Float[Tensor, "batch frames mels"]:
    """Set bands and spans to the utterance's mean of their mel bin (Park et al., 2019).

    Random numbers are drawn where `generator` lives, so a CPU generator gives a GPU the same masks.

    Args:
        features: padded frames are 0.
        num_frames: of each utterance.
        config: number and widths of the masks.
        generator: draws their widths and positions.
    """
    # Nothing is copied back: lengths come from the host, and masks go to the device.
    is_masked = draw_masks(features.shape, num_frames, config, generator)
    is_masked = is_masked.to(features.device, non_blocking=True)
    on_device = num_frames.to(features.device, non_blocking=True)
    real = real_frames(on_device, features.shape[1])[:, :, None]
    mean = (features * real).sum(1) / on_device.clamp_min(1)[:, None]
    return torch.where(is_masked & real, mean[:, None, :], features)


def draw_masks(
    shape: Sequence[int],
    num_frames: Int[Tensor, " batch"],
    config: AugmentConfig,
    generator: torch.Generator,
) -> Bool[Tensor, "batch frames mels"]:
    """Draw where features are masked, on the generator's device."""
    batch, longest, mels = shape
    # Masks by the second of each utterance's own length, not of the padded one.
    lengths = num_frames.to(generator.device)
    num_bands = torch.full_like(lengths, config.frequency_masks)
    bands = _spans(num_bands, torch.full_like(lengths, mels), config.frequency_width, generator)
    num_spans = (lengths / FRAMES_PER_SECOND * config.time_masks_per_second).round().long()
    width = round(config.time_width_seconds * FRAMES_PER_SECOND)
    spans = _spans(num_spans, lengths, width, generator)

    is_masked = torch.zeros(batch, longest, mels, dtype=torch.bool, device=generator.device)
    is_masked |= _inside(bands, mels)[:, None, :]
    is_masked |= _inside(spans, longest)[:, :, None]
    return is_masked


def _spans(
    num_spans: Int[Tensor, " batch"],
    lengths: Int[Tensor, " batch"],
    widest: int,
    generator: torch.Generator,
) -> Int[Tensor, "batch masks 2"]:
    """Draw start and end of each utterance's masks; the ones it does not need are empty."""
    shape = (len(lengths), int(num_spans.max()))
    device = generator.device
    widths = torch.randint(widest + 1, shape, generator=generator, device=device)
    widths = widths.minimum(lengths[:, None])
    share = torch.rand(shape, generator=generator, device=device)
    # Uniform over 0 to length - width: the span lies inside the utterance.
    starts = (share * (lengths[:, None] - widths + 1)).long()
    is_needed = torch.arange(shape[1], device=device) < num_spans[:, None]
    # A span that an utterance does not need has its end at its start.
    return torch.stack([starts, starts + widths * is_needed], dim=2)


def _inside(spans: Int[Tensor, "batch masks 2"], size: int) -> Bool[Tensor, "batch size"]:
    position = torch.arange(size, device=spans.device)
    starts, ends = spans[:, :, :1], spans[:, :, 1:]
    return ((position >= starts) & (position < ends)).any(dim=1)  # (B, size)


@functools.cache
def povey_window(device: torch.device) -> Float[Tensor, " window"]:
    """Return Kaldi's own window, a Hann window raised to the power 0.85."""
    return torch.hann_window(_WINDOW, periodic=False, device=device).pow(0.85)


@functools.cache
def _mel_bank(device: torch.device) -> Float[Tensor, "bins mels"]:
    """Triangles equally spaced on the HTK mel scale, as columns."""
    mel_of_bin = _mel(torch.arange(_FFT // 2 + 1, dtype=torch.float64) * SAMPLE_RATE_HZ / _FFT)
    low, high = _mel(torch.tensor([_LOW_HZ, HIGH_HZ], dtype=torch.float64)).tolist()
    step = (high - low) / (NUM_MELS + 1)
    lower = low + step * torch.arange(NUM_MELS, dtype=torch.float64)
    # Filter m is 0 at low + m step, 1 one step later, and 0 again after another: `2 - rising`
    # falls.
    rising = (mel_of_bin[:, None] - lower) / step
    bank = torch.minimum(rising, 2 - rising).clamp_min(0)
    return bank.float().to(device)


# 1000 Hz are 999.99 mel.
def _mel(hz: Float[Tensor, " any"]) -> Float[Tensor, " any"]:
    return 1127.0 * torch.log1p(hz / 700.0)
