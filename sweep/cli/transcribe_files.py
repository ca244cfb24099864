"""The work of `transcribe`: finds audio files and transcribes them one after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.base import ConfigError
from core.data.audio import (
    audio_below,
    read_header,
)
from core.data.audio_decoding import (
    CorpusError,
)
from core.data.audio_stream import ENDINGS
from core.evaluation.transducer_beam import AnyDecoder
from core.files import temporary_path
from core.inference.long_audio import AudioSegment, transcribe_windows
from core.inference.recognizer import Transcript, transcript
from core.inference.windows import Windowing


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The result for one audio file: a transcript or an error."""

    file: Path
    transcript: Transcript | None
    error: str = ""
    """The reason why there is no transcript; empty if there is one."""


def find_audio_files(paths: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Returns the audio files of all paths, each with its name relative to the path that holds it.

    Folders are searched for audio and sorted.

    Raises:
        ConfigError: if a folder holds no audio.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            files.setdefault(path, Path(path.name))
            continue
        inside = audio_below(path, ENDINGS)
        if not inside:
            raise ConfigError(
                f"`{path}` must hold audio ({', '.join(sorted(ENDINGS))}), but holds none instead."
            )
        for file in inside:
            # speech/a/1.wav below speech becomes a/1.txt, as a flat name could occur twice.
            files.setdefault(file, file.relative_to(path))
    return list(files.items())


def audio_seconds(files: Iterable[Path]) -> float:
    """Returns the total duration of the files in seconds, as far as their headers say."""
    total = 0.0
    for file in files:
        try:
            header = read_header(file)
        except (CorpusError, OSError):
            continue  # its error is reported when it is transcribed
        total += header.num_samples / header.sample_rate_hz
    return total


def transcribe_files(
    bundle: Any,
    files: Sequence[Path],
    *,
    windowing: Windowing,
    decoder: AnyDecoder | None,
    advance: Callable[[float], None],
) -> Iterator[Result]:
    """Yields the result of each file, in order.

    Args:
        bundle: the recognizer.
        files: audio files.
        windowing: how long files are split.
        decoder: beam search; None means greedy decoding.
        advance: called with the seconds of each transcribed segment.
    """

    def count_seconds(parts: Iterable[AudioSegment]) -> Iterator[AudioSegment]:
        for part in parts:
            advance(part.seconds)
            yield part

    for file in files:
        parts = transcribe_windows(bundle.model, file, windowing=windowing)
        try:
            yield Result(file=file, transcript=transcript(bundle, count_seconds(parts), decoder))
        except (CorpusError, OSError) as error:
            yield Result(file=file, transcript=None, error=_reason(file, error))


def write_text(text: str, path: Path) -> None:
    """Writes a file atomically, so that a transcript is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp_path = temporary_path(path)
    try:
        tmp_path.write_text(text, encoding="utf-8")
        tmp_path.replace(path)
    finally:
        tmp_path.unlink(missing_ok=True)


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"`{file}` cannot be read: {error.strerror or error}"
    return str(error)
