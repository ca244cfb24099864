"""Recording conditions that training simulates: silence, silence alone, levels, noise, bandwidth.

A model that was only ever given speech finds words in digital silence. So some training utterances
get silence before, after or between their words, and a few are nothing but silence and have no
words. All of it is done to features that are cached already, where it is exact for silence and for
levels: a gain of a waveform adds a constant to its log powers.

What happens to an utterance is a pure function of seed, epoch and its number, and is drawn with the
order of the data, before batches are formed: silence counts as speech does in `batch_seconds`, all
ranks draw the same, and nothing of it has to be checkpointed.

Features that are normalized over an utterance (NeMo's `per_feature`) stay as they are: a gain does
not change them, and silence would change all frames by statistics that are not cached.

Shapes: T frames, M mel bins.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core.config.augmentation import AugmentConfig
from core.features.kaldi import FRAMES_PER_SECOND, NUM_MELS, SAMPLE_RATE_HZ
from core.features.nemo import compute_features
from core.features.spec import FrontendSpec

_STREAM = 1
"""Sets these draws apart from those of the order, which has the same seed and epoch."""
_SHORTEST_SECONDS = 0.1
# 0.2303: features are natural logarithms, so a gain of -30 dB adds -6.91.
_DECIBEL = math.log(10) / 10
"""Of a natural logarithm of power."""
_NOISE_FRAMES = 4 * FRAMES_PER_SECOND
_STEEPEST_DB = 20.0
"""Most by which a noise's power falls from the lowest mel bin to the highest."""
_LOWEST_CUT = NUM_MELS // 2
"""Mel bin above which a band may end: about 1700 Hz."""
_BAND_SLOPES = (0.5, 5.0)
"""Of a natural logarithm of power from one mel bin to the next: filters are slow or steep."""
_BAND_DEPTHS = (3.0, 14.0)
"""Most attenuation, likewise: speech is 12 above digital silence."""
# Cached training features are of half precision, which has steps of 2**-7 between 8 and 16, and of
# 2**-6 between 16 and 32.
_HALF_PRECISION = 2**-6
"""Most by which a logarithm of about -16 differs from what it is in half precision."""
_AVERAGED = 5
"""Frames over which loudness is averaged where a pause is looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """A stretch of noise."""

    begin: int
    """Its first frame among those of the noise that was computed once."""
    level: float
    """Natural logarithm of the mean square of its samples."""
    slope: float
    """Added to the logarithm from one mel bin to the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """The changes that training makes to one utterance."""

    before: int = 0
    """Frames of silence, as `between` and `after`."""
    between: int = 0
    after: int = 0
    silence: Noise | None = None
    """The faint noise that silence is; None for digital silence."""
    is_empty: bool = False
    """Whether silence takes the place of all of its speech, and no words are left."""
    gain: float = 0.0
    """Added to the natural logarithms of its powers."""
    noise: Noise | None = None
    """Added to its powers, before the gain."""
    band_end: int = NUM_MELS
    """Mel bin above which all are attenuated, also before the gain."""
    band_slope: float = 0.0
    """Attenuation from one mel bin to the next, above that."""
    band_depth: float = 0.0
    """Most attenuation."""

    @property
    def added_frames(self) -> int:
        """Frames by which the utterance becomes longer."""
        return self.before + self.between + self.after


UNCHANGED = Condition()


def draw_conditions(
    count: int, config: AugmentConfig, spec: FrontendSpec | None, *, seed: int, epoch: int
) -> list[Condition]:
    """Draw what happens to each of so many utterances in an epoch.

    Args:
        count: utterances.
        config: how often, and how much at most.
        spec: the features of the utterances; None where that is not known.
        seed: of the training.
        epoch: one of its epochs.
    """
    # The order of the columns of `is_drawn`, which `_draw` takes apart again.
    shares = (
        config.silence_share,
        config.empty_share,
        config.level_share,
        config.noise_share,
        config.band_share,
    )
    if spec is None or spec.normalization != "none" or not any(shares):
        return [UNCHANGED] * count
    rng = np.random.default_rng([seed, epoch, _STREAM])
    is_drawn = rng.random((count, len(shares))) < np.array(shares)
    # A generator each: what one utterance draws does not depend on how much another one does.
    return [
        _draw(config, row, np.random.default_rng([seed, epoch, _STREAM, i]))
        if row.any()
        else UNCHANGED
        for i, row in enumerate(is_drawn)
    ]


# Powers add: noise as loud as the speech in a bin adds log 2 = 0.69 to it; noise that is lower by 4
# adds 0.02. A gain of 0 has an effect after attenuation: it lifts what fell below digital silence.
def apply_condition(
    features: Float[Tensor, "frames mels"], condition: Condition, spec: FrontendSpec
) -> Float[Tensor, "new_frames mels"]:
    """An utterance's features under a condition."""
    if condition is UNCHANGED:
        return features
    if condition.is_empty:
        return silence_frames(len(features), condition.silence, spec)
    if condition.noise is not None:
        noise = noise_frames(len(features), condition.noise, spec)
        features = torch.logaddexp(features, noise)
    if condition.band_depth > 0:
        features = features - _attenuation(condition, spec)
    if condition.gain != 0 or condition.band_depth > 0:
        features = with_gain(features, condition.gain, spec)
    if not condition.added_frames:
        return features
    pause = quietest_frame(features) if condition.between else 0
    lengths = (condition.before, condition.between, condition.after)
    before, between, after = (silence_frames(n, condition.silence, spec) for n in lengths)
    return torch.cat([before, features[:pause], between, features[pause:], after])


def silence_frames(
    count: int, silence: Noise | None, spec: FrontendSpec
) -> Float[Tensor, "frames mels"]:
    """Returns `count` frames of digital silence, or of faint noise."""
    floor = torch.full((count, spec.mels), silence_value(spec))
    if silence is None:
        return floor
    # NeMo adds its floor to each power, Kaldi takes the larger of power and floor.
    above = torch.logaddexp if spec.features == "nemo" else torch.maximum
    return above(noise_frames(count, silence, spec), floor)


def noise_frames(count: int, noise: Noise, spec: FrontendSpec) -> Float[Tensor, "frames mels"]:
    """Returns `count` frames of noise, which repeats after the stretch that is computed once."""
    index = (torch.arange(count) + noise.begin) % _NOISE_FRAMES
    return _white_noise(spec)[index] + noise.level + noise.slope * _scale(spec)


def with_gain(
    features: Float[Tensor, "frames mels"], gain: float, spec: FrontendSpec
) -> Float[Tensor, "frames mels"]:
    """The features of a waveform whose power is exp(`gain`) times as high."""
    floor = silence_value(spec)
    if spec.features != "nemo":
        # Digital silence stays silence at any level: with a gain of 2, -15.945 (the floor in half
        # precision) becomes the floor, -15.942, and not -13.945.
        is_silent = features <= floor + _HALF_PRECISION
        return (features + gain).clamp_min(floor).where(~is_silent, floor)
    # NeMo adds its floor to each power.
    powers = (features.exp() - math.exp(floor)).clamp_min(0)
    return (powers * math.exp(gain) + math.exp(floor)).log()


def quietest_frame(features: Float[Tensor, "frames mels"]) -> int:
    """Where the middle half of an utterance is quietest: between two words, if there is a pause."""
    # Of 100 frames 25 to 74 are searched. Averages of 5 frames: the i-th one has its middle at
    # frame 25 + 2 + i.
    begin, end = len(features) // 4, len(features) - len(features) // 4
    loudness = features[begin:end].mean(1)
    if len(loudness) <= _AVERAGED:
        return len(features) // 2
    averaged = loudness.unfold(0, _AVERAGED, 1).mean(1)
    return begin + _AVERAGED // 2 + int(averaged.argmin())


@functools.cache
def silence_value(spec: FrontendSpec) -> float:
    """The feature of digital silence, the same in every frame and mel bin.

    Only of features that are not normalized over an utterance.
    """
    assert spec.normalization == "none"
    samples = torch.zeros(1, SAMPLE_RATE_HZ // 10)
    features, _ = compute_features(spec, samples, torch.tensor([samples.shape[1]]))
    return float(features[0, 0, 0])


@functools.cache
def _white_noise(spec: FrontendSpec) -> Float[Tensor, "frames mels"]:
    """Features of white noise of power 1, always the same."""
    count = _NOISE_FRAMES * SAMPLE_RATE_HZ // FRAMES_PER_SECOND
    samples = torch.randn(1, count, generator=torch.Generator().manual_seed(0))
    features, _ = compute_features(spec, samples, torch.tensor([count]))
    return features[0]


def _draw(config: AugmentConfig, is_drawn: np.ndarray, rng: np.random.Generator) -> Condition:
    """Draw one utterance's condition, of the kinds that it is to have."""
    has_silence, is_empty, has_level, has_noise, has_band = is_drawn.tolist()
    low, high = config.level_low_db, config.level_high_db
    lengths = (0, 0, 0)
    if has_silence and not is_empty:
        lengths = _draw_silence(config.silence_seconds, rng)
    before, between, after = lengths
    # These draws are one sequence: a draw that is added or moved changes all training after it.
    return Condition(
        before=before,
        between=between,
        after=after,
        silence=_draw_noise(config, rng) if rng.random() < 0.5 else None,
        is_empty=is_empty,
        gain=_DECIBEL * float(rng.uniform(low, high)) if has_level else 0.0,
        noise=_draw_noise(config, rng) if has_noise else None,
        band_end=int(rng.integers(_LOWEST_CUT, NUM_MELS)) if has_band else NUM_MELS,
        band_slope=float(rng.uniform(*_BAND_SLOPES)) if has_band else 0.0,
        band_depth=float(rng.uniform(*_BAND_DEPTHS)) if has_band else 0.0,
    )


def _draw_silence(seconds: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """Frames before, between and after the words: in one of these places, or around the words."""
    # One of: before, between, after, or before and after together.
    is_there = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1))[rng.integers(4)]
    longest = max(seconds, _SHORTEST_SECONDS)
    drawn = rng.uniform(_SHORTEST_SECONDS, longest, 3) * FRAMES_PER_SECOND
    before, between, after = (int(n) * there for n, there in zip(drawn, is_there, strict=True))
    return before, between, after


def _draw_noise(config: AugmentConfig, rng: np.random.Generator) -> Noise:
    level = rng.uniform(config.noise_low_db, config.noise_high_db)
    return Noise(
        begin=int(rng.integers(_NOISE_FRAMES)),
        level=_DECIBEL * float(level),
        slope=-_DECIBEL * float(rng.uniform(0, _STEEPEST_DB)) / NUM_MELS,
    )


def _scale(spec: FrontendSpec) -> Float[Tensor, " mels"]:
    """Each mel bin's number, in the scale of 80 in which conditions are drawn."""
    return torch.arange(spec.mels) * (NUM_MELS / spec.mels)


def _attenuation(condition: Condition, spec: FrontendSpec) -> Float[Tensor, " mels"]:
    # Example: end 60, slope 0.5, depth 3 take 0 from bin 60, 0.5 from bin 61, and 3 from bin 66 on.
    above = _scale(spec) - condition.band_end
    return (condition.band_slope * above).clamp(0, condition.band_depth)
