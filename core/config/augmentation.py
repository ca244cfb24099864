"""Configuration of what is done to speech in training: masks and recording conditions."""

from pydantic import Field, model_validator

from core.config.base import Config


class AugmentConfig(Config):
    """Augmentation of the training speech, anew in each epoch; dev and test stay as they are.

    SpecAugment (Park et al., 2019) sets bands and spans of the features to their mean. Silence,
    levels, noise and bandwidth simulate recordings, so that a model takes silence for silence;
    features that are normalized over an utterance, of some imported models, do without these four.
    Utterances without words and quiet ones are on: they cost nothing on clean speech. The others
    cost short trainings some accuracy on it (`docs/results/robustness.md`).
    """

    frequency_masks: int = Field(2, ge=0, le=16)
    """Bands an utterance."""
    frequency_width: int = Field(20, ge=0, le=80)
    """Widest band, in mel bins."""
    # The defaults in 10 s: 5 spans of at most 25 frames, and 2 bands of at most 20 of 80 mel bins.
    time_masks_per_second: float = Field(0.5, ge=0, le=10)
    """Spans a second of speech."""
    time_width_seconds: float = Field(0.25, ge=0, le=2)
    """Longest span, in seconds."""
    # 1,000 steps: the first 700 are clean.
    clean_share: float = Field(0.7, ge=0, le=1)
    """Share of the steps from random weights before these four begin: words are learned sooner from
    speech as it is. What learns from a teacher begins with them at once."""
    silence_share: float = Field(0.0, ge=0, le=1)
    """Share of the utterances that get silence before, after, around or between their words: half
    of it digital, half faint noise. It counts in `batch_seconds`."""
    silence_seconds: float = Field(2.0, ge=0.1, le=30)
    """Longest silence in one place, in seconds."""
    empty_share: float = Field(0.03, ge=0, lt=1)
    """Share of the utterances that are silenced: such silence alone, and no words."""
    level_share: float = Field(0.08, ge=0, le=1)
    """Share of the utterances that are heard at another level."""
    # -30 dB multiply samples by 0.03, 6 dB by 2.
    level_low_db: float = Field(-30.0, ge=-100, le=100)
    """Lowest gain of these, in dB."""
    level_high_db: float = Field(6.0, ge=-100, le=100)
    """Highest gain of these, in dB."""
    noise_share: float = Field(0.0, ge=0, le=1)
    """Share of the utterances under which noise is laid."""
    noise_low_db: float = Field(-110.0, ge=-150, le=0)
    """Lowest level of this noise and of faint noise in silence, in dB of full scale."""
    noise_high_db: float = Field(-45.0, ge=-150, le=0)
    """Highest level of both, in dB of full scale."""
    band_share: float = Field(0.0, ge=0, le=1)
    """Share of the utterances that lose what lies above some frequency, as on a telephone."""

    @model_validator(mode="after")
    def _levels_have_ranges(self) -> "AugmentConfig":
        for name in ("level", "noise"):
            low, high = getattr(self, f"{name}_low_db"), getattr(self, f"{name}_high_db")
            if low > high:
                raise ValueError(
                    f"`{name}_low_db` must be at most `{name}_high_db`, but is {low} above"
                    f" {high} instead"
                )
        return self
