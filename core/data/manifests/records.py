"""The records of lhotse's manifests, checked; only what passes is handed to lhotse.

Nothing but what is read here goes on: features, images, alignments and custom fields are left out,
so that nothing nested in them is ever opened.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut, MixedCut, MonoCut, MultiCut
from lhotse.cut.set import deserialize_cut
from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_serializer,
    model_validator,
)

from core.data.audio_decoding import CorpusError
from core.data.manifests.fields import (
    LONGEST_MIX,
    Channels,
    Count,
    Decibels,
    Duration,
    Name,
    Offset,
    Rate,
    Record,
    Start,
    Text,
    broken_rule,
)
from core.data.manifests.json_lines import Line
from core.data.manifests.recordings import RecordingRecord, Transform
from core.data.manifests.sources import NOTHING, Allowed, OutsideSource

RecordT = TypeVar("RecordT", bound=Record)


class SupervisionRecord(Record):
    """The transcript of one part of a recording or of a cut."""

    id: Name
    recording_id: Name
    start: Start
    duration: Duration
    channel: Channels = Field([0])
    text: Text | None = None

    @field_serializer("channel")
    def _as_lhotse_has_it(self, channel: list[int]) -> int | list[int]:
        return channel if len(channel) > 1 else channel[0]


class CutRecord(Record):
    """A part of one recording."""

    type: Literal["MonoCut", "MultiCut", "Cut"] = "MonoCut"
    id: Name
    start: Offset
    duration: Duration
    channel: Channels = Field([0])
    supervisions: list[SupervisionRecord] = Field([], max_length=1_000_000)
    recording: RecordingRecord

    @field_serializer("channel")
    def _as_lhotse_has_it(self, channel: list[int]) -> int | list[int]:
        return channel if self.type == "MultiCut" else channel[0]

    @model_validator(mode="before")
    @classmethod
    def _has_audio(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("recording") is None:
            what = "features alone" if values.get("features") else "none"
            raise ValueError(
                f"must have a `recording`, but has {what} instead;"
                " make the manifest with the recordings, whose features are computed here"
            )
        return values

    @model_validator(mode="after")
    def _lies_in_its_recording(self) -> "CutRecord":
        if self.start >= self.recording.duration:
            raise ValueError(
                f"`start` must lie before the recording's end at {self.recording.duration:g} s,"
                f" but is {self.start:g} instead"
            )
        if self.type != "MultiCut" and len(self.channel) > 1:
            raise ValueError(f"`channel` must be one, but is {list(self.channel)} instead")
        return self


class PaddingRecord(Record):
    """Zeros in a mix."""

    type: Literal["PaddingCut"] = "PaddingCut"
    id: Name
    duration: float = Field(gt=0, le=LONGEST_MIX)
    sampling_rate: Rate
    feat_value: float = Field(-23.0, ge=-1e9, le=1e9)
    num_samples: Count

    @model_validator(mode="after")
    def _is_of_one_length(self) -> "PaddingRecord":
        if abs(self.num_samples / self.sampling_rate - self.duration) > 0.1:
            raise ValueError("`num_samples` must last as long as `duration`, but does not")
        return self


def _is_padding(values: Any) -> str:
    # A dict when a line is checked; the record itself when pydantic writes it out for lhotse.
    kind = values.get("type") if isinstance(values, dict) else getattr(values, "type", "")
    return "PaddingCut" if kind == "PaddingCut" else "MonoCut"


class TrackRecord(Record):
    """One cut of a mix, and where in the mix it lies."""

    cut: Annotated[
        Annotated[CutRecord, Tag("MonoCut")] | Annotated[PaddingRecord, Tag("PaddingCut")],
        Discriminator(_is_padding),
    ]
    type: Literal["MonoCut", "MultiCut", "Cut", "PaddingCut"]
    offset: float = Field(0.0, ge=0, le=LONGEST_MIX)
    snr: Decibels | None = None
    is_snr_reference: bool = False
    mute: bool = False

    @model_validator(mode="before")
    @classmethod
    def _types_its_cut(cls, values: Any) -> Any:
        """A track's type is that of its cut, which may have none of its own."""
        if isinstance(values, dict) and isinstance(values.get("cut"), dict):
            return {**values, "cut": {**values["cut"], "type": values.get("type")}}
        return values

    @model_validator(mode="after")
    def _is_short(self) -> "TrackRecord":
        if self.cut.duration > LONGEST_MIX:
            raise ValueError(f"`cut.duration` must be at most {LONGEST_MIX:g} s, but is longer")
        return self


class MixedRecord(Record):
    """Several cuts, mixed or one after the other."""

    type: Literal["MixedCut"]
    id: Name
    tracks: list[TrackRecord] = Field(min_length=1, max_length=10_000)
    transforms: list[Transform] | None = Field(None, max_length=64)
    snr_reference: TrackRecord | None = None

    @model_validator(mode="after")
    def _has_speech(self) -> "MixedRecord":
        if all(isinstance(track.cut, PaddingRecord) for track in self.tracks):
            raise ValueError("`tracks` must hold a recording, but hold padding alone instead")
        return self


def check(
    kind: type[RecordT], line: Line, *, allowed: Allowed = NOTHING, is_shar: bool = False
) -> RecordT:
    """Checks a record.

    Args:
        kind: what it must be.
        line: the record and where it stands.
        allowed: what the user's own file allows.
        is_shar: whether its audio lies in archives of Shar.

    Raises:
        CorpusError: naming file, line, record, field, rule and value.
    """
    try:
        # The context comes to the validators of nested records, down to the sources of audio.
        return kind.model_validate(line.values, context={"allowed": allowed, "is_shar": is_shar})
    except ValidationError as error:
        name = line.values.get("id")
        who = f", `{name}`" if isinstance(name, str) and name.isprintable() else ""
        raise CorpusError(f"{line.location}{who:.200}: {broken_rule(error.errors()[0])}.") from None


def read_cut(line: Line, *, allowed: Allowed = NOTHING, is_shar: bool = False) -> Cut:
    """Makes lhotse's object of a line, plain or mixed; see `check`."""
    if line.values.get("type") == "MixedCut":
        return to_cut(check(MixedRecord, line, allowed=allowed, is_shar=is_shar))
    return to_cut(check(CutRecord, line, allowed=allowed, is_shar=is_shar))


def to_cut(record: CutRecord | MixedRecord) -> Cut:
    """Makes lhotse's object of a checked record."""
    # lhotse never sees the line: it gets what the checked record writes out, and nothing else.
    cut: Cut = deserialize_cut(_plain(record))
    for recording in recordings_in(cut):
        _open_outside(recording)
    return cut


def to_recording(record: RecordingRecord) -> Recording:
    """Makes lhotse's object of a checked record."""
    recording = Recording.from_dict(record.model_dump(exclude_none=True, by_alias=True))
    for one in recordings_in(recording):
        _open_outside(one)
    return recording


def to_supervision(record: SupervisionRecord) -> SupervisionSegment:
    """Makes lhotse's object of a checked record."""
    return SupervisionSegment.from_dict(record.model_dump(exclude_none=True, by_alias=True))


def recordings_in(item: object) -> Iterator[Recording]:
    """Yields what reading a cut opens: its recording, its tracks' and their impulse responses.

    Args:
        item: a cut, a recording, or nothing.
    """
    # Example: of a mix of A, with reverberation by R, and B: R, A, B. An impulse response is a
    # recording with sources of its own, so it must be checked like speech.
    tracks = item.tracks if isinstance(item, MixedCut) else ()
    for track in tracks:
        yield from recordings_in(track.cut)
    recording = item.recording if isinstance(item, MonoCut | MultiCut) else item
    recording = recording if isinstance(recording, Recording) else None
    changes = [*(getattr(recording, "transforms", None) or ())]
    if isinstance(item, MixedCut):
        changes += item.transforms or ()
    for change in changes:
        yield from recordings_in(getattr(change, "rir", None))
    if recording is not None:
        yield recording


def find_audio(cut: Cut, folder: Path) -> Cut:
    """Takes relative paths from a manifest's folder, or from here where the file is only here."""
    for recording in recordings_in(cut):
        for source in recording.sources:
            if source.type == "file":
                source.source = str(find_file(source.source, folder))
    return cut


def find_file(name: str, folder: Path) -> Path:
    """The file that a manifest in a folder names: from there on, or from here if only here."""
    relative, here = folder / name, Path(name)
    try:
        return here if here.is_file() and not relative.is_file() else relative
    except OSError:  # a folder that may not be entered, a name of too many bytes
        return relative


def _plain(record: CutRecord | MixedRecord) -> dict[str, Any]:
    values = record.model_dump(exclude_none=True, by_alias=True)
    if values["type"] == "Cut":
        values["type"] = "MonoCut"  # as it was called before lhotse 0.8
    return values


def _open_outside(recording: Recording) -> None:
    """Gives sources that the user allows a reader of our own."""
    recording.sources = [
        OutsideSource(source.type, source.channels, source.source)
        if source.type in ("command", "url")
        else source
        for source in recording.sources
    ]
