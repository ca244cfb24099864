"""Reads Google's Speech Commands as published: a folder, or the archive itself.

The layout is WORD/SPEAKER_nohash_TAKE.wav, one word of at most a second in each, 16 kHz. An archive
is not unpacked, and no name in it becomes a path.
"""

import io
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile

from benchmarks.corpora.archives import SourceError, iterate_archive

SAMPLE_RATE_HZ = 16_000
MAX_SAMPLES = SAMPLE_RATE_HZ  # every published recording lasts a second or less

_NAME = re.compile(r"([0-9a-f]{8})_nohash_(\d{1,4})\.wav")


@dataclass(frozen=True, order=True, slots=True)
class Recording:
    """One word, spoken once by one speaker."""

    speaker: str
    """Eight hexadecimal digits."""
    word: str
    take: int
    """Counts the speaker's recordings of the word."""


def list_recordings(source: Path, words: Collection[str]) -> list[Recording]:
    """List the recordings of `words`, sorted; the published lists and the noise are left out.

    Raises:
        SourceError: if `source` is missing, damaged, or holds none of them.
    """
    recordings = {recording for recording, _ in _entries(source, words)}
    if not recordings:
        raise SourceError(
            f"`{source}` must hold recordings like `{min(words)}/0a7c2a8d_nohash_0.wav`, but holds"
            f" none of {len(words)} words; give the folder or .tar.gz of Speech Commands"
        )
    return sorted(recordings)


def read_recordings(source: Path, wanted: Collection[Recording]) -> dict[Recording, np.ndarray]:
    """Read recordings as 16-bit samples.

    Args:
        source: The folder or the archive.
        wanted: Which recordings; those that are missing are missing in the result.

    Raises:
        SourceError: if a recording is damaged, longer than a second, or not 16 kHz mono.
    """
    wanted = frozenset(wanted)
    samples: dict[Recording, np.ndarray] = {}
    for recording, encoded in _entries(source, {each.word for each in wanted}, wanted):
        if recording in wanted:
            samples.setdefault(recording, _decode(source, recording, encoded))
    return samples


def _entries(
    source: Path, words: Collection[str], wanted: frozenset[Recording] = frozenset()
) -> Iterator[tuple[Recording, bytes]]:
    """Yield the recordings of `words`, with the files' bytes for those that are wanted."""
    if source.is_dir():
        yield from _folder_entries(source, words, wanted)
        return
    for name, read in iterate_archive(source):
        recording = _recording_of(name, words)
        if recording is not None:
            yield recording, read() if recording in wanted else b""


def _folder_entries(
    source: Path, words: Collection[str], wanted: frozenset[Recording]
) -> Iterator[tuple[Recording, bytes]]:
    for word in sorted(words):
        for file in sorted((source / word).glob("*.wav")):
            recording = _recording_of(f"{word}/{file.name}", words)
            if recording is None:
                continue
            yield recording, file.read_bytes() if recording in wanted else b""


def _recording_of(name: str, words: Collection[str]) -> Recording | None:
    parts = PurePosixPath(name).parts[-2:]
    matched = _NAME.fullmatch(parts[-1]) if len(parts) == 2 else None
    if matched is None or parts[0] not in words:
        return None
    return Recording(speaker=matched[1], word=parts[0], take=int(matched[2]))


def _decode(source: Path, recording: Recording, encoded: bytes) -> np.ndarray:
    name = f"{source}: {recording.word}/{recording.speaker}_nohash_{recording.take}.wav"
    try:
        with soundfile.SoundFile(io.BytesIO(encoded)) as sound:
            rate, channels, length = sound.samplerate, sound.channels, sound.frames
            if (rate, channels) != (SAMPLE_RATE_HZ, 1) or not 0 < length <= MAX_SAMPLES:
                raise SourceError(
                    f"`{name}` must be 16 kHz mono of at most 1 s, but has {rate} Hz,"
                    f" {channels} channels and {length / rate:.2f} s instead"
                )
            samples: np.ndarray = sound.read(dtype="int16")
    except soundfile.LibsndfileError as error:
        raise SourceError(f"`{name}` must be a WAV file, but cannot be read ({error})") from error
    return samples
