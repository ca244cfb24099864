"""NeMo's manifests: a JSON object a line with `audio_filepath`, `duration`, `text` and `offset`.

Paths are relative to the manifest's folder. Other keys are not read. A file in which several
utterances lie gives each a name of its own in the notation of web addresses: a.wav#t=1.5,3.25.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.utils import compute_num_samples
from pydantic import BeforeValidator, Field, model_validator

from core.data.audio import Header, read_header
from core.data.audio_decoding import CorpusError
from core.data.manifests.fields import Duration, Name, Offset, Record, Text
from core.data.manifests.json_lines import Line, read_lines
from core.data.manifests.records import check, find_file
from core.data.manifests.segments import ROUNDING_SECONDS, Notes
from core.data.manifests.sources import NOTHING, refusal_reason

AUDIO_KEYS = ("audio_filepath", "audio_filename")


def _digits(value: Any) -> Any:
    """A whole number is what tables of digits become; what 5.0 was before, nobody knows."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class NemoRecord(Record):
    """One utterance."""

    audio_filepath: Name
    duration: Duration | None = None
    """Seconds; none for the rest of the file."""
    offset: Offset | None = None
    """Seconds from the file's begin."""
    text: Annotated[Text | None, BeforeValidator(_digits)] = Field(None)

    @model_validator(mode="before")
    @classmethod
    def _has_one_name(cls, values: Any) -> Any:
        """NeMo's older manifests call it `audio_filename`."""
        if isinstance(values, dict) and "audio_filename" in values:
            return {"audio_filepath": values["audio_filename"], **values}
        return values

    @model_validator(mode="after")
    def _is_a_file(self) -> "NemoRecord":
        why = refusal_reason("file", self.audio_filepath, allowed=NOTHING, is_shar=False)
        if why:
            raise ValueError(why)
        return self


def read_utterances(file: Path, notes: Notes) -> Iterator[MonoCut]:
    """Yields a manifest's utterances.

    Raises:
        CorpusError: naming the line or the audio file that cannot be used.
    """
    audio, header = Path(), None
    for line in read_lines(file):
        record = check(NemoRecord, line)
        # Utterances of one file mostly follow one another: its header is read once for all of them.
        if header is None or audio != _audio(file, record):
            audio = _audio(file, record)
            if "shard_id" in line.values and not audio.is_file():
                raise CorpusError(
                    f"{line.location}: `audio_filepath` must name an audio file, but is in a tar"
                    " file of NeMo's instead, which is not read; name the manifest that it was made"
                    " of."
                )
            header = read_header(audio)
        yield _utterance(line, record, audio, header, notes)


def _audio(manifest: Path, record: NemoRecord) -> Path:
    """The manifest's folder first, then where the program was started."""
    if record.audio_filepath.startswith("~/"):
        return Path.home() / record.audio_filepath[2:]
    return find_file(record.audio_filepath, manifest.parent)


def _utterance(
    line: Line, record: NemoRecord, audio: Path, header: Header, notes: Notes
) -> MonoCut:
    # Example: offset 1.5 and duration 1.75 of a file of 10 s at 16 kHz are samples 24,000 to
    # 51,999, and the name a.wav#t=1.5,3.25.
    rate, whole = header.sample_rate_hz, header.num_samples
    first = compute_num_samples(record.offset or 0.0, rate)
    asked = whole - first
    if record.duration is not None:
        asked = compute_num_samples(record.duration, rate)
    length = min(asked, whole - first)
    if length < 1:
        raise CorpusError(
            f"{line.location}: `offset` must lie before the end of `{audio}` at {whole / rate:g} s,"
            f" but is {record.offset or 0.0:g} s instead."
        )
    name = _name(line.file, audio, record)
    # A duration that rounding made up to 5 ms too short still means the whole file.
    if record.offset or length < whole - ROUNDING_SECONDS * rate:
        name = f"{name}#t={_time(first / rate)},{_time((first + length) / rate)}"
    if asked - length > ROUNDING_SECONDS * rate:
        notes.clip(name)
    recording = Recording(
        id=name,
        sources=[AudioSource(type="file", channels=[0], source=str(audio))],
        sampling_rate=rate,
        num_samples=whole,
        duration=whole / rate,
        channel_ids=[0],
    )
    spoken = SupervisionSegment(
        id=name, recording_id=name, start=0.0, duration=length / rate, text=record.text
    )
    return MonoCut(
        id=name,
        start=first / rate,
        duration=length / rate,
        channel=0,
        recording=recording,
        supervisions=[spoken],
    )


def _time(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def _name(manifest: Path, audio: Path, record: NemoRecord) -> str:
    """The audio's path from the manifest on, so that moving both changes nothing."""
    try:
        return audio.relative_to(manifest.parent).as_posix()
    except ValueError:
        return record.audio_filepath
