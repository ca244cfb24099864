"""Recordings as lhotse's manifests describe them: files, and changes made while they are read.

Only changes that lhotse 1.33 can make here pass, with settings in their range. What needs a package
that is missing is refused by name before anything is read.
"""

import importlib.util
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Discriminator, Field, Tag, field_serializer, model_validator

from core.data.manifests.fields import (
    Channels,
    Count,
    Decibels,
    Duration,
    Name,
    Offset,
    Rate,
    Record,
)
from core.data.manifests.sources import NOTHING, refusal_reason
from core.features.kaldi import SAMPLE_RATE_HZ

# 44,100 to 16,000 Hz takes 441 * 160 = 70,560; 16,001 to 16,000 Hz would take 256 million.
_MOST_WEIGHTS = 32 * 10**6
"""Of the filter that changes a rate: torchaudio makes one for each pair of phases."""
_GIVEN = AliasChoices("kwargs")
"""As lhotse calls a change's settings."""
_REPAIR = "write the changed audio out, and make a manifest of that"


class SourceRecord(Record):
    """One file of a recording, and which of its channels are which."""

    type: Name
    channels: Channels
    source: Any = ""

    @model_validator(mode="after")
    def _may_be_read(self, info: Any) -> "SourceRecord":
        context = info.context or {}
        why = refusal_reason(
            self.type,
            self.source,
            allowed=context.get("allowed", NOTHING),
            is_shar=context.get("is_shar", False),
        )
        if why:
            raise ValueError(why)
        if not isinstance(self.source, str) or "\x00" in self.source:
            raise ValueError("must name an audio file, but names something else instead")
        return self


class RecordingRecord(Record):
    """One recording: its files, its length, and how lhotse changes it while reading."""

    id: Name
    sources: list[SourceRecord] = Field(min_length=1, max_length=1024)
    sampling_rate: Rate
    num_samples: Count
    duration: Duration
    channel_ids: Channels | None = None
    transforms: "list[Transform] | None" = Field(None, max_length=64)

    @model_validator(mode="after")
    def _is_of_one_length(self) -> "RecordingRecord":
        seconds = self.num_samples / self.sampling_rate
        # Durations are rounded when they are written: 0.11 s may be missing of 10 s, 3.7 s of an
        # hour.
        if abs(seconds - self.duration) > 0.1 + 1e-3 * self.duration:
            raise ValueError(
                f"must last as long as its {self.num_samples} samples, {seconds:g} s,"
                f" but has a `duration` of {self.duration:g} instead"
            )
        for old, new in self._rates():
            common = math.gcd(old, new)
            if (old // common) * (new // common) > _MOST_WEIGHTS:
                raise ValueError(
                    f"must have rates that can be changed, but {old} to {new} samples a second"
                    f" takes a filter of more than {_MOST_WEIGHTS // 10**6} million weights;"
                    " resample it with another program"
                )
        channels = [channel for source in self.sources for channel in source.channels]
        if len(set(channels)) < len(channels):
            raise ValueError("must have each channel once in `sources`, but has one twice instead")
        return self

    def _rates(self) -> Iterator[tuple[int, int]]:
        """Yields each change of the rate that reading takes, the one to 16 kHz included."""
        yield self.sampling_rate, SAMPLE_RATE_HZ
        for change in self.transforms or ():
            if isinstance(change, _Speed):
                # Speed 1.1 at 16 kHz is a change from 17,600 Hz to 16,000.
                yield round(self.sampling_rate * change.settings.factor), self.sampling_rate
            if isinstance(change, _Resample):
                yield change.settings.source_sampling_rate, change.settings.target_sampling_rate


class _RirCutRecord(Record):
    """A part of a recording that is an impulse response."""

    type: Literal["MonoCut", "MultiCut", "Cut"]
    id: Name
    start: Offset
    duration: Duration
    channel: Channels = Field([0])
    recording: RecordingRecord

    @field_serializer("channel")
    def _as_lhotse_has_it(self, channel: list[int]) -> int | list[int]:
        return channel if self.type == "MultiCut" else channel[0]


def _kind_of_response(values: Any) -> str:
    # A dict when a line is checked; the record itself when pydantic writes it out for lhotse.
    is_recording = "sources" in values if isinstance(values, dict) else hasattr(values, "sources")
    return "Recording" if is_recording else "Cut"


_Rir = Annotated[
    Annotated[RecordingRecord, Tag("Recording")] | Annotated[_RirCutRecord, Tag("Cut")],
    Discriminator(_kind_of_response),
]


class _Settings(Record, extra="forbid"):
    """Settings of one transform; unknown ones are refused, as they would change the audio."""


class _Factor(_Settings):
    factor: float = Field(ge=0.1, le=10)


class _Gain(_Settings):
    factor: float = Field(ge=-1e6, le=1e6)


class _Rates(_Settings):
    source_sampling_rate: Rate
    target_sampling_rate: Rate


class _ClippingSettings(_Settings):
    hard: bool = False
    gain_db: Decibels = 0.0
    normalize: bool = True


class _CompressSettings(_Settings):
    codec: Literal["opus", "mp3", "vorbis", "gsm"]
    compression_level: float = Field(ge=0, le=1)


class _NarrowbandSettings(_Settings):
    codec: Literal["mulaw"]
    source_sampling_rate: Rate
    restore_orig_sr: bool


class _RoomSettings(_Settings):
    sr: Rate = 16000
    direct_range: list[Annotated[int, Field(ge=-1000, le=1000)]] = Field([-6, 50], max_length=2)
    max_T60: float = Field(0.8, ge=0.1, le=10)  # noqa: N815  # lhotse's name
    alpha: float = Field(0.25, ge=-100, le=100)
    a: float = Field(-2.0, ge=-100, le=100)
    b: float = Field(2.0, ge=-100, le=100)
    tau: float = Field(0.2, ge=0, le=10)
    room_seed: int | None = Field(None, ge=0, le=2**64)
    source_seed: int | None = Field(None, ge=0, le=2**64)


class _ReverbSettings(_Settings):
    rir: "_Rir | None" = None
    normalize_output: bool = True
    early_only: bool = False
    rir_channels: list[Annotated[int, Field(ge=0, le=1023)]] = Field([0], min_length=1)
    rir_generator: _RoomSettings | None = None
    RIR_SCALING_FACTOR: float = Field(0.5**15, ge=0, le=1)

    @model_validator(mode="after")
    def _has_a_response(self) -> "_ReverbSettings":
        if self.rir is None and self.rir_generator is None:
            raise ValueError("must have `rir` or `rir_generator`, but has neither instead")
        return self


class _Speed(Record):
    name: Literal["Speed"]
    settings: _Factor = Field(validation_alias=_GIVEN, serialization_alias="kwargs")


class _Volume(Record):
    name: Literal["Volume"]
    settings: _Gain = Field(validation_alias=_GIVEN, serialization_alias="kwargs")


class _Resample(Record):
    name: Literal["Resample"]
    settings: _Rates = Field(validation_alias=_GIVEN, serialization_alias="kwargs")


class _Clipping(Record):
    name: Literal["Clipping"]
    settings: _ClippingSettings = Field(
        _ClippingSettings(), validation_alias=_GIVEN, serialization_alias="kwargs"
    )


class _Compress(Record):
    name: Literal["Compress"]
    settings: _CompressSettings = Field(validation_alias=_GIVEN, serialization_alias="kwargs")


class _Narrowband(Record):
    name: Literal["Narrowband"]
    settings: _NarrowbandSettings = Field(validation_alias=_GIVEN, serialization_alias="kwargs")


class _Reverb(Record):
    name: Literal["ReverbWithImpulseResponse"]
    settings: _ReverbSettings = Field(validation_alias=_GIVEN, serialization_alias="kwargs")


class _Tempo(Record):
    name: Literal["Tempo"]
    settings: dict[str, Any] = Field({}, validation_alias=_GIVEN, serialization_alias="kwargs")

    @model_validator(mode="after")
    def _can_be_made(self) -> "_Tempo":
        raise ValueError(f"must be a change that can be made here, but `Tempo` cannot; {_REPAIR}")


class _Loudness(Record):
    name: Literal["LoudnessNormalization"]
    settings: "_LoudnessSettings" = Field(validation_alias=_GIVEN, serialization_alias="kwargs")

    @model_validator(mode="after")
    def _can_be_made(self) -> "_Loudness":
        _need("pyloudnorm", self.name)
        return self


class _LoudnessSettings(_Settings):
    target: Decibels


class _Dereverb(Record):
    name: Literal["DereverbWPE"]
    settings: "_DereverbSettings" = Field(validation_alias=_GIVEN, serialization_alias="kwargs")

    @model_validator(mode="after")
    def _can_be_made(self) -> "_Dereverb":
        _need("nara_wpe", self.name)
        return self


class _DereverbSettings(_Settings):
    n_fft: int = Field(512, ge=2, le=1 << 16)
    hop_length: int = Field(128, ge=1, le=1 << 16)
    taps: int = Field(10, ge=1, le=100)
    delay: int = Field(3, ge=0, le=100)
    iterations: int = Field(3, ge=1, le=100)
    statistics_mode: Literal["full", "valid"] = "full"


def _need(package: str, name: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"must be a change that can be made here, but `{name}` needs `{package}`, which is not"
            f" installed; {_REPAIR}"
        )


Transform = Annotated[
    _Speed
    | _Volume
    | _Resample
    | _Clipping
    | _Compress
    | _Narrowband
    | _Reverb
    | _Tempo
    | _Loudness
    | _Dereverb,
    Field(discriminator="name"),
]
